"""The loaded kernel modules: /proc/modules."""

from __future__ import annotations

import dataclasses
from pathlib import Path

__all__ = ["Module", "read_modules"]


@dataclasses.dataclass(frozen=True)
class Module:
    """One line of /proc/modules: the memory [start, end), and its taints ("OE", "" for none)."""

    name: str
    start: int
    end: int
    taints: str


def read_modules(file: Path) -> tuple[Module, ...]:
    """The loaded modules; none where the file is missing, as on a kernel without modules."""
    try:
        text = file.read_text(errors="replace")
    except OSError:
        return ()
    found = []
    for line in text.splitlines():
        words = line.split()
        try:
            start = int(words[5], 16)
            found.append(Module(words[0], start, start + int(words[1]), _taints(words[6:7])))
        except (IndexError, ValueError):
            continue
    return tuple(found)


def _taints(word: list[str]) -> str:
    """Of "(OE)"; while it is being loaded or unloaded its state is in there, too: "(OE+)"."""
    return "".join(word).strip("()+-")
