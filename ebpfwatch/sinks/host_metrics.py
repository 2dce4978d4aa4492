"""The metrics of the host's state: each declared once, all series there from the start.

What could not be read, or what this kernel does not have, is NaN: a 0 would be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ebpfwatch.host.crash import ITEMS
from ebpfwatch.host.pressure import RESOURCES
from ebpfwatch.host.slabinfo import CACHES
from ebpfwatch.host.state import HostState
from ebpfwatch.host.taint import LETTERS
from ebpfwatch.host.vmstat import RECLAIM
from ebpfwatch.text.printable import printable

__all__ = ["collect"]

#: More filesystems than that get no series of their own.
MOST_DISKS = 64

_ZONE = {
    "free": "Free memory of the zone.",
    "min": "Watermark below which only emergencies may allocate.",
    "low": "Watermark below which kswapd wakes.",
    "high": "Watermark at which kswapd sleeps again.",
    "managed": "Memory of the zone that the page allocator manages.",
}

_MEMORY = {
    "total": "MemTotal of /proc/meminfo.",
    "free": "MemFree.",
    "available": "MemAvailable: what could be had without swapping.",
    "cached": "Cached: file pages, and what lies in tmpfs.",
    "dirty": "Dirty: file pages that wait to be written.",
    "slab_reclaimable": "SReclaimable: slabs of inodes, dentries and the like.",
    "slab_unreclaimable": "SUnreclaim.",
    "swap_total": "SwapTotal.",
    "swap_free": "SwapFree.",
    "commit_limit": "CommitLimit: enforced only with vm.overcommit_memory=2.",
    "committed": "Committed_AS: what all tasks together have been promised.",
}

_SETTINGS = (
    "overcommit_memory",
    "overcommit_ratio",
    "min_free_kbytes",
    "watermark_scale_factor",
    "swappiness",
    "vfs_cache_pressure",
    "dirty_background_ratio",
    "dirty_ratio",
    "dirty_writeback_centisecs",
    "nr_hugepages",
)


def collect(host: HostState, full: bool) -> Iterator[Metric]:
    """All families, in a fixed order; unless ``full``, without those that node_exporter has by
    default under names of its own.
    """
    yield from _zones(host)
    yield from _slabs(host)
    if full:
        yield from _memory(host)
        yield from _reclaim(host)
        yield from _objects(host)
    yield from _open_files(host)
    yield from _disks(host)
    yield from _kernel(host)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _gauge(name: str, text: str, value: float | None) -> Metric:
    return GaugeMetricFamily(f"ebpfwatch_{name}", text, value=_number(value))


def _labelled(family: Metric, samples: Iterable[tuple[tuple[str, ...], float | None]]) -> Metric:
    for labels, value in samples:
        family.add_metric([printable(label) for label in labels], _number(value))
    return family


def _gauges(name: str, text: str, *labels: str) -> Metric:
    return GaugeMetricFamily(f"ebpfwatch_{name}", text, labels=labels)


def _counters(name: str, text: str, *labels: str) -> Metric:
    return CounterMetricFamily(f"ebpfwatch_{name}", text, labels=labels)


def _zones(host: HostState) -> Iterator[Metric]:
    for name, text in _ZONE.items():
        yield _labelled(
            _gauges(f"zone_{name}_bytes", text, "node", "zone"),
            (((str(zone.node), zone.zone), getattr(zone, name)) for zone in host.zones),
        )
    yield _labelled(
        _gauges(
            "zone_level",
            "Where free memory stands: 0 below min, 1 min to low, 2 low to high, 3 above high.",
            "node",
            "zone",
        ),
        (((str(zone.node), zone.zone), zone.level) for zone in host.zones),
    )


def _memory(host: HostState) -> Iterator[Metric]:
    for name, text in _MEMORY.items():
        yield _gauge(f"memory_{name}_bytes", text, getattr(host.memory, name, None))
    yield _gauge(
        "memory_commit_ratio",
        "Committed_AS in parts of CommitLimit.",
        host.memory.commit_ratio if host.memory else None,
    )
    yield _labelled(
        _gauges("vm_setting", "Settings of /proc/sys/vm; the unit is the name's.", "name"),
        (((name,), getattr(host.vm, name, None)) for name in _SETTINGS),
    )


def _reclaim(host: HostState) -> Iterator[Metric]:
    pressure = {found.resource: found for found in host.pressure}
    for kind, field, text in (
        ("waiting", "some_seconds", "Time in which some tasks waited for it (PSI)."),
        ("stalled", "full_seconds", "Time in which all tasks waited for it (PSI)."),
    ):
        yield _labelled(
            _counters(f"pressure_{kind}_seconds", text, "resource"),
            (((name,), getattr(pressure.get(name), field, None)) for name in RESOURCES),
        )
    yield _labelled(
        _counters("vmstat", "Counters of /proc/vmstat that tell of reclaim.", "counter"),
        (((name,), host.reclaim.get(name)) for name in RECLAIM),
    )


def _slabs(host: HostState) -> Iterator[Metric]:
    objects = _gauges("slab_objects", "Objects of a slab cache.", "cache", "state")
    size = _gauges("slab_bytes", "Memory of a slab cache.", "cache")
    for name in CACHES:
        cache = host.slabs.cache(name) if host.slabs else None
        for state in ("active", "total"):
            objects.add_metric([name, state], _number(getattr(cache, state, None)))
        size.add_metric([name], _number(getattr(cache, "bytes", None)))
    yield objects
    yield size


def _objects(host: HostState) -> Iterator[Metric]:
    vfs = host.vfs
    yield _gauge("filefd_allocated", "Open files.", getattr(vfs, "files", None))
    yield _gauge("filefd_maximum", "fs.file-max.", getattr(vfs, "files_max", None))
    yield _labelled(
        _gauges("inodes", "Inodes of all filesystems in memory.", "state"),
        (
            (("all",), getattr(vfs, "inodes", None)),
            (("unused",), getattr(vfs, "inodes_unused", None)),
        ),
    )
    yield _labelled(
        _gauges("dentries", "Directory entries in memory; negative ones name no file.", "state"),
        (
            (("all",), getattr(vfs, "dentries", None)),
            (("unused",), getattr(vfs, "dentries_unused", None)),
            (("negative",), getattr(vfs, "dentries_negative", None)),
        ),
    )


def _open_files(host: HostState) -> Iterator[Metric]:
    found = host.open_files
    yield _gauge(
        "files_without_process",
        "Open files that the kernel holds and no process has: so many at least. NaN where not all"
        " processes could be read.",
        None if found is None else found.least,
    )
    yield _gauge(
        "files_without_process_limit",
        "From so many files without a process on they are taken for a leak: more where a graphics"
        " driver keeps its buffers as files.",
        None if found is None else found.limit,
    )
    yield _gauge(
        "files_beyond_descriptors",
        "Open files that no descriptor of a process leads to: mapped ones, and the kernel's own.",
        None if found is None else found.beyond_descriptors,
    )


def _disks(host: HostState) -> Iterator[Metric]:
    filesystem = _gauges(
        "filesystem_info",
        "A mounted ext4, its journal's mode and the drivers of its disks; always 1.",
        "mountpoint",
        "device",
        "driver",
        "journal",
        "passed_through",
    )
    for disk in host.disks[:MOST_DISKS]:
        drivers = "+".join(disk.stack.drivers)
        passed = str(bool(disk.stack.passed)).lower()
        labels = (disk.mount, disk.device, drivers, disk.journal, passed)
        filesystem.add_metric([printable(label) for label in labels], 1.0)
    yield filesystem
    yield from _disk_work(host)
    for kind in ("errors", "warnings"):
        yield _labelled(
            _gauges(
                f"ext4_{kind}",
                f"{kind.capitalize()} that ext4 has noted in the superblock since the last e2fsck.",
                "device",
            ),
            (((e.device,), getattr(e, kind)) for e in host.ext4[:MOST_DISKS]),
        )


def _disk_work(host: HostState) -> Iterator[Metric]:
    stats = {stat.number: stat for stat in host.disk_stats}
    shown = [(disk, stats.get(disk.number)) for disk in host.disks[:MOST_DISKS]]
    for name, text, values in (
        (
            "filesystem_turned_read_only",
            "1 where ext4 has made itself read-only after an error.",
            [float(disk.turned_read_only) for disk, _ in shown],
        ),
        (
            "filesystem_device_gone",
            "1 where the device below a mounted ext4 is no longer there.",
            [None if stat is None else float(not stat.present) for _, stat in shown],
        ),
        (
            "disk_latency_seconds",
            "Mean time of the requests since the look before; NaN where there were none.",
            [getattr(stat, "latency_seconds", None) for _, stat in shown],
        ),
        (
            "disk_stalled_seconds",
            "For how long requests have been in flight and none was completed.",
            [getattr(stat, "stalled_seconds", None) for _, stat in shown],
        ),
    ):
        labels = [(disk.mount, disk.device) for disk, _ in shown]
        yield _labelled(_gauges(name, text, "mountpoint", "device"), zip(labels, values))


def _kernel(host: HostState) -> Iterator[Metric]:
    taint = host.taint
    yield _labelled(
        _gauges("kernel_tainted", "1 for each taint flag that is set, by its letter.", "flag"),
        (((letter,), None if taint is None else letter in taint.flags) for letter in LETTERS),
    )
    yield _gauge(
        "out_of_tree_modules",
        "Loaded modules that are not of the kernel's own tree.",
        None if taint is None else len(taint.out_of_tree),
    )
    ready = host.crash.ready() if host.crash else {}
    yield _labelled(
        _gauges(
            "crash_ready",
            "1 for each item of crash readiness that is there, 0 where it is missing.",
            "item",
        ),
        (((item,), ready.get(item)) for item in ITEMS),
    )
