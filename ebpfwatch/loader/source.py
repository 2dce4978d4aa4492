"""The C that is compiled: our probe files with their own includes put in place.

BCC rewrites map accesses only in the main file it is given, so ``#include "x.h"`` of our own files
is resolved here, once each, with ``#line`` so that errors name the real file.  Everything else
stays plain C.
"""

from __future__ import annotations

import re
from pathlib import Path

from ebpfwatch.errors import EbpfwatchError, Exit

__all__ = ["unit"]

_INCLUDE = re.compile(r'^#include "([\w.]+)"\s*$')


def unit(directory: Path, name: str) -> str:
    """The text of one compilation unit; raises ``EbpfwatchError`` if a file is missing."""
    lines: list[str] = []
    _append(directory, name, lines, set())
    return "\n".join(lines) + "\n"


def _append(directory: Path, name: str, lines: list[str], seen: set[str]) -> None:
    if name in seen:
        return
    seen.add(name)
    try:
        text = (directory / name).read_text(encoding="utf-8")
    except OSError as error:
        raise EbpfwatchError(
            f"cannot read the probe {directory / name}: {error.strerror}",
            "the installation is incomplete; install it again",
            Exit.SOFTWARE,
        ) from None
    lines.append(f'#line 1 "{name}"')
    for number, line in enumerate(text.splitlines(), 1):
        include = _INCLUDE.match(line)
        if include:
            _append(directory, include.group(1), lines, seen)
            lines.append(f'#line {number + 1} "{name}"')
        else:
            lines.append(line)
