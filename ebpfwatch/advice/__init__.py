"""What the state of a machine means for this bug: pure functions from state to advice.

One module a section; each line has a level, the value it was judged by, why it matters here, and
the command that would change it.  Nothing here changes anything.
"""

from __future__ import annotations

import dataclasses
import enum

__all__ = ["Advice", "Level", "boot_with", "percent", "size"]


class Level(enum.Enum):
    """How it stands."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"
    UNKNOWN = "UNKNOWN"


@dataclasses.dataclass(frozen=True)
class Advice:
    """One line; ``command`` is for a shell (what is no command is a comment there), "" for none."""

    section: str
    item: str
    level: Level
    value: str
    why: str
    command: str = ""


def size(count: float) -> str:
    """Bytes for people, in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit in ("B", "KiB") else f"{count:.1f} {unit}"


def boot_with(words: str) -> str:
    """Words for the kernel's command line, as a shell's comment."""
    return f"# kernel command line: {words}"


def percent(part: float, whole: float) -> str:
    """A share in words; "?" of nothing."""
    return f"{part / whole * 100:.1f} %" if whole else "?"
