"""Names for kernel addresses, at once and for almost no memory.

A verdict must reach its sinks before the machine dies, and a pass over /proc/kallsyms takes
tens of milliseconds or more; as Python objects the symbols would take 20 MB.  So one pass at start
packs the functions into a memfd, about 40 bytes each, and a look-up is a binary search by pread.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

__all__ = ["Symbols"]

_ENTRY = struct.Struct("<QQ")  # address; where its line begins in the text
_LARGEST_FUNCTION = 1 << 20  # bytes: what lies further behind a symbol is not of it
_LONGEST_LINE = 640


class _Table:
    """Symbols sorted by address, in two memfds: entries of fixed size, and their text."""

    def __init__(self, name: str) -> None:
        self._entries = open(os.memfd_create(f"{name}-entries"), "w+b", buffering=1 << 16)
        self._text = open(os.memfd_create(f"{name}-text"), "w+b", buffering=1 << 16)
        self._written = 0
        self.size = 0
        self.last = 0

    def append(self, address: int, line: bytes) -> None:
        self._entries.write(_ENTRY.pack(address, self._written))
        self._text.write(line)
        self._written += len(line)
        self.size += 1
        self.last = address

    def finish(self) -> None:
        self._entries.flush()
        self._text.flush()

    def _entry(self, index: int) -> tuple[int, int]:
        data = os.pread(self._entries.fileno(), _ENTRY.size, index * _ENTRY.size)
        address, begin = _ENTRY.unpack(data)
        return address, begin

    def find(self, address: int) -> tuple[int, bytes]:
        """The last symbol at or below the address, and its line; (0, b"") if there is none."""
        low, high = 0, self.size
        while low < high:
            middle = (low + high) // 2
            if self._entry(middle)[0] <= address:
                low = middle + 1
            else:
                high = middle
        if not low:
            return 0, b""
        start, begin = self._entry(low - 1)
        line = os.pread(self._text.fileno(), _LONGEST_LINE, begin)
        return start, line.partition(b"\n")[0]

    def close(self) -> None:
        self._entries.close()
        self._text.close()


class Symbols:
    """Resolves addresses to "name+0x10" or "name+0x10 [module]".

    Where the kernel hides addresses (kptr_restrict, lockdown) every answer is "" and ``hidden`` is
    true.
    """

    def __init__(self, kallsyms: Path = Path("/proc/kallsyms")) -> None:
        self._kallsyms = kallsyms
        self._tables: tuple[_Table, ...] = ()
        self.hidden = True

    def load(self) -> None:
        """Read all functions; some 0.1 s. Never raises: an unreadable file hides every name."""
        self.close()
        kernel, modules = _Table("kernel"), _Table("modules")
        late: list[tuple[int, bytes]] = []
        try:
            with open(self._kallsyms, "rb") as lines:
                for line in lines:
                    if line[17:18] not in b"tTwW":
                        continue
                    address = int(line[:16], 16)
                    # The kernel's own are sorted; what follows them (modules, BPF) is not.
                    if late or address < kernel.last or b"\t[" in line:
                        late.append((address, line[19:]))
                    else:
                        kernel.append(address, line[19:])
        except (OSError, ValueError):
            self.hidden = True
        for address, line in sorted(late):
            modules.append(address, line)
        for table in (kernel, modules):
            table.finish()
        self.hidden = not kernel.last
        self._tables = (kernel, modules)

    def name(self, address: int) -> str:
        """The name of an address; "" if it is not known."""
        if self.hidden:
            return ""
        start, line = max(table.find(address) for table in self._tables)
        if not line or address - start > _LARGEST_FUNCTION:
            return ""
        symbol, _, module = line.decode("ascii", "replace").partition("\t")
        return f"{symbol}+{address - start:#x}{' ' + module if module else ''}"

    def function(self, address: int) -> str:
        """Only the function's name."""
        return self.name(address).partition("+")[0]

    def close(self) -> None:
        """Give the memory back."""
        for table in self._tables:
            table.close()
        self._tables = ()
        self.hidden = True
