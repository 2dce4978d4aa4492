"""What the registers of a crash in ``kmem_cache_free`` say, in sentences, each with its proof.

Only what follows from the log itself: the faulting instruction is disassembled from the ``Code:``
line (``instructions``), addresses are told by the layout of the kernel's address space.
"""

from __future__ import annotations

import re

from ebpfwatch.kernellog.report import Report
from ebpfwatch.triage import registers

__all__ = ["explain", "object_register"]

#: Fields of struct kmem_cache that a wrong cache pointer makes fault: (release's start, arch).
#: No field before that one is of another size on the other architecture.
_FIELDS = {
    ("4.19.", "arm64", 0xD0): "memcg_params.root_cache",
    ("4.19.", "x86-64", 0xD0): "memcg_params.root_cache",
}


def explain(report: Report) -> list[str]:
    """The reasoning about one crash; empty where there is nothing to read."""
    address = report.fault_address
    if not report.at or report.at.symbol != "kmem_cache_free":
        return []
    if address is None:
        told = registers.describe(report)
        return [*told, *_addresses(report)] if told else []
    if address >= 4096:
        said = f"kmem_cache_free read {address:#x}: the pointer to the cache was not one"
        return [said, *registers.describe(report), *_addresses(report)]
    sentences = [_offset(report, address), *registers.describe(report), *_no_compound(report)]
    sentences.append(
        "so the page of the object was no longer a slab page when the second free came: between"
        " the first free and this one all other objects of that slab had been freed, too, and the"
        " page had gone back to the page allocator. The first free may be long before this one"
    )
    return sentences + _addresses(report)


def _offset(report: Report, address: int) -> str:
    field = next(
        (
            name
            for (release, arch, offset), name in _FIELDS.items()
            if report.release.startswith(release) and report.arch == arch and offset == address
        ),
        "",
    )
    named = f" ({field} in this kernel's layout)" if field else ""
    return (
        f"the fault address {address:#x} is no address but an offset into struct kmem_cache{named}:"
        " the pointer to the object's cache was NULL. It is not an argument: kmem_cache_free reads"
        " it from the object's page (page->slab_cache)"
    )


def _no_compound(report: Report) -> list[str]:
    """compound_head() of Linux 4.19 on arm64: csel page, page, head - 1, eq (no bit 0 in head)."""
    for one in registers.before_fault(report):
        found = re.fullmatch(r"csel x\d+, x\d+, (x\d+), eq", one.text)
        if found and report.registers.get(found[1]) == 2**64 - 1:
            return [
                f"{found[1]} = -1 is page->compound_head - 1 with compound_head 0: the page is not"
                " part of any compound page; a slab of ext4 inodes usually is one"
            ]
    return []


def object_register(report: Report) -> tuple[str, int] | None:
    """The register that holds the object in ``kmem_cache_free``, and its value.

    On x86-64 it is the one whose struct page is in another register.  On arm64 the function keeps
    its arguments and its return address in callee-saved registers from x19 on: of those in the
    linear map, the one that is not the cache is the object.
    """
    if report.arch == "x86-64":
        found = registers.object_and_page(report)
        return found and (found[0], found[1])
    compares = [one for one in registers.before_fault(report) if one.compares]
    if not compares:
        return None  # not decoded: the object and its cache cannot be told apart
    caches = re.findall(r"x\d+", " ".join(one.text for one in compares))
    for name in ("x19", "x20", "x21", "x22"):
        value = report.registers.get(name, 0)
        if name not in caches and linear_page(value):
            return name, value
    return None


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


def _old_layout(report: Report) -> bool:
    """arm64 turned its address space over in Linux 5.4 (commit 14c127c957c1)."""
    version = re.match(r"(\d+)\.(\d+)", report.release)
    if report.arch != "arm64" or version is None:
        return False
    return (int(version[1]), int(version[2])) < (5, 4)


def _addresses(report: Report) -> list[str]:
    if report.arch == "x86-64":
        both = registers.object_and_page(report)
        if both is None:
            return []
        holder, address, other = both
        return [
            f"the object is {address:#x} ({holder}): of all registers it is the only one whose"
            f" struct page is in another, {other}, by the arithmetic that KASLR does not change"
        ]
    found = object_register(report)
    if not _old_layout(report) or found is None:
        return []
    register, value = found
    page = linear_page(value)
    said = [
        f"the object is {value:#x} ({register}, where this function keeps its argument); its"
        f" struct page is {page:#x} by the address layout of arm64 before Linux 5.4"
    ]
    for name, content in report.registers.items():
        if content == page:
            said.append(f"{name} holds that struct page")
        elif name.startswith("x") and page_address(content):
            address, pages = page_address(content), (content - page) // _STRUCT_PAGE
            said.append(
                f"{name} = {content:#x} is a struct page, too, but that of {address:#x}, {pages:+d}"
                f" page{'s' * (abs(pages) != 1)} from the object's: look at both in the vmcore"
            )
    return said
