"""The kernel's tick as a clock: what time it was when ``jiffies`` had which value.

Reading the hardware's clock costs a probe as much as the rest of a step; ``jiffies`` is a load from
memory (bpf_jiffies64, which the verifier puts in place, Linux >= 5.5).  The kernel advances it by
CLOCK_MONOTONIC, so one line through some looks at both tells the time to a tick.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import time

from ebpfwatch.kernel.libbpf import raw_tracepoint_test_run
from ebpfwatch.loader.bpf import EXIT, PROGRAM_TYPES, instruction, load_program

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
        self._looks: list[Look] = []
        self._fds: list[int] = []
        kind = PROGRAM_TYPES["raw_tracepoint"]
        with contextlib.suppress(OSError):
            for code in (_JIFFIES64 + _SHIFT_32 + _RETURN, _JIFFIES64 + _RETURN):
                self._fds.append(load_program(kind, code, version, explain=False))
            self._look()

    def tick(self) -> int:
        """The length of a tick in ns, 0 where it cannot be told.

        Ask late: the longer ago the first look was, the truer it is.
        """
        if self._looks:
            apart = time.monotonic_ns() - self._looks[0].ns
            time.sleep(max(0, _APART_NS - apart) / 1e9)
        self._look()
        return tick_ns(self._looks[0], self._looks[-1]) if self._looks else 0

    def offset(self, tick: int) -> int:
        """CLOCK_MONOTONIC (ns) when ``jiffies`` was 0, and closes the programs; raises ``OSError``
        where nobody could look.
        """
        if not self._looks:
            self._close()
            raise OSError(errno.ENOTSUP, "the tick that the programs were compiled for is not told")
        self._close()
        # A look comes late, never early: the earliest is the truest.
        return min(look.ns - look.jiffies * tick for look in self._looks)

    def _close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def _look(self) -> None:
        if len(self._fds) < 2:
            return
        try:
            for _ in range(_LOOKS):
                high, low = map(raw_tracepoint_test_run, self._fds)
                self._looks.append(Look(high << 32 | low, time.monotonic_ns()))
        except OSError:
            self._looks = []  # no BPF_PROG_TEST_RUN for this kind of program
