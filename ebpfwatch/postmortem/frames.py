"""A crashed stack out of a dump: an unwinder that runs in circles is cut. Pure.

drgn unwinds by DWARF.  Where that leads back to the same place again and again, what follows is no
stack; on arm64, whose kernels are built with frame pointers, the chain of frame records leads on.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

__all__ = ["MOST_ALIKE", "frame_records", "until_circle"]

MOST_ALIKE = 3  # times that one place may be on a stack: a function may call itself
_MOST = 64  # frames of one stack that are told
_KERNEL = 0xFFFF << 48  # a return address is signed in these bits (pointer authentication)


def until_circle(places: Iterable[tuple[int, str]]) -> tuple[int, bool]:
    """How many frames are worth telling, and whether the rest goes in a circle.

    A place is an address and its function: inlined functions share an address.
    """
    where: dict[tuple[int, str], list[int]] = {}
    count = 0
    for place in places:
        seen = where.setdefault(place, [])
        seen.append(count)
        if len(seen) > MOST_ALIKE:
            return seen[1], True  # from the second one on it was the circle already
        count += 1
    return count, False


def frame_records(
    read: Callable[[int, int], bytes], frame_pointer: int, last_address: int
) -> list[int]:
    """The return addresses along arm64's frame records: each is the next record's address, then
    the return address (AAPCS64).

    Ends where a record cannot be read, lies no higher than the one before it on the same stack, or
    leads to ``last_address`` again.  Records of another stack (the one of interrupts) may lie
    lower: that happens at most twice.
    """
    found: list[int] = []
    seen: set[int] = set()
    lower = 0
    while frame_pointer and len(found) < _MOST and frame_pointer not in seen and lower <= 2:
        seen.add(frame_pointer)
        try:
            following, address = struct.unpack("<QQ", read(frame_pointer, 16))
        except (ValueError, struct.error):
            break
        if not address:
            break
        address |= _KERNEL
        if address != last_address or found:
            found.append(address)
        lower += following <= frame_pointer
        frame_pointer = following
    return found
