"""Counters from /proc/vmstat: the kernel's own word on whether reclaim ran."""

from __future__ import annotations

from ebpfwatch.host import ParseError
from ebpfwatch.paths import Paths

__all__ = ["parse", "read"]


def read(paths: Paths) -> dict[str, int]:
    """All counters by name, in the kernel's units; raises ``OSError`` or ``ParseError``."""
    return parse((paths.proc / "vmstat").read_text(encoding="ascii", errors="replace"))


def parse(text: str) -> dict[str, int]:
    """One "name value" a line."""
    counters: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if len(words) != 2 or not (words[1].isascii() and words[1].lstrip("-").isdigit()):
            raise ParseError(f"/proc/vmstat line {number}: {line[:80]!r}")
        try:
            counters[words[0]] = int(words[1])
        except ValueError:
            raise ParseError(f"/proc/vmstat line {number}: {line[:80]!r}") from None
    return counters
