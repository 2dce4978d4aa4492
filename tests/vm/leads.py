"""How often a double destroy was in the journal before the second free came, and by how much."""

from __future__ import annotations

import re
import statistics

from tests.vm.guest import Outcome
from tests.vm.places import SECOND_FREE, journaled

__all__ = ["leads"]

_COMMITTED = re.compile(r"crime: twice object=.* at=(\d+)")


def leads(outcome: Outcome) -> tuple[str, str]:
    """(the figures in words, what is not as it must be).

    All times are the guest's CLOCK_MONOTONIC: the module's for the second free, journald's own for
    the record, the probe's for the verdict.
    """
    committed = [int(ns) for ns in _COMMITTED.findall(outcome.console)]
    second = [int(ns) for ns in SECOND_FREE.findall(outcome.console)]
    told = [f for f in journaled(outcome.results) if f["verdict"] == "double_destroy"]
    pairs = [
        (body, next((ns for ns in second if ns > committed_ns), None))
        for committed_ns, body in zip(committed, sorted(told, key=lambda body: int(body["ns"])))
    ]
    ahead = [(ns - body["journal_ns"]) / 1e6 for body, ns in pairs if ns is not None]
    grace = [(ns - body["ns"]) / 1e6 for body, ns in pairs if ns is not None]
    if not committed or not len(committed) == len(second) == len(told) == len(ahead):
        counts = f"{len(committed)} committed, {len(told)} told, {len(second)} second frees"
        return counts, counts
    before = sum(ms > 0 for ms in ahead)
    text = (
        f"of {len(committed)} double destroys {len(told)} told; in the journal before the second"
        f" free {before}; from the verdict to the second free {_spread(grace)},"
        f" to the journal's record {_spread([g - a for g, a in zip(grace, ahead)])}"
    )
    return text, ""


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ms (from {min(values):.1f} to {max(values):.1f})"
