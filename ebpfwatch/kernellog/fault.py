"""What the registers of a crash in ``kmem_cache_free`` say, in sentences, each with its proof.

Only what follows from the log itself: the faulting instruction is decoded from the ``Code:`` line,
addresses are told by the layout of the kernel's address space.
"""

from __future__ import annotations

import re

from ebpfwatch.kernellog import arm64, x86fault
from ebpfwatch.kernellog.report import Report

__all__ = ["explain", "object_register"]

#: Offset in struct page of slab_cache (Linux 4.4 to 5.16, 64-bit: after flags and two words of
#: slab lists; the same word is page->mapping for a page that is no slab's).
_SLAB_CACHE = 0x18
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
        told = x86fault.describe(report)
        return [*told, *_addresses(report)] if told else []
    if address >= 4096:
        said = f"kmem_cache_free read {address:#x}: the pointer to the cache was not one"
        return [said, *x86fault.describe(report), *_addresses(report)]
    sentences = [_offset(report, address)]
    if report.arch == "arm64" and report.code:
        sentences += _instruction(report)
    sentences += x86fault.describe(report)
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


def _instruction(report: Report) -> list[str]:
    before, load = arm64.faulting(report.code)
    if load is None or report.registers.get(f"x{load.base}") != 0:
        return []
    said = [
        f"the Code line agrees: the faulting instruction is ldr x{load.target},"
        f" [x{load.base}, #{load.offset:#x}] with x{load.base} = 0"
    ]
    loads = [i for i in before if isinstance(i, arm64.Load) and i.target == load.base]
    if loads and loads[-1].offset == _SLAB_CACHE:
        said[0] += f"; x{load.base} was loaded from page->slab_cache ({_SLAB_CACHE:#x} in the page)"
    for compare in before:
        if isinstance(compare, arm64.Compare) and load.base in (compare.left, compare.right):
            other = compare.left if compare.right == load.base else compare.right
            value = report.registers.get(f"x{other}")
            if value is not None:
                said.append(
                    f"it was compared with x{other} = {value:#x}: the cache that the caller asked"
                    " for, ext4_inode_cache"
                )
    for select in before:
        if isinstance(select, arm64.Select):
            if report.registers.get(f"x{select.otherwise}") == 2**64 - 1:
                said.append(
                    f"x{select.otherwise} = -1 is page->compound_head - 1 with compound_head 0: the"
                    " page is not part of any compound page; a slab of ext4 inodes usually is one"
                )
    return said


def object_register(report: Report) -> tuple[str, int] | None:
    """The register that holds the object in ``kmem_cache_free``, and its value.

    On x86-64 it is the one whose struct page is in another register.  On arm64 the function keeps
    its arguments and its return address in callee-saved registers from x19 on: of those in the
    linear map, the one that is not the cache is the object.
    """
    if report.arch == "x86-64":
        found = x86fault.object_and_page(report)
        return found and (found[0], found[1])
    before, load = arm64.faulting(report.code)
    caches = {
        register
        for compare in before
        if isinstance(compare, arm64.Compare) and load is not None
        for register in (compare.left, compare.right)
    }
    for number in (19, 20, 21, 22):
        value = report.registers.get(f"x{number}", 0)
        if number not in caches and arm64.linear_page(value):
            return f"x{number}", value
    return None


def _old_layout(report: Report) -> bool:
    """arm64 turned its address space over in Linux 5.4 (commit 14c127c957c1)."""
    version = re.match(r"(\d+)\.(\d+)", report.release)
    if report.arch != "arm64" or version is None:
        return False
    return (int(version[1]), int(version[2])) < (5, 4)


def _addresses(report: Report) -> list[str]:
    if report.arch == "x86-64":
        if (both := x86fault.object_and_page(report)) is None:
            return []
        holder, address, other = both
        return [
            f"the object is {address:#x} ({holder}): of all registers it is the only one whose"
            f" struct page is in another, {other}, by the arithmetic that KASLR does not change"
        ]
    if not _old_layout(report) or not (found := object_register(report)):
        return []
    register, value = found
    page = arm64.linear_page(value)
    said = [
        f"the object is {value:#x} ({register}, where this function keeps its argument); its"
        f" struct page is {page:#x} by the address layout of arm64 before Linux 5.4"
    ]
    for name, content in report.registers.items():
        if content == page:
            said.append(f"{name} holds that struct page")
        elif name.startswith("x") and (address := arm64.page_address(content)):
            pages = (content - page) // 64
            said.append(
                f"{name} = {content:#x} is a struct page, too, but that of {address:#x}, {pages:+d}"
                f" page{'s' * (abs(pages) != 1)} from the object's: look at both in the vmcore"
            )
    return said
