"""/proc/meminfo: what is free, what is promised, what the slabs hold (proc_meminfo(5))."""

from __future__ import annotations

import dataclasses

from ebpfwatch.host import ParseError
from ebpfwatch.host.fields import lines, number, text
from ebpfwatch.paths import Paths

__all__ = ["Memory", "parse", "read"]


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes, and ``huge_total`` pages of ``huge_bytes``; None for a line this kernel has not."""

    total: int
    free: int
    available: int | None = None
    buffers: int | None = None
    cached: int | None = None
    active_file: int | None = None
    inactive_file: int | None = None
    dirty: int | None = None
    writeback: int | None = None
    slab: int | None = None
    slab_reclaimable: int | None = None
    slab_unreclaimable: int | None = None
    swap_total: int | None = None
    swap_free: int | None = None
    commit_limit: int | None = None
    committed: int | None = None
    huge_total: int | None = None
    huge_bytes: int | None = None

    @property
    def commit_ratio(self) -> float | None:
        """Committed_AS in parts of CommitLimit; only overcommit_memory=2 enforces that limit."""
        if not self.commit_limit or self.committed is None:
            return None
        return self.committed / self.commit_limit

    @property
    def dirtyable(self) -> int | None:
        """About what dirty_ratio is a percentage of: free memory and file pages."""
        if self.active_file is not None and self.inactive_file is not None:
            return self.free + self.active_file + self.inactive_file
        if self.cached is not None:
            return self.free + self.cached
        return None


_FIELDS = {
    "MemTotal": "total",
    "MemFree": "free",
    "MemAvailable": "available",
    "Buffers": "buffers",
    "Cached": "cached",
    "Active(file)": "active_file",
    "Inactive(file)": "inactive_file",
    "Dirty": "dirty",
    "Writeback": "writeback",
    "Slab": "slab",
    "SReclaimable": "slab_reclaimable",
    "SUnreclaim": "slab_unreclaimable",
    "SwapTotal": "swap_total",
    "SwapFree": "swap_free",
    "CommitLimit": "commit_limit",
    "Committed_AS": "committed",
    "HugePages_Total": "huge_total",
    "Hugepagesize": "huge_bytes",
}


def read(paths: Paths) -> Memory:
    """This machine's; raises ``OSError`` or ``ParseError``."""
    return parse(text(paths.proc / "meminfo"))


def parse(body: str) -> Memory:
    """One "Name:  value kB" a line; raises ``ParseError``."""
    found: dict[str, int] = {}
    for position, line in lines(body, "/proc/meminfo"):
        name, colon, rest = line.partition(":")
        words = rest.split()
        if not colon or not words or words[1:] not in ([], ["kB"]):
            raise ParseError(f"/proc/meminfo line {position}: {line[:80]!r}")
        if name in _FIELDS:
            value = number(words[0], f"/proc/meminfo line {position}")
            found[_FIELDS[name]] = value * 1024 if words[1:] else value
    try:
        return Memory(**found)
    except TypeError:
        raise ParseError("/proc/meminfo has no MemTotal or no MemFree") from None
