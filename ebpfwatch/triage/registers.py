"""What an oops did when it faulted, in sentences that follow from the log alone: the instruction of
the ``Code:`` line, the registers it used, and whether they give the fault address.
"""

from __future__ import annotations

import re

from ebpfwatch.kernellog.report import Report
from ebpfwatch.triage import instructions

__all__ = [
    "before_fault",
    "describe",
    "object_and_page",
    "one_bit_off",
    "poison",
    "slab_cache_offset",
]

#: include/linux/poison.h; LIST_POISON2 was 0x200 in older kernels.
_POISONS = {
    0xDEAD000000000100: "LIST_POISON1, what list_del() leaves in `next`",
    0xDEAD000000000122: "LIST_POISON2, what list_del() leaves in `prev`",
    0xDEAD000000000200: "LIST_POISON2, what list_del() leaves in `prev`",
    0xDEAD000000000400: "TAIL_MAPPING, what `mapping` is in the later pages of a compound one",
    0x6B6B6B6B6B6B6B6B: "the slab's poison of what is free (POISON_FREE)",
    0x5A5A5A5A5A5A5A5A: "the slab's poison of what was never written (POISON_INUSE)",
}
_PRESENT, _WRITE, _USER, _FETCH = 1, 2, 4, 16  # arch/x86/include/asm/trap_pf.h
_NEAR = 16  # bytes: an access may begin before the page that is not there


def poison(address: int | None) -> str:
    """What an address is made of that the kernel writes into freed memory; "" for another.

    A field behind the pointer may have been meant: up to a page behind it, or a little before it.
    """
    if address is None:
        return ""
    behind = [value for value in _POISONS if value <= address < value + 4096]
    before = [value for value in _POISONS if value - 256 <= address < value]
    return _POISONS[max(behind)] if behind else _POISONS[min(before)] if before else ""


def one_bit_off(report: Report) -> str:
    """Whether the fault address is that of a pointer in a register with one high bit turned over;
    a sentence, or "".

    Only bits from 36 on: objects that lie 64 GiB apart and agree in all bits between are none.
    """
    address = report.fault_address or 0
    for name, content in report.registers.items():
        difference = address ^ content
        if content >> 47 in (0, (1 << 17) - 1) and content >> 36 and difference >> 36:
            if bin(difference >> 36).count("1") == 1 and not difference >> 12 & 0xFFFFFF:
                bit = (difference >> 36).bit_length() + 35
                return (
                    f"the fault address {address:#x} is {name} = {content:#x} but for bit {bit}"
                    " (and the place in the page): memory that flips bits does that"
                )
    return ""


def describe(report: Report) -> list[str]:
    """Sentences; none where there is no code, or nothing that faulted."""
    faulted = report.kind == "oops" or report.error_code is not None
    if report.arch not in ("x86-64", "arm64") or not faulted:
        return []  # a BUG(), a warning or a lockup has code, too, but no address
    data, marked = instructions.code(report.code, report.arch)
    if marked < 0:
        return []
    at = instructions.decode(data[marked:], report.arch)
    if at is None or at.memory is None:
        return [_unread(data[marked : marked + 8], at)]
    said = [_instruction(report, at, at.memory), *_loaded(report, at.memory)]
    said += _access(report, at)
    said += _compared(report, at)
    return said


def before_fault(report: Report) -> list[instructions.Instruction]:
    """The instructions before the one that faulted and that one, as far as they can be told."""
    data, marked = instructions.code(report.code, report.arch)
    if marked < 0:
        return []
    at = instructions.decode(data[marked:], report.arch)
    before = instructions.leading(data, marked, report.arch)
    return before if at is None else [*before, at]


def _unread(data: bytes, at: instructions.Instruction | None) -> str:
    shown = data.hex()
    shown = " ".join(shown[place : place + 2] for place in range(0, len(shown), 2))
    if at is not None:
        return f"the faulting instruction is {at.text}: it has no single memory operand"
    if instructions.available():
        return f"the bytes of the faulting instruction, {shown}, are unknown to Capstone"
    return (
        f"the bytes of the faulting instruction, {shown}, were not read: the disassembler Capstone"
        f" is not installed here ({instructions.INSTALL})"
    )


def _compared(report: Report, at: instructions.Instruction) -> list[str]:
    """The cache that the caller of kmem_cache_free asked for is compared with the page's."""
    if not _in_slab_free(report) or at.memory is None:
        return []
    pointer = at.memory.base
    for one in reversed(before_fault(report)):
        if not one.compares:
            continue
        names = _operands(one)
        if one.memory is not None and one.register:  # the faulting instruction itself
            other = one.register
        elif pointer in names and len(names) == 2:
            other = names[0] if names[1] == pointer else names[1]
        else:
            continue
        content = instructions.value(other, report.registers)
        if content is not None:
            return [
                f"it was compared with {other} = {content:#x}: the cache that the caller asked for,"
                " ext4_inode_cache if the caller is ext4's"
            ]
    return []


def _operands(one: instructions.Instruction) -> list[str]:
    """The registers of a comparison of two, by the names that the text has."""
    return re.findall(r"\b(?:x\d{1,2}|r\d{1,2}|r[a-ds][xip])\b", one.text)


def _in_slab_free(report: Report) -> bool:
    return report.at is not None and report.at.symbol.split(".")[0] == "kmem_cache_free"


def _instruction(report: Report, at: instructions.Instruction, memory: instructions.Memory) -> str:
    """What it did, with what, and whether that is where the kernel says it fell."""
    text = f"the faulting instruction is {at.text}"
    used = [register for register in (memory.base, memory.index) if register]
    values = {name: instructions.value(name, report.registers) for name in used}
    shown = ", ".join(
        f"{name} = {content:#x}" for name, content in values.items() if content is not None
    )
    place = instructions.address(memory, report.registers)
    if place is None:
        why = f"%{memory.segment} has a base of its own" if memory.segment else "not all are here"
        why = "it is relative to the instruction" if memory.base == "rip" else why
        return f"{text}; where that points to the registers do not tell: {why}"
    with_them = f"{text} with {shown}" if shown else text
    meaning = _meaning(memory.base, values.get(memory.base), place)
    return f"{with_them}: {_agreement(report, place)}{meaning}"


def _agreement(report: Report, place: int) -> str:
    fault = report.fault_address
    if fault is not None and 0 <= fault - place < _NEAR:
        kind = "" if instructions.canonical(place) else ", which is no address (not canonical)"
        return f"the Code line agrees, that is the fault address {fault:#x}{kind}"
    if fault is not None:
        return f"that is {place:#x}, and NOT the fault address {fault:#x}: do not trust either"
    if instructions.canonical(place):
        return f"that is {place:#x}"
    return (
        f"that is {place:#x}, which is no address (not canonical): therefore a general protection"
        " fault, and CR2 says nothing of it"
    )


def _meaning(register: str, content: int | None, place: int) -> str:
    """What the register was that should have pointed to something."""
    if content is None:
        return ""
    distance = (place - content + (1 << 63)) % (1 << 64) - (1 << 63)
    if abs(distance) >= 1 << 20:
        return ""  # a table by an index, not a structure by its field
    offset = f"offset {distance:#x}"
    if content == 0:
        return f"; the pointer in {register} was NULL, and {offset} is that of a field behind it"
    if content in _POISONS:
        return f"; {register} holds {_POISONS[content]}, and {offset} is that of a field behind it"
    if content >= 2**64 - 4095:
        return f"; {register} holds the error {content - 2**64}, used as a pointer"
    if not instructions.canonical(content):
        return (
            f"; {register} holds no pointer: it was overwritten, or is one of a hardened free list"
            " (CONFIG_SLAB_FREELIST_HARDENED) that somebody wrote over"
        )
    if not instructions.canonical(place) or content < 4096:
        return f"; {register} holds no pointer"
    return f"; the object was in {register}, and {offset} is that of the field"


def _loaded(report: Report, memory: instructions.Memory) -> list[str]:
    if not memory.base:
        return []
    loader = instructions.loader_of(memory.base, before_fault(report)[:-1])
    if loader is None or loader.memory is None:
        return []
    said = f"{memory.base} had been loaded by {loader.text}"
    source = loader.memory
    if _in_slab_free(report) and not source.index and source.offset == slab_cache_offset(report):
        said += (
            f": {source.offset:#x} is where the page of a slab object has its cache"
            " (slab_cache) in this kernel"
        )
        content = instructions.value(memory.base, report.registers)
        # Where the cache is at 0x8, a page that is no slab's has lru.next; at 0x18 it has mapping.
        if source.offset == 0x8 and _POISONS.get(content or 0, "").startswith("LIST_POISON1"):
            said += (
                "; it is a link of page->lru now, so the page was no longer a slab's when the"
                " second free came: all other objects of that slab had been freed, too"
            )
    return [said]


def slab_cache_offset(report: Report) -> int:
    """Of slab_cache in struct page (struct slab from Linux 5.17 on); it moved up in Linux 6.2.

    -1 for a kernel without a number.
    """
    version = re.match(r"(\d{1,4})\.(\d{1,4})", report.release)
    if version is None:
        return -1
    return 0x8 if (int(version[1]), int(version[2])) >= (6, 2) else 0x18


def _access(report: Report, at: instructions.Instruction) -> list[str]:
    """What the error code of the page fault says, and whether the instruction does that."""
    code = report.error_code
    if code is None:
        return []
    did = (
        "fetched an instruction from" if code & _FETCH else "wrote to" if code & _WRITE else "read"
    )
    who = "user space" if code & _USER else "the kernel"
    page = "a page that it may not" if code & _PRESENT else "a page that is not there"
    said = f"error code {code:#06x}: {who} {did} {page}"
    if code & _FETCH:
        return [said]
    fits = at.writes if code & _WRITE else at.reads
    return [said if fits else f"{said}; the instruction does not do that: the log may be mixed"]


def object_and_page(report: Report) -> tuple[str, int, str] | None:
    """The register that holds an object, the object, and the register that holds its struct page.

    KASLR moves the direct map and the map of struct pages by whole GiB, so of both addresses the
    low bits still belong together: 64 bytes a page, 16 MiB a GiB.  A slab of ext4 inodes has up to
    8 pages, and what counts is the first of them.  None unless exactly one value fits.
    """
    found: dict[int, tuple[str, int, str]] = {}
    pointers = {
        name.lower().replace("r0", "r"): content
        for name, content in report.registers.items()
        if name not in ("RSP", "CR2") and 0xFFFF880000000000 <= content < 0xFFFFFE0000000000
    }
    for name, content in pointers.items():
        for other, page in pointers.items():
            if content % 8 or page % 64 or page == content:
                continue
            behind = ((content >> 12) - page % (16 << 20) // 64) % (1 << 18)
            if behind < 8:
                found.setdefault(content, (name, content, other))
    return next(iter(found.values())) if len(found) == 1 else None
