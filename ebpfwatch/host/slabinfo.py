"""/proc/slabinfo: how many inodes and dentries the kernel holds, and in how many bytes.

Not /sys/kernel/slab: on kernels before 5.9 each memory cgroup has a child cache of its own, which
only slabinfo adds up. Root only.
"""

from __future__ import annotations

import dataclasses
import os
import time

from ebpfwatch.host import ParseError
from ebpfwatch.host.fields import lines, number, text
from ebpfwatch.paths import Paths

__all__ = ["CACHES", "SlabCache", "SlabReader", "Slabs", "parse", "read"]

CACHES = ("ext4_inode_cache", "dentry")


@dataclasses.dataclass(frozen=True)
class SlabCache:
    """One cache: objects in use, objects there is room for, the bytes of one, the bytes of all."""

    name: str
    active: int
    total: int
    object_bytes: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Slabs:
    """``caches`` are those of ``CACHES`` that exist; ``objects`` counts those of every cache."""

    caches: tuple[SlabCache, ...]
    objects: int

    def cache(self, name: str) -> SlabCache | None:
        """One of ``CACHES``."""
        return next((cache for cache in self.caches if cache.name == name), None)


def read(paths: Paths) -> Slabs:
    """This machine's; raises ``OSError`` (not root) or ``ParseError``."""
    return parse(text(paths.proc / "slabinfo"), os.sysconf("SC_PAGE_SIZE"))


class SlabReader:
    """Reads at most every ``seconds``: the kernel walks the lists of every cache under its lock,
    with interrupts off, so what is cheap to parse is not free to read.
    """

    def __init__(self, seconds: float = 15.0) -> None:
        self._seconds = seconds
        self._slabs: Slabs | None = None
        self._read_at = 0.0

    def read(self, paths: Paths) -> Slabs:
        """The slabs, not older than that; raises as ``read`` does, then and the next time."""
        now = time.monotonic()
        if self._slabs is None or now - self._read_at >= self._seconds:
            self._slabs = None
            self._slabs = read(paths)
            self._read_at = now
        return self._slabs


def parse(body: str, page_bytes: int) -> Slabs:
    """Version 2.1: "name active total objsize objperslab pagesperslab : tunables ... : slabdata
    active_slabs slabs ...".
    """
    caches = []
    objects = 0
    for position, line in lines(body, "/proc/slabinfo"):
        if position <= 2 and line.startswith(("slabinfo - version: 2", "# name")):
            continue
        where = f"/proc/slabinfo line {position}"
        words = line.split(None, 3)
        if len(words) != 4:
            raise ParseError(f"{where}: {line[:80]!r}")
        objects += number(words[2], where)
        if words[0] in CACHES:
            caches.append(_cache(line, page_bytes, where))
    return Slabs(tuple(caches), objects)


def _cache(line: str, page_bytes: int, where: str) -> SlabCache:
    words = line.split()
    try:
        slabs = number(words[words.index("slabdata") + 2], where)
        active, total, size, _, pages = (number(word, where) for word in words[1:6])
    except (ValueError, IndexError):
        raise ParseError(f"{where}: {line[:80]!r}") from None
    return SlabCache(words[0], active, total, size, slabs * pages * page_bytes)
