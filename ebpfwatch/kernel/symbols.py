"""Names for kernel addresses, at once and for almost no memory.

A verdict must reach its sinks before the machine dies, and a pass over /proc/kallsyms takes
tens of milliseconds or more; as Python objects the symbols would take 20 MB.  So one pass at start
packs the functions into a memfd, about 40 bytes each; a look-up is two reads: of the block of
entries that a sparse index names, and of the symbol's text.

The nearest symbol below an address is only right while every module is known: a module loaded since
would be given its neighbour's name, and the wrong module be named.  So /proc/modules decides: what
lies in no module's memory has no module's name, and the memory of a module that is gone keeps its.
"""

from __future__ import annotations

import array
import bisect
import collections
import os
import struct
from pathlib import Path

from ebpfwatch.host.modules import Module, read_modules

__all__ = ["Symbols"]

_ENTRY = struct.Struct("=QQ")  # address; where its line begins in the text
_BLOCK = 256  # entries, of which the first is in the index
_LARGEST_FUNCTION = 1 << 20  # bytes: what lies further behind a symbol is not of it
_LONGEST_LINE = 640
_GONE_KEPT = 64
_NAMED_KEPT = 256


class _Table:
    """Symbols sorted by address, in two memfds: entries of fixed size, and their text."""

    def __init__(self, name: str) -> None:
        self._entries = open(os.memfd_create(f"{name}-entries"), "w+b", buffering=1 << 16)
        self._text = open(os.memfd_create(f"{name}-text"), "w+b", buffering=1 << 16)
        self._index = array.array("Q")
        self._written = 0
        self.size = 0
        self.first = 0
        self.last = 0

    def append(self, address: int, line: bytes) -> None:
        if not self.size % _BLOCK:
            self._index.append(address)
        self._entries.write(_ENTRY.pack(address, self._written))
        self._text.write(line)
        self._written += len(line)
        self.size += 1
        self.first = self.first or address
        self.last = address

    def finish(self) -> None:
        self._entries.flush()
        self._text.flush()

    def find(self, address: int) -> tuple[int, bytes]:
        """The last symbol at or below the address, and its line; (0, b"") if there is none."""
        block = bisect.bisect_right(self._index, address) - 1
        if block < 0:
            return 0, b""
        size = _BLOCK * _ENTRY.size
        entries = array.array("Q", os.pread(self._entries.fileno(), size, block * size))
        last = bisect.bisect_right(entries[::2], address) - 1
        line = os.pread(self._text.fileno(), _LONGEST_LINE, entries[2 * last + 1])
        return entries[2 * last], line.partition(b"\n")[0]

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
        self._gone: collections.deque[Module] = collections.deque(maxlen=_GONE_KEPT)
        self.modules: tuple[Module, ...] = ()
        self.hidden = True
        self._named: dict[int, str] = {}  # a verdict's frames are asked for more than once

    def refresh(self) -> bool:
        """Load again if the modules have changed since; whether they have."""
        modules = read_modules(self._kallsyms.parent / "modules")
        if modules == self.modules:
            return False
        self.load()
        return True

    def load(self) -> None:
        """Read all functions; some 0.1 s. Never raises: an unreadable file hides every name."""
        self.close()
        # Before kallsyms: a module loaded in between is then seen as a change by `refresh`.
        loaded = read_modules(self._kallsyms.parent / "modules")
        self._gone.extend(module for module in self.modules if module not in loaded)
        self.modules = loaded
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

    @property
    def kernel_text(self) -> tuple[int, int]:
        """The kernel's own code, from its first function to its last; (0, 0) where it is hidden."""
        if self.hidden or not self._tables:
            return 0, 0
        return self._tables[0].first, self._tables[0].last

    @property
    def start(self) -> int:
        """The kernel's first function: tells one boot's addresses from another's; 0 if hidden."""
        tables = self._tables  # once: the disk's thread asks, too
        return tables[0].first if tables else 0

    def name(self, address: int) -> str:
        """The name of an address; "" if it is not known."""
        if self.hidden:
            return ""
        named = self._named.get(address)
        if named is None:
            if len(self._named) >= _NAMED_KEPT:
                self._named.clear()
            named = self._named[address] = self._name(address)
        return named

    def _name(self, address: int) -> str:
        start, line = max(table.find(address) for table in self._tables)
        if not line or address - start > _LARGEST_FUNCTION:
            return self._of_gone(address)
        symbol, _, module = line.decode("ascii", "replace").partition("\t")
        if module not in ("", "[bpf]", "[__builtin__ftrace]"):
            home = self.module(address)
            if home is None or f"[{home.name}]" != module:
                return self._of_gone(address)
        return f"{symbol}+{address - start:#x}{' ' + module if module else ''}"

    def module(self, address: int) -> Module | None:
        """The module whose memory this address is in; hidden addresses are in none."""
        return next((m for m in self.modules if m.start <= address < m.end), None)

    def taints(self, module: str) -> str:
        """The taints of a module by its name, also of one that is gone; "" for none."""
        known = (*self.modules, *self._gone)
        name = module.partition(",")[0]
        return next((m.taints for m in known if m.name == name), "")

    @property
    def out_of_tree(self) -> tuple[str, ...]:
        """The loaded modules that are not the kernel's own."""
        return tuple(m.name for m in self.modules if "O" in m.taints)

    def _of_gone(self, address: int) -> str:
        for module in reversed(self._gone):
            if module.start <= address < module.end:
                return f"{module.name}+{address - module.start:#x} [{module.name}, unloaded]"
        return ""

    def close(self) -> None:
        """Give the memory back."""
        for table in self._tables:
            table.close()
        self._tables = ()
        self._named = {}
        self.hidden = True
