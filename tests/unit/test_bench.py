"""The tables that the benches write."""

from __future__ import annotations

from ebpfwatch.catalogue.roles import Hook
from ebpfwatch.catalogue.verdicts import Verdict
from tests.bench.verdicts import SEES, by_role, table


def test_every_verdict_is_told_by_a_hook() -> None:
    """And every hook that is part of the watcher, and tells one, has a row."""
    assert {verdict for told in SEES.values() for verdict in told} == set(Verdict)
    assert set(SEES) == {hook.value for hook in Hook}


def test_what_a_role_costs_is_the_sum_of_its_programs() -> None:
    """A program of no role (the self-test's) is left out."""
    roles = by_role(
        {
            "ext4_unlink_enter": (1.0, 300.0),
            "ext4_unlink_exit": (1.0, 20.0),
            "kmem_cache_free": (10.0, 280.0),
            "find_selftest_page": (1.0, 1.0),
        }
    )
    assert roles == {"unlink": (2.0, 320.0), "any_free": (10.0, 280.0)}
    lines = table("ns", roles)
    assert lines[2] == "| unlink | `unlocked_unlink`, `concurrent_unlink` | 2.00 | 320 |"
    assert lines[-1] == "| together | | | 600 |"
