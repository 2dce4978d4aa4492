"""Figures in docs/reliability.md are written by the commands that measured them, never by hand.

A section stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``; the command replaces it when
EBPFWATCH_FIGURES is set, and prints it always.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
from pathlib import Path

__all__ = ["between", "record"]

_FILE = Path(__file__).parents[2] / "docs/reliability.md"


def _where(machine: str = "") -> str:
    """Which machine, this one unless told, and which day a figure is of."""
    today = datetime.datetime.now(datetime.timezone.utc)
    machine = machine or (
        f"{platform.machine()}, Linux {platform.release().split('-')[0]}, {os.cpu_count()} CPUs"
    )
    return f"{machine}, {today:%Y-%m-%d}"


def record(
    name: str, command: str, lines: list[str], file: Path = _FILE, machine: str = ""
) -> None:
    """Print a section, and put it into the document if asked to; raises ``ValueError`` if the
    document has no place for it.  ``machine`` is whose figures they are, if not this one's.
    """
    section = "\n".join([f"`{command}` on {_where(machine)}:", "", *lines])
    print(f"\n{section}", flush=True)
    if not os.environ.get("EBPFWATCH_FIGURES"):
        return
    between(file, name, section + "\n")


def between(file: Path, mark: str, text: str) -> None:
    """Put the text between <!-- mark --> and <!-- /mark --> of a file; raises ``ValueError`` if
    there is not one such place.
    """
    pattern = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    new, count = pattern.subn(lambda place: f"{place[1]}{text}{place[2]}", file.read_text())
    if count != 1:
        raise ValueError(f"{file} has {count} places for {mark}")
    file.write_text(new)
