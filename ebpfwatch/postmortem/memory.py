"""Kernel memory in pieces that are read once, and members of its structures taken out of bytes.

drgn reads one member at a time, in some microseconds; an audit wants ten members of a hundred
thousand objects.  So offsets are asked of drgn once, and memory is read by the page.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["Fault", "Memory", "Shape", "offset"]

_PIECE = 4096
_MOST = 1 << 15  # pieces that are kept: 128 MiB
_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}


class Fault(Exception):
    """Memory that is not in the dump, or that has no page."""


class Memory:
    """``read`` gives bytes or raises ``Fault``; what was read is kept until ``forget``."""

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        self._read = read
        self._pieces: dict[int, bytes | None] = {}

    def read(self, address: int, size: int) -> bytes:
        """These bytes; raises ``Fault``."""
        begin = address % _PIECE
        if begin + size <= _PIECE:
            return self._piece(address - begin)[begin : begin + size]
        parts = []
        while size > 0:
            begin = address % _PIECE
            part = self._piece(address - begin)[begin : begin + size]
            parts.append(part)
            address += len(part)
            size -= len(part)
        return b"".join(parts)

    def word(self, address: int) -> int:
        """A pointer; raises ``Fault``."""
        return int.from_bytes(self.read(address, 8), "little")

    def forget(self) -> None:
        """A living kernel goes on: the next look reads anew."""
        self._pieces.clear()

    def _piece(self, address: int) -> bytes:
        try:
            piece = self._pieces[address]
        except KeyError:
            if len(self._pieces) >= _MOST:
                self._pieces.clear()
            try:
                piece = self._read(address, _PIECE)
            except Fault:
                piece = None
            self._pieces[address] = piece
        if piece is None:
            raise Fault(hex(address))
        return piece


class Shape:
    """Some members of a structure: ``take`` returns them as integers, in the order asked for.

    A member that this kernel does not have is 0.
    """

    def __init__(self, places: Sequence[tuple[int, int] | None]) -> None:
        """Offset and size of each, None for an absent one."""
        known = sorted({place for place in places if place is not None})
        code, at = "<", 0
        for where, size in known:
            if where < at:
                raise ValueError("members that overlap")
            code += f"{where - at}x{_CODES[size]}"
            at = where + size
        self._struct = struct.Struct(code + "Q")  # the last one is for absent members
        self.size = self._struct.size - 8
        order = [len(known) if place is None else known.index(place) for place in places]
        self._order = operator.itemgetter(*order, len(known))

    def take(self, raw: bytes) -> Sequence[int]:
        """The members out of (at least) ``size`` bytes, and a 0 behind them."""
        return self._order(self._struct.unpack(raw[: self.size] + bytes(8)))  # type: ignore[no-any-return]


def offset(drgn: Any, type_: Any, *names: str) -> int | None:
    """Where the first of these members is that the structure has; None if it has none of them."""
    for name in names:
        try:
            return int(drgn.offsetof(type_, name))
        except (LookupError, TypeError):  # no such member, or no structure any more
            continue
    return None


def places(
    drgn: Any, type_: Any, wanted: Mapping[str, tuple[Sequence[str], int]]
) -> list[tuple[int, int] | None]:
    """For ``Shape``: name to the member's possible names and its size."""
    found: list[tuple[int, int] | None] = []
    for names, size in wanted.values():
        where = offset(drgn, type_, *names)
        found.append(None if where is None else (where, size))
    return found
