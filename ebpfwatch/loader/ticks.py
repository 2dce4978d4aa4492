"""The kernel's tick as a clock: what time it was when ``jiffies`` had which value.

Reading the hardware's clock costs a probe as much as the rest of a step; ``jiffies`` is a load from
memory (bpf_jiffies64, which the verifier puts in place, Linux >= 5.5).  The kernel advances it by
CLOCK_MONOTONIC, so one line through some looks at both tells the time to a tick.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence

from ebpfwatch.kernel.libbpf import raw_tracepoint_test_run
from ebpfwatch.loader.prober import EXIT, PROGRAM_TYPES, instruction, load_program

__all__ = ["Look", "Ticks", "tick_ns"]

_JIFFIES64 = instruction(0x85, imm=118)
_SHIFT_32 = instruction(0x77, imm=32)  # r0 >>= 32
_RETURN = EXIT[8:]

_HZ = (100, 250, 300, 1000)  #: what kernel/Kconfig.hz offers
_LOOKS = 50
_APART_NS = 100_000_000  #: then 250 and 300 HZ are 5 ticks apart


@dataclasses.dataclass(frozen=True)
class Look:
    """``jiffies``, and CLOCK_MONOTONIC (ns) right after it was read."""

    jiffies: int
    ns: int


def tick_ns(first: Look, last: Look) -> int:
    """The length of a tick by two looks; 0 if they fit no known HZ within 8 %."""
    ticks = last.jiffies - first.jiffies
    if ticks <= 0 or last.ns - first.ns < _APART_NS:
        return 0
    measured = (last.ns - first.ns) / ticks
    tick = min((1_000_000_000 // hz for hz in _HZ), key=lambda ns: abs(ns - measured))
    return tick if abs(tick - measured) <= tick * 0.08 else 0


class Ticks:
    """Looks at ``jiffies`` by test-running two tiny programs (Linux >= 5.10)."""

    def __init__(self, version: int) -> None:
        kind = PROGRAM_TYPES["raw_tracepoint"]
        self._low = load_program(kind, _JIFFIES64 + _RETURN, version)
        self._high = load_program(kind, _JIFFIES64 + _SHIFT_32 + _RETURN, version)
        self._looks: list[Look] = []
        self._look()

    def flags(self) -> Sequence[str]:
        """TICK_NS and TICK_OFFSET_NS for the compiler; () where the tick cannot be told."""
        self._look()
        for fd in (self._low, self._high):
            if fd >= 0:
                os.close(fd)
        tick = tick_ns(self._looks[0], self._looks[-1]) if self._looks else 0
        if not tick:
            return ()
        # A look comes late, never early: the earliest is the truest.
        offset = min(look.ns - look.jiffies * tick for look in self._looks)
        return (f"-DTICK_NS={tick}ULL", f"-DTICK_OFFSET_NS={offset % 2**64}ULL")

    def _look(self) -> None:
        if self._low < 0 or self._high < 0:
            return
        try:
            for _ in range(_LOOKS):
                high, low = map(raw_tracepoint_test_run, (self._high, self._low))
                self._looks.append(Look(high << 32 | low, time.monotonic_ns()))
        except OSError:
            self._looks = []  # no BPF_PROG_TEST_RUN for this kind of program
