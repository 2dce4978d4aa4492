"""Zone watermarks from /proc/zoneinfo. Read, never computed: an estimate made for the crash
of docs/case.md was wrong.
"""

from __future__ import annotations

import dataclasses
import os
import re

from ebpfwatch.host import ParseError, fields
from ebpfwatch.paths import Paths

__all__ = ["Zone", "parse", "read"]


@dataclasses.dataclass(frozen=True)
class Zone:
    """One zone of one node; all sizes in bytes."""

    node: int
    zone: str
    free: int
    min: int
    low: int
    high: int
    managed: int

    @property
    def level(self) -> int:
        """Where free memory stands: 0 below min, 1 min..low, 2 low..high, 3 above high."""
        return sum(self.free >= mark for mark in (self.min, self.low, self.high))


_HEAD = re.compile(r"Node (\d+), zone\s+(\S+)")
_WANTED = {"min", "low", "high", "managed"}


def read(paths: Paths) -> tuple[Zone, ...]:
    """The zones of this machine; raises ``OSError`` or ``ParseError``."""
    return parse(fields.text(paths.proc / "zoneinfo"), os.sysconf("SC_PAGE_SIZE"))


def parse(text: str, page_bytes: int) -> tuple[Zone, ...]:
    """Zones that manage memory (an empty zone has no watermarks worth a series)."""
    zones: list[Zone] = []
    fields.whole(text, "/proc/zoneinfo")
    node, zone, values = 0, "", dict[str, int]()
    for number, line in enumerate([*text.splitlines(), "Node 0, zone end"], 1):
        head = _HEAD.match(line)
        if head:
            if values.get("managed"):
                zones.append(_zone(node, zone, values, page_bytes, number))
            node, zone, values = int(head.group(1)), head.group(2), {}
            continue
        words = line.split()
        name, value = "", ""
        if len(words) == 3 and words[:2] == ["pages", "free"]:
            name, value = "free", words[2]
        # per-CPU lines reuse "high:" with a colon, so the names cannot be confused
        elif len(words) == 2 and words[0] in _WANTED and words[0] not in values:
            name, value = words
        if name:
            if not zone:
                raise ParseError(f"/proc/zoneinfo line {number}: {line.strip()[:80]!r}")
            values[name] = fields.number(value, f"/proc/zoneinfo line {number}")
    if not zones:
        raise ParseError("/proc/zoneinfo has no zone that manages memory")
    return tuple(zones)


def _zone(node: int, zone: str, values: dict[str, int], page_bytes: int, number: int) -> Zone:
    try:
        return Zone(
            node,
            zone,
            *(values[k] * page_bytes for k in ("free", "min", "low", "high", "managed")),
        )
    except KeyError as missing:
        raise ParseError(
            f"/proc/zoneinfo before line {number}: zone {zone} of node {node} has no {missing}"
        ) from None
