"""Paragraphs for a terminal or a file of lines."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from ebpfwatch.text.printable import printable

__all__ = ["wrapped"]

_WIDTH = 100


def wrapped(lines: Iterable[str]) -> Iterator[str]:
    """Each line made safe to print and folded at 100 columns; what is folded is indented two
    columns more than the line itself.  An empty line stays one.
    """
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        text = printable(line)
        yield from textwrap.wrap(
            text, _WIDTH, subsequent_indent=indent, break_on_hyphens=False
        ) or [""]
