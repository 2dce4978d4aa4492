"""Just enough of arm64 to read the ``Code:`` line of an oops: loads, selects and compares.

Encodings: Arm Architecture Reference Manual, C6.2 (LDR immediate, CSEL, CMP shifted register).
"""

from __future__ import annotations

import dataclasses
import re

__all__ = ["Compare", "Load", "Select", "code", "faulting", "linear_page"]


@dataclasses.dataclass(frozen=True)
class Load:
    """``ldr xT, [xN, #offset]``."""

    target: int
    base: int
    offset: int


@dataclasses.dataclass(frozen=True)
class Select:
    """``csel xD, xN, xM, condition``."""

    target: int
    then: int
    otherwise: int


@dataclasses.dataclass(frozen=True)
class Compare:
    """``cmp xN, xM``."""

    left: int
    right: int


_WORD = re.compile(r"(\()?([0-9a-f]{8})\b(\))?")


def code(line: str) -> tuple[list[int], int]:
    """The words of a ``Code:`` line and the index of the one in parentheses, -1 without one."""
    words: list[int] = []
    marked = -1
    for found in _WORD.finditer(line):
        if found[1]:
            marked = len(words)
        words.append(int(found[2], 16))
    return words, marked


def decode(word: int) -> Load | Select | Compare | None:
    """One instruction; None for all that is of no interest here."""
    if word & 0xFFC00000 == 0xF9400000:
        return Load(word & 31, word >> 5 & 31, (word >> 10 & 0xFFF) * 8)
    if word & 0xFFE00C00 == 0x9A800000:
        return Select(word & 31, word >> 5 & 31, word >> 16 & 31)
    if word & 0xFFE0FC1F == 0xEB00001F:
        return Compare(word >> 5 & 31, word >> 16 & 31)
    return None


def faulting(line: str) -> tuple[list[Load | Select | Compare | None], Load | None]:
    """What leads to the faulting instruction, oldest first, and that one if it is a load."""
    words, marked = code(line)
    if marked < 0:
        return [], None
    before = [decode(word) for word in words[:marked]]
    at = decode(words[marked])
    return before, at if isinstance(at, Load) else None


# Before Linux 5.4 with 48-bit addresses: linear map from PAGE_OFFSET, struct pages below it, kernel
# text in the vmalloc area (arch/arm64/include/asm/memory.h, VMEMMAP_START and __virt_to_pgoff()).
_PAGE_OFFSET = 0xFFFF800000000000
_VMEMMAP = 0xFFFF7E0000000000
_STRUCT_PAGE = 64


def linear_page(address: int) -> int:
    """The struct page of an address of the linear map in that layout, 0 for another address."""
    if not _PAGE_OFFSET <= address < _PAGE_OFFSET + (1 << 47):
        return 0
    return _VMEMMAP + ((address - _PAGE_OFFSET) >> 12) * _STRUCT_PAGE


def page_address(page: int) -> int:
    """The other way: the address that a struct page of that layout stands for, 0 for none."""
    offset = page - _VMEMMAP
    if not 0 <= offset < _PAGE_OFFSET - _VMEMMAP or offset % _STRUCT_PAGE:
        return 0
    return _PAGE_OFFSET + (offset // _STRUCT_PAGE << 12)
