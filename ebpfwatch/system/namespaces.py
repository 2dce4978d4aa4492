"""Whether this process counts tasks as the kernel does."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["in_own_pid_namespace"]

#: The inode of the first PID namespace (PROC_PID_INIT_INO of include/linux/proc_ns.h).
_FIRST = "pid:[4026531836]"


def in_own_pid_namespace(proc: Path = Path("/proc")) -> bool:
    """As in a container: it sees few processes, and each by another number than the kernel's."""
    try:
        return os.readlink(proc / "self/ns/pid") != _FIRST
    except OSError:
        return False
