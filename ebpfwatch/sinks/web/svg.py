"""A zone's free memory against its watermarks, as inline SVG without any asset.

The scale ends at twice the high watermark: what matters happens below it, and a zone with plenty
of memory would otherwise squeeze its watermarks into one line.
"""

from __future__ import annotations

import html

from ebpfwatch.host.zoneinfo import Zone
from ebpfwatch.text.sizes import size

__all__ = ["level", "watermarks"]

_BAR_TOP, _BAR_HEIGHT = 6, 26

#: What each level means to the kernel, worst first; the position is ``ebpfwatch_zone_level``.
LEVELS = (
    ("bad", "below min", "only emergencies may allocate; everybody else reclaims"),
    ("warn", "below low", "kswapd is at work"),
    ("fair", "below high", "kswapd, once woken, goes on until high"),
    ("ok", "above high", "enough free memory; nothing is reclaimed"),
)


def level(zone: Zone) -> int:
    """0 below min, 1 below low, 2 below high, 3 at or above it."""
    return sum(zone.free >= mark for mark in (zone.min, zone.low, zone.high))


def watermarks(zone: Zone) -> str:
    """One bar; everything it shows is also said in its title, for those who do not see it.

    Positions are percentages, so that letters and lines keep their size on a telephone.
    """
    top = max(2 * zone.high, 1)

    def at(count: int) -> float:
        return round(min(count, top) / top * 100, 2)

    kind, name, meaning = LEVELS[level(zone)]
    said = html.escape(
        f"Node {zone.node} {zone.zone}: {size(zone.free)} free, {name} ({meaning}); "
        f"min {size(zone.min)}, low {size(zone.low)}, high {size(zone.high)}"
    )
    edges = [0.0, at(zone.min), at(zone.low), at(zone.high), 100.0]
    bands = "".join(
        f"<rect class='band {LEVELS[i][0]}' x='{left}%' y='{_BAR_TOP}'"
        f" width='{round(right - left, 2)}%' height='{_BAR_HEIGHT}'/>"
        for i, (left, right) in enumerate(zip(edges, edges[1:]))
    )
    marks = "".join(
        _mark(at(count), mark)
        for mark, count in (("min", zone.min), ("low", zone.low), ("high", zone.high))
    )
    return (
        f"<svg width='100%' height='56' role='img' aria-label='{said}'>"
        f"<title>{said}</title>{bands}{_free(at(zone.free), kind)}{marks}</svg>"
    )


def _free(x: float, kind: str) -> str:
    y, height = _BAR_TOP + 8, _BAR_HEIGHT - 16
    tip = ""
    if x == 100:  # an arrow: there is more than fits
        x = 99
        way = f"M-14 {y - 5}L0 {y + height / 2}L-14 {y + height + 5}Z"
        tip = f"<svg class=tip x='100%'><path class='free {kind}' d='{way}'/></svg>"
    return f"<rect class='free {kind}' y='{y}' width='{max(x, 0.5)}%' height='{height}'/>{tip}"


def _mark(x: float, name: str) -> str:
    anchor = "start" if x < 3 else "middle"
    bottom = _BAR_TOP + _BAR_HEIGHT
    return (
        f"<line class='mark' x1='{x}%' x2='{x}%' y1='{_BAR_TOP - 4}' y2='{bottom + 4}'/>"
        f"<text x='{x}%' y='{bottom + 18}' text-anchor='{anchor}'>{name}</text>"
    )
