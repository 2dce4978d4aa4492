"""A vmcore through drgn: our maps in it, names of its addresses, slab state, the crashed stack.

drgn is optional (``pip install drgn``) and works on another machine's dump, also
of another architecture; it needs the dead kernel's debug symbols.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ebpfwatch.events.wire import Bucket, VerdictRecord
from ebpfwatch.postmortem.frames import frame_records, until_circle
from ebpfwatch.postmortem.opening import import_drgn, open_program

__all__ = ["Dump"]

#: Our maps by name, with the size of a value: BPF maps of others may have the same names.
_SHAPES = {"table": ctypes.sizeof(Bucket), "verdict_scratch": ctypes.sizeof(VerdictRecord)}

_CHUNK = 1 << 20


class Dump:
    """One dead machine, or the running one (``vmcore`` is None); raises ``EbpfwatchError`` for what
    is no dump or has no symbols.
    """

    def __init__(self, vmcore: Path | None, symbols: Sequence[Path]) -> None:
        self._program = open_program(vmcore, symbols)
        self._drgn = import_drgn()

    @property
    def program(self) -> Any:
        """drgn's."""
        return self._program

    @property
    def drgn(self) -> Any:
        """The module."""
        return self._drgn

    @property
    def types(self) -> str:
        """Where they are from: "debug information" or "BTF"."""
        return "BTF" if "btf" in self._program.enabled_type_finders() else "debug information"

    @property
    def release(self) -> str:
        """The dead kernel's."""
        return str(self._program["init_uts_ns"].name.release.string_().decode())

    def maps(self) -> dict[str, list[Any]]:
        """Our maps by name; several where the daemon was started again."""
        from drgn.helpers.linux.bpf import bpf_map_for_each

        found: dict[str, list[Any]] = {name: [] for name in _SHAPES}
        for map_ in bpf_map_for_each(self._program):
            name = map_.name.string_().decode("ascii", "replace")
            if _SHAPES.get(name) == int(map_.value_size):
                found[name].append(map_)
        return found

    def table(self, map_: Any) -> bytes:
        """The values of an array map, those of pages that are not in the dump as zeros."""
        array = self._array(map_)
        length = int(array.elem_size) * int(map_.max_entries)
        return b"".join(self._pieces(int(array.value.address_), length))

    def per_cpu(self, map_: Any) -> Iterator[bytes]:
        """Each value of a per-CPU array map, for each CPU."""
        from drgn.helpers.linux.cpumask import for_each_possible_cpu
        from drgn.helpers.linux.percpu import per_cpu_ptr

        array, size = self._array(map_), int(map_.value_size)
        for index in range(int(map_.max_entries)):
            for cpu in for_each_possible_cpu(self._program):
                place = per_cpu_ptr(array.pptrs[index], cpu)
                yield b"".join(self._pieces(int(place.value_()), size))

    def _array(self, map_: Any) -> Any:
        return self._drgn.container_of(map_, "struct bpf_array", "map")

    def _pieces(self, address: int, length: int) -> Iterator[bytes]:
        for begin in range(address, address + length, _CHUNK):
            size = min(_CHUNK, address + length - begin)
            try:
                yield self._program.read(begin, size)
            except self._drgn.FaultError:
                yield bytes(size)

    def name(self, address: int) -> str:
        """As ``kernel.symbols`` names addresses; "" if nobody knows."""
        module = self._module(address)
        mark = f" [{module[0]}]" if module else ""
        try:
            symbol = self._program.symbol(address)
            return f"{symbol.name}+{address - symbol.address:#x}{mark}"
        except LookupError:
            return f"{module[0]}+{address - module[1]:#x}{mark}" if module else ""

    def _module(self, address: int) -> tuple[str, int] | None:
        from drgn.helpers.linux.module import address_to_module, module_address_regions

        try:
            module = address_to_module(self._program, address)
            if not module:
                return None
            name = module.name.string_().decode()
            regions = module_address_regions(module)
        except (self._drgn.FaultError, LookupError, ValueError):
            return None
        return name, next((b for b, size in regions if b <= address < b + size), address)

    def taints(self, name: str) -> str:
        """A module's, as the kernel prints them; "" where this drgn cannot tell."""
        try:
            from drgn.helpers.linux.module import find_module, module_taints
        except ImportError:  # drgn before 0.0.33
            return ""
        try:
            module = find_module(self._program, name)
            return str(module_taints(module)) if module else ""
        except (self._drgn.FaultError, LookupError, ValueError):
            return ""

    def slab_line(self, address: int) -> str:
        """Whether the object's page is still a slab page, and of which cache."""
        from drgn.helpers.linux.slab import find_containing_slab_cache, slab_object_info

        try:
            cache = find_containing_slab_cache(self._program, address)
            if not cache:
                return "no: the page was given back, so a free of it now takes page->slab_cache = 0"
            name = cache.name.string_().decode()
            info = slab_object_info(self._program, address)
        except (self._drgn.FaultError, LookupError, ValueError) as error:
            return f"cannot tell: {error}"
        if info is None:
            return f"yes, of {name}, but there is no object at this address"
        known = {True: "allocated", False: "free", None: "in an unknown state"}[info.allocated]
        return f"yes, of {name}; the object is {known}"

    def crashed_stack(self) -> tuple[str, list[str]]:
        """Who crashed, and the frames, innermost first; a circle of the unwinder is cut, said."""
        try:
            thread = self._program.crashed_thread()
            task = thread.object
            who = f"{task.comm.string_().decode('ascii', 'replace')} (pid {int(task.pid)})"
            trace = list(thread.stack_trace())
        except (self._drgn.FaultError, LookupError, ValueError) as error:
            return f"cannot tell: {error}", []
        places = [(frame.pc, frame.name or "???") for frame in trace]
        count, circle = until_circle(places)
        frames = [f"{name} at {address:#x}" for address, name in places[:count]]
        if circle:
            frames.append(
                f"(drgn's unwinder ran in a circle here: {len(trace) - count} frames cut)"
            )
            frames += self._by_frame_records(trace[:count])
        return who, frames

    def _by_frame_records(self, good: Sequence[Any]) -> list[str]:
        """The callers that the frame pointers lead to, from the last frame that knows its own;
        only for arm64, whose kernels always have them.
        """
        if self._program.platform.arch != self._drgn.Architecture.AARCH64:
            return []
        pointer = last = 0
        for frame in reversed(good):
            try:
                pointer, last = frame.register("x29"), frame.pc
                break
            except (LookupError, ValueError):
                continue

        def read(address: int, size: int) -> bytes:
            try:
                return bytes(self._program.read(address, size))
            except self._drgn.FaultError as error:
                raise ValueError(str(error)) from None

        return [
            f"{self._caller(address - 4)} at {address:#x} (by the frame pointer)"
            for address in frame_records(read, pointer, last)
        ]

    def _caller(self, address: int) -> str:
        """The function of a call, without the offset unless nothing but the module is known."""
        name = self.name(address) or "???"
        return self.name(address + 4) if name.endswith("]") else name.partition("+")[0]

    def realtime_offset_ns(self) -> int:
        """How far the wall clock was ahead of CLOCK_MONOTONIC; 0 if the dump does not tell."""
        # Since Linux 6.17 there is one of them for each clock: timekeeper_data[TIMEKEEPER_CORE].
        for name in ("tk_core", "timekeeper_data"):
            try:
                found = self._program[name]
                core = found if name == "tk_core" else found[0]
                return int(core.timekeeper.offs_real)
            except (LookupError, AttributeError, TypeError, self._drgn.FaultError):
                continue
        return 0
