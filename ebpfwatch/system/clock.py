"""How far one of the kernel's clocks is ahead of another: clock_gettime(2)."""

from __future__ import annotations

import time

__all__ = ["ahead_ns"]

_READS = 9


def ahead_ns(clock: int, of: int = time.CLOCK_MONOTONIC) -> int:
    """By how much ``clock`` is ahead of the other one.

    No two clocks are read at one moment, and between two reads another task may run: a plain
    difference is wrong by as long as that task ran.  So each read of ``clock`` stands between two
    of the other one, and of several such brackets the tightest counts: half of its length is the
    most that the answer can be wrong.
    """
    brackets = []
    for _ in range(_READS):
        before = time.clock_gettime_ns(of)
        there = time.clock_gettime_ns(clock)
        after = time.clock_gettime_ns(of)
        brackets.append((after - before, there - (before + after) // 2))
    return min(brackets)[1]
