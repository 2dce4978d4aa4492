"""Everything the machine says of itself at one moment, each source failing for itself alone.

A source that cannot be read is a counter and one line in the log (``Sources``) and a reason in
``problems``; its part of the state is empty, the rest is there.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any, Callable, TypeVar

from ebpfwatch.host import (
    crash,
    disks,
    diskstat,
    ext4,
    meminfo,
    openfiles,
    pressure,
    slabinfo,
    swaps,
    taint,
    vfs,
    vm,
    vmstat,
    zoneinfo,
)
from ebpfwatch.host.room import Room
from ebpfwatch.host.sources import Sources
from ebpfwatch.paths import Paths
from ebpfwatch.system.worker import Worker
from ebpfwatch.text.jsonable import jsonable

__all__ = ["SOURCES", "HostReader", "HostState"]

_T = TypeVar("_T")

#: Names of the sources, as in ebpfwatch_collector_errors_total.
SOURCES = (
    "zoneinfo",
    "meminfo",
    "vm",
    "swaps",
    "pressure",
    "vmstat",
    "slabinfo",
    "vfs",
    "ext4",
    "taint",
    "disks",
    "disk_stats",
    "crash",
)

_FRESH_SECONDS = 1.0

#: Between two counts of open files; and the share of a CPU that they may take.
_COUNT_SECONDS = 300.0
_COUNT_BUDGET_SECONDS = 0.5
_COUNT_SHARE = 0.002


@dataclasses.dataclass(frozen=True)
class HostState:
    """None, or nothing in it, for what could not be read or what this kernel does not have.

    ``reclaim`` are the counters of ``vmstat.RECLAIM`` since the boot, ``rates`` the same a second
    since the reading before this one.  ``problems`` says by source why it could not be read.
    ``room`` and ``disk_errors`` (messages of the kernel's log, by device) are filled by `ebpfwatch
    check` only.  ``open_files`` are those of the last count.
    """

    zones: tuple[zoneinfo.Zone, ...] = ()
    memory: meminfo.Memory | None = None
    vm: vm.VmSettings | None = None
    swaps: tuple[swaps.Swap, ...] = ()
    pressure: tuple[pressure.Pressure, ...] = ()
    reclaim: dict[str, int] = dataclasses.field(default_factory=dict)
    rates: dict[str, float] = dataclasses.field(default_factory=dict)
    slabs: slabinfo.Slabs | None = None
    vfs: vfs.Vfs | None = None
    ext4: tuple[ext4.Ext4Errors, ...] = ()
    taint: taint.Taint | None = None
    disks: tuple[disks.Disk, ...] = ()
    disk_stats: tuple[diskstat.DiskStat, ...] = ()
    crash: crash.CrashReadiness | None = None
    problems: dict[str, str] = dataclasses.field(default_factory=dict)
    room: Room | None = None
    open_files: openfiles.OpenFiles | None = None
    disk_errors: dict[str, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values only; what is unknown or empty is left out."""
        body = {name: jsonable(value, unknown=False) for name, value in vars(self).items()}
        for zone, shown in zip(self.zones, body["zones"] or ()):
            shown["level"] = zone.level
        return {name: value for name, value in body.items() if value not in (None, [], {}, "")}


class HostReader:
    """Reads the state, at most once a second; safe from any thread."""

    def __init__(self, paths: Paths, sources: Sources) -> None:
        self._paths = paths
        self._sources = sources
        self._lock = threading.Lock()
        self._disks = disks.DiskReader()
        self._disk_stats = diskstat.DiskStatReader()
        self._slabs = slabinfo.SlabReader()
        self._state = HostState()
        self._read_at = -float("inf")
        self._open_files: openfiles.OpenFiles | None = None
        self._counter = Worker("open files", capacity=1)
        self._count_at = -float("inf")
        self._count_good_until = -float("inf")

    def count_open_files(self) -> None:
        """In a thread of its own, if the last count is old: it opens files of every process."""
        now = time.monotonic()
        if now >= self._count_at:
            self._count_at = now + _COUNT_SECONDS
            self._counter.submit(self._count)

    def _count(self) -> None:
        def counting() -> openfiles.OpenFiles:
            return openfiles.read(self._paths, _COUNT_BUDGET_SECONDS)

        self._open_files = self._sources.read("open_files", counting, None)
        if self._open_files is not None:
            pause = self._open_files.seconds / _COUNT_SHARE
            self._count_at = max(self._count_at, time.monotonic() + pause)
            self._count_good_until = self._count_at + 2 * _COUNT_SECONDS

    def state(self) -> HostState:
        """The state, at most a second old. Never raises for a source that cannot be read."""
        with self._lock:
            now = time.monotonic()
            if now - self._read_at >= _FRESH_SECONDS:
                self._state = self._read(now - self._read_at)
                self._read_at = now
            return self._state

    def _read(self, seconds: float) -> HostState:
        problems: dict[str, str] = {}

        def source(name: str, read: Callable[[Paths], _T], fallback: _T) -> _T:
            def reading() -> _T:
                try:
                    return read(self._paths)
                except (OSError, ValueError) as error:
                    problems[name] = _why(error)
                    raise

            return self._sources.read(name, reading, fallback)

        nothing: dict[str, int] = {}
        reclaim = vmstat.reclaim(source("vmstat", vmstat.read, nothing))
        mounted: tuple[disks.Disk, ...] = source("disks", self._disks.read, ())

        def disk_stats(paths: Paths) -> tuple[diskstat.DiskStat, ...]:
            return self._disk_stats.read(paths, mounted)

        return HostState(
            zones=source("zoneinfo", zoneinfo.read, ()),
            memory=source("meminfo", meminfo.read, None),
            vm=source("vm", vm.read, None),
            swaps=source("swaps", swaps.read, ()),
            pressure=source("pressure", pressure.read, ()),
            reclaim=reclaim,
            rates=_rates(self._state.reclaim, reclaim, seconds),
            slabs=source("slabinfo", self._slabs.read, None),
            vfs=source("vfs", vfs.read, None),
            ext4=source("ext4", ext4.read, ()),
            taint=source("taint", taint.read, None),
            disks=mounted,
            disk_stats=source("disk_stats", disk_stats, ()),
            crash=source("crash", crash.read, None),
            problems=problems,
            open_files=self._last_count(),
        )

    def _last_count(self) -> openfiles.OpenFiles | None:
        """None where it is too old: the thread that counts hangs in /proc."""
        return None if time.monotonic() > self._count_good_until else self._open_files


def _rates(before: dict[str, int], now: dict[str, int], seconds: float) -> dict[str, float]:
    """A second, to two digits; counters that went back (none should) are left out."""
    return {
        name: round((value - before[name]) / seconds, 2)
        for name, value in now.items()
        if value >= before.get(name, value + 1)
    }


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
