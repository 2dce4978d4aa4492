"""The slab allocator's own account: which objects of a cache are handed out, and which are free.

It finds objects to which nothing leads any more, and tells that an object to which something leads
is free.  SLUB only (mm/slub.c); with another allocator nothing is known, and said so.
"""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ebpfwatch.postmortem.memory import Fault, Memory, offset

__all__ = ["Cache", "FreeLists", "Slab", "Slabs"]

_CHUNK = 1 << 20  # bytes of struct pages that are read at once
_WRAP = 1 << 64  # the pointer of a section may lie before the memory: unsigned arithmetic


@dataclasses.dataclass(frozen=True)
class Cache:
    """A ``kmem_cache``; ``name`` is the root cache's: before Linux 5.9 each memory cgroup had a
    cache of its own (memcg_create_kmem_cache()).
    """

    address: int
    name: str
    size: int
    first: int  # bytes before the first object (red_left_pad)
    link: int  # where in a free object the next free one stands
    secret: int | None  # CONFIG_SLAB_FREELIST_HARDENED
    free: frozenset[int]  # in the CPUs' own lists and sheaves


@dataclasses.dataclass
class Slab:
    """One slab's objects; ``wrong`` says what of its list of free objects cannot be."""

    cache: Cache
    start: int
    count: int
    free: set[int]
    wrong: str = ""

    def objects(self) -> Iterable[int]:
        """The addresses of all of them."""
        return range(self.start, self.start + self.count * self.cache.size, self.cache.size)

    def allocated(self, address: int) -> bool:
        """Whether the object that this address lies in is handed out."""
        index = (address - self.start) // self.cache.size
        begin = self.start + index * self.cache.size
        return 0 <= index < self.count and begin not in self.free


class FreeLists:
    """Follows lists of free objects through memory: pure, but for the reading."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._mode = -1

    def chain(self, cache: Cache, first: int, slab: Slab) -> tuple[set[int], str]:
        """The objects of a list of free ones, and what is wrong with it."""
        free: set[int] = set()
        at = first
        while at:
            index, rest = divmod(at - slab.start, cache.size)
            if rest or not 0 <= index < slab.count:
                return free, f"its list of free objects leads to {at:#x}, which is none of its"
            if at in free:
                return free, f"object {at:#x} is twice on its list of free objects"
            free.add(at)
            try:
                at = self._next(cache, at, slab)
            except Fault:
                return free, f"its list of free objects cannot be read at {at:#x}"
        return free, ""

    def _next(self, cache: Cache, at: int, slab: Slab) -> int:
        place = at + cache.link
        word = self._memory.word(place)
        if cache.secret is None:
            return word
        # freelist_ptr(): since 1ad53d9fa3f6 ("slub: improve bit diffusion for freelist ptr
        # obfuscation", Linux 5.7, and in stable kernels) with the bytes of the place turned round.
        # Nothing in the kernel says which one it is: the one that leads to an object is right.
        turned = int.from_bytes(place.to_bytes(8, "little"), "big")
        answers = (word ^ cache.secret ^ turned, word ^ cache.secret ^ place)
        if self._mode < 0:
            for mode, answer in enumerate(answers):
                if (
                    answer
                    and slab is not None
                    and slab.start <= answer < slab.start + (slab.count * cache.size)
                ):
                    self._mode = mode
            if self._mode < 0:
                return 0 if 0 in answers else answers[0]
        return answers[self._mode]


class Slabs:
    """All slabs of a kernel; found by one walk over its struct pages."""

    def __init__(self, drgn: Any, program: Any, memory: Memory) -> None:
        self._drgn, self._program, self._memory = drgn, program, memory
        self._caches = self._named()
        self._made: dict[int, Cache] = {}
        self._heads: dict[int, int] = {}  # address of a slab's memory -> its struct slab
        self._slabs: dict[int, Slab] = {}
        self._starts: list[int] = []
        self._lists = FreeLists(memory)
        self.known = False
        self._layout()
        if self.known:
            self._walk()
            self._starts = sorted(self._heads)
            self.known = bool(self._heads)

    @property
    def pages(self) -> int:
        """How many slabs were found."""
        return len(self._heads)

    def of(self, names: Iterable[str]) -> Iterator[Slab]:
        """All slabs of the caches with these names, the children of cgroups included."""
        wanted = {address for address, name in self._caches.items() if name in set(names)}
        for start, head in self._heads.items():
            if self._cache_of.get(start) in wanted:
                yield self._slab(start, head)

    def wrong(self) -> list[Slab]:
        """Those that were read and whose list of free objects cannot be."""
        return [slab for slab in self._slabs.values() if slab.wrong]

    def at(self, address: int) -> Slab | None:
        """The slab that this address lies in; None if its page is no slab's."""
        index = bisect.bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        start = self._starts[index]
        slab = self._slab(start, self._heads[start])
        return slab if address < slab.start + slab.count * slab.cache.size else None

    def allocated(self, address: int) -> bool | None:
        """Whether the object that this address lies in is handed out; None where that cannot be
        told.  Memory that is no slab's any more is not handed out.
        """
        if not self.known:
            return None
        slab = self.at(address)
        if slab is None:
            return False
        return None if slab.wrong else slab.allocated(address)

    def _named(self) -> dict[int, str]:
        from drgn.helpers.linux.slab import for_each_slab_cache

        found = {}
        for cache in for_each_slab_cache(self._program):
            try:
                name = cache.name.string_().decode("ascii", "replace")
            except self._drgn.FaultError:
                continue
            found[int(cache.value_())] = name.partition("(")[0]
        return found

    def _layout(self) -> None:
        program = self._program
        try:
            type_ = program.type("struct slab")
        except LookupError:
            type_ = program.type("struct page")
        try:
            if not program.type("struct kmem_cache").has_member("offset"):
                return  # SLAB or SLOB
        except LookupError:
            return
        page = program.type("struct page")
        self._slab_cache = offset(self._drgn, type_, "slab_cache")
        self._freelist = offset(self._drgn, type_, "freelist")
        self._counters = offset(self._drgn, type_, "counters")
        flags = offset(self._drgn, page, "flags", "flags.f")
        kind = offset(self._drgn, page, "page_type", "_mapcount")
        if None in (self._slab_cache, self._freelist, self._counters, flags):
            return
        self._page_size = int(program["PAGE_SIZE"])
        self._struct_page = int(page.size)
        self._is_slab = self._test(int(flags or 0), kind)
        self._cache_of: dict[int, int] = {}
        self.known = True

    def _test(self, flags: int, kind: int | None) -> Any:
        """Whether the bytes of a struct page are those of a slab: as drgn's PageSlab()."""
        found = re.search(
            rb"^NUMBER\(PAGE_SLAB_MAPCOUNT_VALUE\)=(-?\d+)$", self._vmcoreinfo(), re.M
        )
        if found and kind is not None:
            # Since 46df8e73a4a3 ("mm: free up PG_slab", Linux 6.10) a type of the page says it;
            # the lower bits of it may be anything.
            wanted = (int(found.group(1)) >> 24) & 0xFF
            return lambda raw: raw[kind + 3] == wanted
        bit = 1 << int(self._program.constant("PG_slab"))
        return lambda raw: int.from_bytes(raw[flags : flags + 8], "little") & bit

    def _vmcoreinfo(self) -> bytes:
        return bytes(self._program["VMCOREINFO"].string_())

    def _walk(self) -> None:
        from drgn.helpers.linux.mm import pfn_to_virt

        size = self._struct_page
        column = (self._slab_cache or 0) // 8
        known = self._caches
        for start, end, base in self._sections():
            virtual = int(pfn_to_virt(self._program, start).value_()) - start * self._page_size
            step = _CHUNK // size
            for first in range(start, end, step):
                count = min(step, end - first)
                raw = self._pages((base + first * size) % _WRAP, count * size)
                words = memoryview(raw).cast("Q")[column :: size // 8].tolist()
                for index, cache in enumerate(words):
                    if cache not in known:
                        continue
                    if self._is_slab(raw[index * size : (index + 1) * size]):
                        where = virtual + (first + index) * self._page_size
                        self._heads[where] = (base + (first + index) * size) % _WRAP
                        self._cache_of[where] = cache
        self._start_of = {head: start for start, head in self._heads.items()}

    def _sections(self) -> Iterator[tuple[int, int, int]]:
        """The first and last page frame number of each section of memory, and where the struct
        page of number 0 would be (mm/sparse.c, sparse_encode_mem_map()); the lowest bits of that
        pointer are flags, and the second one says that there are any.
        """
        program = self._program
        try:
            roots = program["mem_section"]
        except LookupError:
            return
        each = (1 << self._section_bits()) // self._page_size
        section = int(program.type("struct mem_section").size)
        per_root = max(self._page_size // section, 1)
        extreme = roots.type_.kind == self._drgn.TypeKind.POINTER or (
            roots.type_.type.kind == self._drgn.TypeKind.POINTER
        )
        if not extreme:
            return
        length = re.search(rb"^LENGTH\(mem_section\)=(\d+)$", self._vmcoreinfo(), re.M)
        for root in range(int(length.group(1)) if length else 0):
            try:
                address = int(roots[root].value_())
                raw = self._memory.read(address, per_root * section) if address else b""
            except (Fault, self._drgn.FaultError):
                return
            for index in range(len(raw) // section):
                word = int.from_bytes(raw[index * section : index * section + 8], "little")
                if word & 2:
                    first = (root * per_root + index) * each
                    yield first, first + each, word & ~0x3F

    def _section_bits(self) -> int:
        """SECTION_SIZE_BITS: of vmcoreinfo where it has it (Linux 5.9), else as it was before."""
        found = re.search(rb"^NUMBER\(SECTION_SIZE_BITS\)=(\d+)$", self._vmcoreinfo(), re.M)
        if found:
            return int(found.group(1))
        arm = self._program.platform.arch == self._drgn.Architecture.AARCH64
        return 30 if arm else 27

    def _pages(self, address: int, length: int) -> bytes:
        """Struct pages; those that the dump does not have, as zeros."""
        try:
            return bytes(self._program.read(address, length))
        except self._drgn.FaultError:
            pass
        parts = []
        for begin in range(address, address + length, 4096):
            size = min(4096, address + length - begin)
            try:
                parts.append(bytes(self._program.read(begin, size)))
            except self._drgn.FaultError:
                parts.append(bytes(size))
        return b"".join(parts)

    def _slab(self, start: int, head: int) -> Slab:
        slab = self._slabs.get(start)
        if slab is None:
            slab = self._slabs[start] = self._read_slab(start, head)
        return slab

    def _read_slab(self, start: int, head: int) -> Slab:
        cache = self._cache(self._cache_of[start])
        begin = start + cache.first
        try:
            first = self._memory.word(head + (self._freelist or 0))
            counters = self._memory.word(head + (self._counters or 0))
        except Fault:
            return Slab(cache, begin, 0, set(), "its struct page cannot be read")
        # struct page: inuse:16, objects:15, frozen:1.
        inuse, count, frozen = counters & 0xFFFF, counters >> 16 & 0x7FFF, counters >> 31 & 1
        slab = Slab(cache, begin, count, set())
        free, slab.wrong = self._lists.chain(cache, first, slab)
        if not slab.wrong and not frozen and len(free) != count - inuse:
            slab.wrong = f"{len(free)} objects are on its list of free ones, counted are"
            slab.wrong += f" {count - inuse}"
        slab.free = free | {one for one in cache.free if begin <= one < begin + count * cache.size}
        return slab

    def _cache(self, address: int) -> Cache:
        made = self._made.get(address)
        if made is None:
            made = self._made[address] = self._make(address)
        return made

    def _make(self, address: int) -> Cache:
        object_ = self._drgn.Object(self._program, "struct kmem_cache *", value=address)
        secret = int(object_.random) if hasattr(object_, "random") else None
        pad = int(object_.red_left_pad) if hasattr(object_, "red_left_pad") else 0
        cache = Cache(
            address,
            self._caches[address],
            int(object_.size),
            pad,
            int(object_.offset),
            secret,
            frozenset(),
        )
        return dataclasses.replace(cache, free=frozenset(self._on_cpus(cache, object_)))

    def _on_cpus(self, cache: Cache, object_: Any) -> set[int]:
        """Free objects that no slab's own list has: those of the CPUs' lists and sheaves."""
        from drgn.helpers.linux.cpumask import for_each_possible_cpu
        from drgn.helpers.linux.percpu import per_cpu_ptr

        free: set[int] = set()
        sheaves: list[Any] = []
        # A panic takes the other CPUs offline; their lists stay.
        for cpu in for_each_possible_cpu(self._program):
            # cpu_slab is gone since Linux 7.0, cpu_sheaves came with 6.18.
            if hasattr(object_, "cpu_slab"):
                free |= self._cpu_list(cache, per_cpu_ptr(object_.cpu_slab, cpu))
            if hasattr(object_, "cpu_sheaves") and object_.cpu_sheaves:
                mine = per_cpu_ptr(object_.cpu_sheaves, cpu)
                sheaves += [mine.main, mine.spare]
        for sheaf in [*sheaves, *self._full_sheaves(object_)]:
            try:
                if sheaf:
                    free |= {int(one) for one in sheaf.objects[: int(sheaf.size)]}
            except self._drgn.FaultError:
                continue
        return free

    def _full_sheaves(self, object_: Any) -> Iterator[Any]:
        from drgn.helpers.linux.list import list_for_each_entry

        nodes = object_.node if hasattr(object_, "node") else []
        for index in range(len(nodes) if nodes != [] else 0):
            try:
                node = nodes[index]
                if node and hasattr(node, "barn") and node.barn:
                    yield from list_for_each_entry(
                        "struct slab_sheaf", node.barn.sheaves_full.address_of_(), "barn_list"
                    )
            except (self._drgn.FaultError, IndexError):
                return

    def _cpu_list(self, cache: Cache, mine: Any) -> set[int]:
        free: set[int] = set()
        try:
            at = int(mine.freelist)
            head = mine.slab if hasattr(mine, "slab") else mine.page
            if not at or not head:
                return free
            start = self._start_of.get(int(head.value_()))
            if start is None:
                return free
            start += cache.first
            counters = self._memory.word(int(head.value_()) + (self._counters or 0))
            slab = Slab(cache, start, counters >> 16 & 0x7FFF, set())
            return self._lists.chain(cache, at, slab)[0]
        except (self._drgn.FaultError, Fault):
            return free
