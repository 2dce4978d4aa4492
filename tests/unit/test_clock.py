"""The distance between two clocks, on a machine that lets others run between two reads."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpfwatch.system import clock

ROOT = Path(__file__).parents[2]
AHEAD = 1_790_000_000_000_000_000  #: what the made-up CLOCK_REALTIME is ahead
PREEMPTED = 231_000_000


def machine(delays: Iterable[int]) -> Callable[[int], int]:
    """A clock_gettime_ns() in front of which so many ns pass each time."""
    now, waits = 1_000_000_000, iter(delays)

    def read(which: int) -> int:
        nonlocal now
        now += next(waits)
        return now + (AHEAD if which == time.CLOCK_REALTIME else 0)

    return read


def plain(read: Callable[[int], int]) -> int:
    """The difference as it was taken, without brackets."""
    return read(time.CLOCK_REALTIME) - read(time.CLOCK_MONOTONIC)


def busy(quiet: int) -> Iterator[int]:
    """Preempted before every read but those of one bracket, the last possible."""
    for bracket in range(100):
        for _ in range(3):
            yield quiet if bracket == clock._READS - 1 else PREEMPTED


def measured(monkeypatch: pytest.MonkeyPatch, delays: Iterable[int]) -> int:
    """What ``ahead_ns`` says on such a machine."""
    with monkeypatch.context() as patched:
        patched.setattr(time, "clock_gettime_ns", machine(delays))
        return clock.ahead_ns(time.CLOCK_REALTIME)


def test_one_quiet_moment_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the plain difference is wrong by as long as another task ran."""
    assert abs(measured(monkeypatch, busy(10_000)) - AHEAD) <= 10_000
    assert abs(plain(machine(busy(10_000))) - AHEAD) == PREEMPTED


@given(st.lists(st.integers(1, PREEMPTED), min_size=3 * clock._READS, max_size=3 * clock._READS))
def test_it_is_never_wrong_by_more_than_half_of_the_tightest_bracket(delays: list[int]) -> None:
    """Whatever runs in between."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = measured(monkeypatch, delays)
    tightest = min(sum(delays[at + 1 : at + 3]) for at in range(0, len(delays), 3))
    assert abs(found - AHEAD) <= (tightest + 1) // 2


def test_this_machines_own_clocks() -> None:
    """CLOCK_BOOTTIME counts suspended time, too, so it is never behind; a clock is not ahead of
    itself by more than a read.
    """
    assert clock.ahead_ns(time.CLOCK_BOOTTIME) > -1_000_000
    assert abs(clock.ahead_ns(time.CLOCK_MONOTONIC)) < 1_000_000
    wall, boot = clock.ahead_ns(time.CLOCK_REALTIME), clock.ahead_ns(time.CLOCK_BOOTTIME)
    between = clock.ahead_ns(time.CLOCK_REALTIME, time.CLOCK_BOOTTIME)
    assert abs(wall - boot - between) < 10_000_000


def test_nobody_takes_the_difference_by_himself() -> None:
    """In no module: a read of one clock less a read of another."""
    read = r"time\.(time|monotonic|clock_gettime)(_ns)?\([^)]*\)"
    difference = re.compile(rf"{read}\)?( \* \w+| / \w+)? - \(?{read}")
    assert difference.search("time.time_ns() - time.monotonic_ns()")
    assert difference.search("(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)) * 1e6")
    for file in (ROOT / "ebpfwatch").rglob("*.py"):
        assert not difference.search(file.read_text()), file
