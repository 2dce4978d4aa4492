"""Watching the calls of one module: probes/balance.c on kprobes at addresses.

In the command's own process, which has LLVM while it runs.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ebpfwatch.balance.calls import How, Module, Site
from ebpfwatch.balance.counts import Counts, Held, SiteCounts
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.kernel.libbpf import library, map_lookup, map_update, prog_info
from ebpfwatch.loader import offsets
from ebpfwatch.loader.btf import Btf, BtfError
from ebpfwatch.loader.compiler import Compiler
from ebpfwatch.loader.image import Module as Unit
from ebpfwatch.loader.prober import Prober
from ebpfwatch.loader.running import version_code

__all__ = ["MOST_SITES", "Placed", "Watch"]

#: So many calls of one module can be watched.
MOST_SITES = 1000
_ROOM = MOST_SITES + 1  # one more, to measure with
_SITE = struct.Struct("=IIIiII")
_COUNTS = struct.Struct("=5Q")
_OBJECT = struct.Struct("=qQQQQ")
_KPROBES = Path("/sys/bus/event_source/devices/kprobe")
#: Of include/linux/lockref.h: the count stands behind a spinlock of four bytes (without its debug
#: options), so where only the headers tell, that is where the lockref begins.
_COUNT_IN_LOCKREF = 4
#: A system call with nothing in it, to time the trap: getppid() by the name that it has here.
_CHEAP = ("__arm64_sys_getppid", "__x64_sys_getppid", "sys_getppid", "__se_sys_getppid")
_BATCHES, _PER_BATCH = 7, 500


@dataclasses.dataclass(frozen=True)
class Placed:
    """A site and its address in the kernel."""

    site: Site
    address: int


class Watch:
    """Attached from the beginning; ``read`` may be called at any time.

    Raises ``EbpfwatchError`` where this kernel cannot do it.
    """

    def __init__(self, module: Module, placed: Sequence[Placed]) -> None:
        _insist()
        self._module, self._placed = module, placed
        self.unwatched: list[tuple[Site, str]] = []
        self._links: list[int] = []
        began = time.monotonic()
        prober = Prober(version_code(), {}, None)
        compiler = Compiler(prober.version, prober.features())
        lockref = 0
        if any(one.site.call.how is How.LOCKREF for one in placed):
            lockref = _lockref(compiler)
        flags = [f"-DMOST_SITES={_ROOM}", f"-DOFF_D_LOCKREF={lockref}"]
        self._unit = Unit(compiler.compile("balance.c", flags), prober.version, {})
        self._at = self._unit.load("kprobe", "at_call")
        self._after = self._unit.load("kprobe", "after_call")
        self.compile_seconds = time.monotonic() - began
        self.cost_ns = self._measure()
        for index, one in enumerate(placed):
            self._watch(index, one)
        self.began = time.monotonic()

    def _watch(self, index: int, one: Placed) -> None:
        site = one.site
        results = site.call.how in (How.RESULT, How.RESULT_PATH)
        self._site(one.address, index, site)
        places = [(self._after, one.address + site.length)] if results and not site.tail else []
        for program, address in (*places, (self._at, one.address)):
            link = _attach(program, address)
            if link < 0:
                self.unwatched.append((site, os.strerror(-link)))
                return
            self._links.append(link)

    def _site(self, address: int, index: int, site: Site) -> None:
        call = site.call
        value = _SITE.pack(index, call.how, call.argument, call.sign, site.length, site.tail)
        map_update(self._unit.map("sites"), struct.pack("=Q", address), value)

    def _measure(self) -> float | None:
        """What one seen call costs, in ns: a system call with and without it; None = not known."""
        symbols = _symbols(_CHEAP)
        address = next((symbols[name] for name in _CHEAP if name in symbols), 0)
        if not address:
            return None
        self._site(address, MOST_SITES, Site("ihold", "", 0, 4))
        before = _batch()
        link = _attach(self._at, address)
        if link < 0:
            return None
        try:
            return max(0.0, _batch() - before)
        finally:
            os.close(link)
            _delete(self._unit.map("sites"), struct.pack("=Q", address))
            for key in list(_keys(self._unit.map("objects"), 8)):
                _delete(self._unit.map("objects"), key)

    @property
    def calls(self) -> int:
        """How many have been seen."""
        return sum(one.calls + one.nothing for one in self._counts({}))

    def _counts(self, names: Mapping[int, str]) -> Iterator[SiteCounts]:
        for index, one in enumerate(self._placed):
            values = _COUNTS.unpack(map_lookup(self._unit.map("counts"), index, _COUNTS.size))
            where = names.get(one.address) or f"{one.address:#x}"
            yield SiteCounts(one.site, where, *values)

    def finish(self, names: Mapping[int, str]) -> Counts:
        """Detach and read everything; ``names`` of the addresses."""
        while self._links:
            os.close(self._links.pop())
        missed = sum(int(prog_info(fd).recursion_misses) for fd in (self._at, self._after))
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        held = []
        objects = self._unit.map("objects")
        for key in _keys(objects, 8):
            value = _lookup(objects, key, _OBJECT.size)
            if value is not None:
                balance, _, _, since, site = _OBJECT.unpack(value)
                if balance > 0:
                    held.append(Held(site, balance, (now - since) / 1e9))
        sites = tuple(self._counts(names))
        self._unit.close()
        return Counts(self._module, sites, tuple(held), tuple(self.unwatched), missed)


def _insist() -> None:
    if not _KPROBES.exists():
        raise EbpfwatchError(
            "this kernel has no kprobes (CONFIG_KPROBE_EVENTS), so the calls of a module cannot be"
            " watched",
            "boot a kernel with them",
            Exit.UNAVAILABLE,
        )


def _lockref(compiler: Compiler) -> int:
    """Where a dentry has its lockref."""
    try:
        return Btf().offset("dentry", "d_lockref")
    except BtfError as error:
        return offsets.from_headers(compiler, str(error))["OFF_D_COUNT"] - _COUNT_IN_LOCKREF


def _attach(program: int, address: int) -> int:
    """A kprobe at an address: without a function's name the kernel takes the offset for one
    (perf_kprobe_init() in kernel/trace/trace_event_perf.c); the link's fd or -errno.
    """
    ctypes.set_errno(0)
    event = f"ebpfwatch_balance_{os.getpid()}_{address:x}".encode()
    fd = library().bpf_attach_kprobe(program, 0, event, b"", ctypes.c_uint64(address), 0)
    return int(fd) if fd >= 0 else -(ctypes.get_errno() or errno.EINVAL)


def _symbols(wanted: Sequence[str]) -> dict[str, int]:
    found = {}
    with open("/proc/kallsyms", encoding="ascii", errors="replace") as lines:
        for line in lines:
            words = line.split()
            if words[2] in wanted and int(words[0], 16):
                found[words[2]] = int(words[0], 16)
    return found


def _batch() -> float:
    """Of one system call, in ns: the least of some batches; what disturbs makes it longer."""
    batches = []
    for _ in range(_BATCHES):
        began = time.perf_counter_ns()
        for _ in range(_PER_BATCH):
            os.getppid()
        batches.append((time.perf_counter_ns() - began) / _PER_BATCH)
    return min(batches)


def _keys(fd: int, size: int) -> Iterator[bytes]:
    """All keys of a hash; one that is deleted meanwhile may begin the walk again."""
    key, after = None, ctypes.create_string_buffer(size)
    while library().bpf_map_get_next_key(fd, key, after) == 0:
        yield after.raw
        key, after = ctypes.create_string_buffer(after.raw, size), ctypes.create_string_buffer(size)


def _lookup(fd: int, key: bytes, size: int) -> bytes | None:
    value = ctypes.create_string_buffer(size)
    found = library().bpf_map_lookup_elem(fd, ctypes.create_string_buffer(key, len(key)), value)
    return value.raw if found == 0 else None


def _delete(fd: int, key: bytes) -> None:
    library().bpf_map_delete_elem(fd, ctypes.create_string_buffer(key, len(key)))
