"""Making RCU free now what it was given: a free is seen only when it happens.

call_rcu() may keep what it was given for 10 s where it is lazy (CONFIG_RCU_LAZY with rcu_nocbs=),
and a loaded machine runs its callbacks late.  A grace period that somebody waits for on the same
CPU takes them along: synchronize_rcu() hurries that CPU's list (call_rcu_hurry() in
kernel/rcu/tree.c).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator

__all__ = ["force_grace_period", "on_one_cpu"]

_MEMBARRIER = {"x86_64": 324, "aarch64": 283}
_CMD_GLOBAL = 1  #: synchronize_rcu() (kernel/sched/membarrier.c)


@contextlib.contextmanager
def on_one_cpu() -> Iterator[None]:
    """This thread stays on the CPU it is on, so that the callbacks queued inside are all there."""
    before = os.sched_getaffinity(0)
    with contextlib.suppress(OSError):  # a cpuset may have changed meanwhile
        os.sched_setaffinity(0, {_this_cpu()})
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, before)


def _this_cpu() -> int:
    cpu = int(ctypes.CDLL(None).sched_getcpu())
    return cpu if cpu >= 0 else min(os.sched_getaffinity(0))


def force_grace_period() -> bool:
    """Wait for a grace period; False where the kernel refuses (it does with nohz_full=)."""
    number = _MEMBARRIER.get(platform.machine())
    return number is not None and ctypes.CDLL(None).syscall(number, _CMD_GLOBAL, 0, 0) == 0
