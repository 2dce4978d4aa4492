"""What an x86-64 oops did when it faulted, in sentences that follow from the log alone: the
instruction of the ``Code:`` line, the registers it used, and whether they give the fault address.
"""

from __future__ import annotations

import re

from ebpfwatch.kernellog import x86
from ebpfwatch.kernellog.report import Report

__all__ = ["describe", "object_and_page", "slab_cache_offset"]

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


def describe(report: Report) -> list[str]:
    """Sentences; none where there is no code of x86-64 in it."""
    data, marked = x86.code(report.code)
    faulted = report.kind == "oops" or report.error_code is not None
    if report.arch != "x86-64" or marked < 0 or not faulted:
        return []  # a BUG(), a warning or a lockup has code, too, but no address
    at = x86.decode(data[marked:])
    if at is None or at.memory is None:
        raw = data[marked : marked + 8].hex(" ")
        return [f"the faulting instruction ({raw} ...) is not decoded here: decodecode would do it"]
    said = [_instruction(report, at, at.memory), *_loaded(report, data, marked, at.memory)]
    said += _access(report, at)
    if at.compares:
        content = x86.value(at.register, report.registers)
        if content is not None and _in_slab_free(report):
            said.append(
                f"it was compared with {at.register} = {content:#x}: the cache that the caller"
                " asked for, ext4_inode_cache if the caller is ext4's"
            )
    return said


def _in_slab_free(report: Report) -> bool:
    return report.at is not None and report.at.symbol.split(".")[0] == "kmem_cache_free"


def _instruction(report: Report, at: x86.Instruction, memory: x86.Memory) -> str:
    """What it did, with what, and whether that is where the kernel says it fell."""
    text = f"the faulting instruction is {at.text}"
    used = [register for register in (memory.base, memory.index) if register]
    values = {name: x86.value(name, report.registers) for name in used}
    shown = ", ".join(
        f"{name} = {content:#x}" for name, content in values.items() if content is not None
    )
    place = x86.address(memory, report.registers)
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
        kind = "" if x86.canonical(place) else ", which is no address (not canonical)"
        return f"the Code line agrees, that is the fault address {fault:#x}{kind}"
    if fault is not None:
        return f"that is {place:#x}, and NOT the fault address {fault:#x}: do not trust either"
    if x86.canonical(place):
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
    if not x86.canonical(content):
        return (
            f"; {register} holds no pointer: it was overwritten, or is one of a hardened free list"
            " (CONFIG_SLAB_FREELIST_HARDENED) that somebody wrote over"
        )
    if not x86.canonical(place) or content < 4096:
        return f"; {register} holds no pointer"
    return f"; the object was in {register}, and {offset} is that of the field"


def _loaded(report: Report, data: bytes, marked: int, memory: x86.Memory) -> list[str]:
    if not memory.base:
        return []
    loader = x86.loader_of(memory.base, x86.leading(data, marked))
    if loader is None or loader.memory is None:
        return []
    said = f"{memory.base} had been loaded by {loader.text}"
    source = loader.memory
    if _in_slab_free(report) and not source.index and source.offset == slab_cache_offset(report):
        said += (
            f": {source.offset:#x} is where the page of a slab object has its cache"
            " (slab_cache) in this kernel"
        )
        content = x86.value(memory.base, report.registers)
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


def _access(report: Report, at: x86.Instruction) -> list[str]:
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
    fits = "writes" in at.access if code & _WRITE else "reads" in at.access
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
