"""/proc/swaps: where anonymous memory can go, if anywhere (proc_swaps(5))."""

from __future__ import annotations

import dataclasses

from ebpfwatch.host import ParseError
from ebpfwatch.host.fields import lines, number, text
from ebpfwatch.host.mounts import unescape
from ebpfwatch.paths import Paths

__all__ = ["Swap", "parse", "read"]


@dataclasses.dataclass(frozen=True)
class Swap:
    """One swap area; ``kind`` is "file" or "partition", sizes in bytes."""

    path: str
    kind: str
    size: int
    used: int
    priority: int


def read(paths: Paths) -> tuple[Swap, ...]:
    """All areas in use; none where the kernel has no swap; raises ``OSError``/``ParseError``."""
    try:
        return parse(text(paths.proc / "swaps"))
    except FileNotFoundError:
        return ()


def parse(body: str) -> tuple[Swap, ...]:
    """A heading, then one area a line."""
    found = []
    for position, line in lines(body, "/proc/swaps"):
        if position == 1 and line.startswith("Filename"):
            continue
        where = f"/proc/swaps line {position}"
        words = line.split()
        if len(words) != 5:
            raise ParseError(f"{where}: {line[:80]!r}")
        size, used, priority = (number(word, where) for word in words[2:])
        found.append(Swap(unescape(words[0]), words[1], size * 1024, used * 1024, priority))
    return tuple(found)
