"""Who a task is, while it lives: proc_pid_stat(5), proc_pid_cgroup(5), /proc/PID/exe."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import time

from ebpfwatch.host import ParseError
from ebpfwatch.paths import Paths
from ebpfwatch.system.clock import ahead_ns

__all__ = ["Process", "process"]

_NS = 1_000_000_000
_UNIT = re.compile(r"[^/]+\.(?:service|scope)")


@dataclasses.dataclass(frozen=True)
class Process:
    """What /proc said of a task that still lived when the verdict fell; "" where it says nothing.

    ``unit`` is the systemd unit in ``cgroup``.
    """

    exe: str
    ppid: int
    parent: str
    cgroup: str
    unit: str


def process(paths: Paths, tgid: int, ns: int) -> Process | None:
    """The process that had this id at that moment (CLOCK_MONOTONIC ns); None if it is gone.

    A process that began later only took over the number.  ``exe`` needs CAP_SYS_PTRACE for other
    people's processes; without it is "".  Four small reads, no more; never raises.
    """
    if tgid <= 0:
        return None
    home = paths.proc / str(tgid)
    try:
        ppid, started_ns = _stat((home / "stat").read_text(errors="replace"))
    except (OSError, ParseError):
        return None
    # Ticks are coarse, and start times run on CLOCK_BOOTTIME, which is never behind.
    if started_ns > ns + ahead_ns(time.CLOCK_BOOTTIME) + _NS // 10:
        return None
    exe, parent, cgroup = "", "", ""
    with contextlib.suppress(OSError):
        cgroup = _cgroup((home / "cgroup").read_text(errors="replace"))
    with contextlib.suppress(OSError):
        parent = (paths.proc / str(ppid) / "comm").read_text(errors="replace").rstrip("\n")
    with contextlib.suppress(OSError):
        exe = os.readlink(home / "exe")
    units = _UNIT.findall(cgroup)
    return Process(exe, ppid, parent, cgroup, units[-1] if units else "")


def _stat(text: str) -> tuple[int, int]:
    """(parent, start in ns since boot); the comm may hold spaces and parentheses."""
    fields = text.rpartition(")")[2].split()
    try:
        return int(fields[1]), int(fields[19]) * _NS // os.sysconf("SC_CLK_TCK")
    except (IndexError, ValueError):
        raise ParseError(f"/proc/PID/stat: {text[:80]!r}") from None


def _cgroup(text: str) -> str:
    """The unified hierarchy's path, else that of systemd's own on a kernel with the old ones."""
    paths = dict(line.split(":", 2)[1:] for line in text.splitlines() if line.count(":") >= 2)
    for name in ("", "name=systemd"):
        if paths.get(name, "/") != "/":
            return paths[name]
    return paths.get("", "")
