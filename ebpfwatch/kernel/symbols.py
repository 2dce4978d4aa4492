"""Names for kernel addresses, at once and for little memory.

A verdict must reach its sinks before the machine dies, and a pass over /proc/kallsyms takes
tens of milliseconds, so the functions are read once into three flat arrays (about 40 bytes a
function).  An address outside them (a module loaded later) makes them be read again.
"""

from __future__ import annotations

import bisect
from array import array
from pathlib import Path

__all__ = ["Symbols"]

_LARGEST_FUNCTION = 1 << 20  # bytes: what lies further behind a symbol is not of it


class Symbols:
    """Resolves addresses to "name+0x10" or "name+0x10 [module]".

    Where the kernel hides addresses (kptr_restrict, lockdown) every answer is "" and ``hidden`` is true.
    """

    def __init__(self, kallsyms: Path = Path("/proc/kallsyms")) -> None:
        self._kallsyms = kallsyms
        self._starts = array("Q")
        self._names = array("I")  # where in _text the name of each start begins
        self._text = b""
        self.hidden = True

    def load(self) -> None:
        """Read all functions; some 0.1 s. Never raises: an unreadable file hides every name."""
        starts, names, text = array("Q"), array("I"), bytearray()
        try:
            with open(self._kallsyms, "rb") as lines:
                for line in lines:
                    if line[17:18] in b"tTwW":
                        starts.append(int(line[:16], 16))
                        names.append(len(text))
                        text += line[19:]
        except (OSError, ValueError):
            starts = array("Q")
        self.hidden = not starts or not starts[-1]
        if not self.hidden and any(a > b for a, b in zip(starts, starts[1:])):
            order = sorted(range(len(starts)), key=starts.__getitem__)
            starts = array("Q", (starts[i] for i in order))
            names = array("L", (names[i] for i in order))
        self._starts, self._names, self._text = starts, names, bytes(text)

    def name(self, address: int) -> str:
        """The name of an address; "" if it is not known. ``load`` must have run."""
        index = bisect.bisect_right(self._starts, address) - 1
        if self.hidden or index < 0 or address - self._starts[index] > _LARGEST_FUNCTION:
            return ""
        begin = self._names[index]
        line = self._text[begin : self._text.index(b"\n", begin)].decode("ascii", "replace")
        symbol, _, module = line.partition("\t")
        return f"{symbol}+{address - self._starts[index]:#x}{' ' + module if module else ''}"

    def function(self, address: int) -> str:
        """Only the function's name."""
        return self.name(address).partition("+")[0]
