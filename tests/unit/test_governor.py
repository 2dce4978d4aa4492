"""The governor: when it steps, and what it takes for the watcher's cost."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import pytest

from ebpfwatch.daemon.governor import STEP_NS, Governor, HookSwitch, Load
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.kernel.session import NEVER


def steps(governor: Governor, percents: Sequence[float]) -> list[int]:
    """The step after each tick."""
    return [governor.feed(percent) for percent in percents]


def test_one_tick_over_the_budget_changes_nothing() -> None:
    """A burst is not a load."""
    assert steps(Governor(10, 2), [50, 1, 50, 1]) == [0, 0, 0, 0]


def test_it_steps_down_while_the_load_lasts_and_no_further_than_it_can() -> None:
    """Two ticks a step, and there are only two steps."""
    assert steps(Governor(10, 2), [50] * 8) == [0, 1, 1, 2, 2, 2, 2, 2]


def test_it_steps_up_only_after_a_minute_below_half() -> None:
    """Between half of the budget and all of it nothing moves, either way."""
    governor = Governor(10, 1)
    assert steps(governor, [50, 50]) == [0, 1]
    assert set(steps(governor, [7] * 100)) == {1}
    assert steps(governor, [1] * 12) == [1] * 11 + [0]


def test_each_relapse_doubles_the_wait() -> None:
    """Where every step up brings the load back, it comes ever more rarely, but not never."""
    governor = Governor(10, 1)
    waits = []
    for _ in range(8):
        steps(governor, [50, 50])
        wait = 0
        while governor.step:
            governor.feed(0)
            wait += 1
        waits.append(wait)
    assert waits == [12, 24, 48, 96, 192, 192, 192, 192]


def test_without_a_budget_there_is_no_governor() -> None:
    """0 switches it off, also while it is down."""
    governor = Governor(10, 1)
    steps(governor, [50, 50])
    governor.budget = 0
    assert steps(governor, [500] * 12)[-1] == 0


def test_the_load_is_ours_and_the_steps_of_the_programs() -> None:
    """10 s, 0.1 s of our own CPU, and a million lives of four steps."""
    load = Load(0)
    life = dict.fromkeys(("unlink", "evict", "destroy", "free"), 1_000_000)
    assert load.feed(100, 1.0, {}, 0) == 0
    assert load.feed(110, 1.1, life, 0) == pytest.approx(1 + 4e6 * STEP_NS / 1e9 * 10)


def test_where_the_kernel_measures_the_programs_its_word_counts() -> None:
    """kernel.bpf_stats_enabled: exact, so no estimate."""
    load = Load(0)
    load.feed(100, 1.0, {}, 0)
    assert load.feed(110, 1.0, {"evict": 10**9}, 500_000_000) == pytest.approx(5)


@pytest.mark.parametrize(("run_ns", "programs"), [(0, 0.0), (500_000_000, 5.0)])
def test_traps_are_in_no_program_and_cost_what_they_were_measured_to(
    run_ns: int, programs: float
) -> None:
    """A million frees from any slab in 10 s, 400 ns each: 4 % of a CPU that no program can see."""
    load = Load(400)
    load.feed(100, 1.0, {"slab_free": 5}, 0)
    found = load.feed(110, 1.0, {"slab_free": 1_000_005}, run_ns)
    assert found == pytest.approx(4 + programs)


class FakeLinks:
    """Roles that can be taken off; ``denied`` ones not be put back."""

    def __init__(self, *roles: str, denied: bool = False) -> None:
        self.roles = dict.fromkeys(roles, True)
        self.denied = denied

    def attached(self, role: str) -> bool:
        return self.roles.get(role, False)

    def detach(self, role: str) -> None:
        self.roles[role] = False

    def attach(self, role: str) -> None:
        if self.denied:
            raise EbpfwatchError(f"attaching: {os.strerror(1)}", "", Exit.OSERR)
        self.roles[role] = True


class FakeSession:
    def __init__(self, links: FakeLinks) -> None:
        self.links = links
        self.since = {"alloc": 0, "any_free": 0, "unlink": 0}
        self.told: list[tuple[dict[str, int], dict[str, bool]]] = []

    def configure(self) -> None:
        """What the programs were told, and what was attached at that moment."""
        self.told.append((dict(self.since), dict(self.links.roles)))


def switch(*roles: str, denied: bool = False) -> tuple[HookSwitch, FakeSession]:
    """HookSwitch on a session of these roles."""
    session = FakeSession(FakeLinks(*roles, denied=denied))
    return HookSwitch(session, session.configure), session  # type: ignore[arg-type]


def test_the_only_hook_that_sees_the_free_is_never_taken_off() -> None:
    """On kernels without function hooks any_free is the free itself."""
    assert switch("any_free", "unlink", "evict")[0].roles == ("unlink",)
    assert switch("any_free", "rcu_free", "alloc", "unlink")[0].roles == (
        "any_free",
        "alloc",
        "unlink",
    )


def test_what_is_off_is_said_in_every_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    """A line in the log and a reason, until it is on again; and since when it has no gap."""
    governed, session = switch("any_free", "rcu_free", "alloc")
    assert governed.go(2, 33.0) == ("any_free",)
    assert governed.go(2, 33.0) == ("alloc",)
    assert "33.0 %" in capsys.readouterr().err
    assert [text.split()[2] for text in governed.doubts] == ["any_free", "alloc"]
    assert governed.go(0, 0.0) == ("any_free",)
    assert governed.go(0, 0.0) == ("alloc",)
    assert governed.doubts == ()


@pytest.mark.parametrize("role", ["alloc", "unlink"])
def test_the_programs_know_of_a_gap_before_it_begins_and_until_it_has_ended(role: str) -> None:
    """Else a life that nobody saw begin is a second death, and an unlink that has returned not."""
    governed, session = switch("rcu_free", role)
    began = time.monotonic_ns()
    governed.go(1, 33.0)
    governed.go(0, 0.0)
    (off, before), (on, after) = session.told
    assert (off[role], before[role]) == (NEVER, True)
    assert began < on[role] <= time.monotonic_ns()
    assert after[role]


def test_a_hook_that_cannot_come_back_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The daemon has given up the capability: it stays off, and says so once."""
    governed, _ = switch("unlink", denied=True)
    governed.go(1, 33.0)
    capsys.readouterr()
    assert governed.go(0, 0.0) == governed.go(0, 0.0) == ()
    assert capsys.readouterr().err.count("off until the next start") == 1
    assert governed.off == ("unlink",)
