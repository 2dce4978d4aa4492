"""For all readers of /proc and /sys: files that may be absent, words that may be no number."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from pathlib import Path

from ebpfwatch.host import ParseError

__all__ = [
    "integer",
    "lines",
    "number",
    "numbers",
    "optional",
    "optional_integer",
    "present",
    "text",
    "whole",
]

#: What a file says that exists but has nothing behind it (PSI switched off, a device that left).
_NOTHING_BEHIND = {errno.ENOENT, errno.ENOTDIR, errno.EOPNOTSUPP, errno.ENODEV, errno.ENXIO}

_NUMBER = re.compile(r"-?[0-9]{1,20}")


def text(path: Path) -> str:
    """The file as the kernel gives it, foreign bytes kept; raises ``OSError``."""
    # Unbuffered: there are seventy of these in a scrape, and each is read at one go.
    with open(path, "rb", buffering=0) as file:
        return file.readall().decode("utf-8", errors="surrogateescape")


def optional(path: Path) -> str | None:
    """The file's text without the line's end, None where this kernel has no such file."""
    found = present(path)
    return None if found is None else found.rstrip("\n")


def present(path: Path) -> str | None:
    """The file's text, None where this kernel has no such file."""
    try:
        return text(path)
    except OSError as error:
        if error.errno in _NOTHING_BEHIND:
            return None
        raise


def number(word: str, where: str) -> int:
    """A decimal number; raises ``ParseError`` naming ``where``."""
    if not _NUMBER.fullmatch(word):
        raise ParseError(f"{where}: {word[:40]!r} is no number")
    return int(word)


def numbers(line: str, least: int, where: str) -> list[int]:
    """All words of a line as numbers, at least that many; raises ``ParseError``."""
    words = whole(line, where).split()
    if len(words) < least:
        raise ParseError(f"{where}: {line[:80]!r} has less than {least} numbers")
    return [number(word, where) for word in words]


def integer(path: Path, where: str) -> int:
    """A file of one number; raises ``OSError`` or ``ParseError``."""
    return number(text(path).strip(), where)


def optional_integer(root: Path, name: str) -> int | None:
    """A file of one number below ``root``, None where there is none; raises ``ParseError``."""
    found = optional(root / name)
    return None if found is None else number(found.strip(), f"{root.name}/{name}")


def whole(body: str, where: str) -> str:
    """The text, if its last line has its end; raises ``ParseError``: half a number is one, too."""
    if not body.endswith("\n"):
        raise ParseError(f"{where} {'is cut within a line' if body else 'is empty'}")
    return body


def lines(body: str, where: str) -> Iterable[tuple[int, str]]:
    """The lines that hold something, with their numbers; raises ``ParseError`` naming ``where``.

    Not splitlines(): names in /proc may hold any other line separator of Unicode.
    """
    for position, line in enumerate(whole(body, where).split("\n"), 1):
        if line.strip():
            yield position, line
