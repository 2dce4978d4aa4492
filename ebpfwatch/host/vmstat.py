"""Counters from /proc/vmstat: the kernel's own word on whether reclaim ran."""

from __future__ import annotations

from ebpfwatch.host import ParseError
from ebpfwatch.host.fields import lines, number, text
from ebpfwatch.paths import Paths

__all__ = ["RECLAIM", "parse", "read", "reclaim"]

#: What tells of reclaim, by the kernel's names: pages looked at and taken by kswapd and by tasks
#: themselves, slab objects looked at, tasks that had to reclaim, inodes taken with pages in them,
#: kills.
RECLAIM = (
    "pgscan_kswapd",
    "pgsteal_kswapd",
    "pgscan_direct",
    "pgsteal_direct",
    "slabs_scanned",
    "allocstall",
    "pginodesteal",
    "kswapd_inodesteal",
    "drop_slab",
    "oom_kill",
)

_ZONES = ("dma", "dma32", "normal", "high", "movable", "device")


def read(paths: Paths) -> dict[str, int]:
    """All counters by name, in the kernel's units; raises ``OSError`` or ``ParseError``."""
    return parse(text(paths.proc / "vmstat"))


def parse(body: str) -> dict[str, int]:
    """One "name value" a line."""
    counters: dict[str, int] = {}
    for position, line in lines(body, "/proc/vmstat"):
        where = f"/proc/vmstat line {position}"
        words = line.split()
        if len(words) != 2:
            raise ParseError(f"{where}: {line[:80]!r}")
        counters[words[0]] = number(words[1], where)
    return counters


def reclaim(counters: dict[str, int]) -> dict[str, int]:
    """Those of ``RECLAIM`` that this kernel has; what it counts by zone is added up.

    Since Linux commit 7cc30fcfd2a8 ("mm: vmstat: account per-zone stalls and pages skipped during
    reclaim") (in v4.8) allocstall is counted by zone; pgscan_* and pgsteal_* were before it.
    """
    found: dict[str, int] = {}
    for name in RECLAIM:
        by_zone = [f"{name}_{zone}" for zone in _ZONES]
        present = [counters[key] for key in (name, *by_zone) if key in counters]
        if present:
            found[name] = sum(present)
    return found
