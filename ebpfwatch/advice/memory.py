"""How near this machine is to reclaim, the place where the inodes of this bug die."""

from __future__ import annotations

from ebpfwatch.advice import Advice, Level, percent, size
from ebpfwatch.host.meminfo import Memory
from ebpfwatch.host.state import HostState
from ebpfwatch.host.zoneinfo import Zone

__all__ = ["advise", "has_room", "is_thin", "swap_commands", "swap_wanted"]

_SECTION = "memory"

_THIN = 1.5  #: free below that many times the high watermark is one allocation burst from reclaim
_SMALL_ZONE = 64 << 20  #: bytes; an ISA DMA zone's watermarks say nothing about pressure
_GIB = 1 << 30

_LEVELS = {
    0: (Level.FAIL, "below min", "only emergencies are served; every other task reclaims itself"),
    1: (Level.WARN, "between min and low", "kswapd is reclaiming at this moment"),
    2: (Level.WARN, "between low and high", "kswapd, once awake, goes on until high"),
    3: (Level.OK, "above high", "kswapd sleeps"),
}


def advise(host: HostState) -> list[Advice]:
    """Every line that the readable sources allow; one UNKNOWN for each that was not."""
    lines = [_zone(zone) for zone in host.zones if zone.managed >= _SMALL_ZONE]
    if host.memory is not None:
        lines += _of_meminfo(host, host.memory)
    lines += _reclaim(host)
    lines += _cache_pressure(host)
    lines += _pressure(host)
    lines += _slabs(host)
    lines += _files(host)
    for source in ("zoneinfo", "meminfo", "vm", "swaps", "vmstat", "pressure", "slabinfo", "vfs"):
        if source in host.problems:
            lines.append(_line(source, Level.UNKNOWN, host.problems[source], "could not be read"))
    return lines


def is_thin(host: HostState) -> bool:
    """Whether any zone is below its high watermark, or not far above it."""
    return any(zone.free < _THIN * zone.high for zone in host.zones)


def _line(item: str, level: Level, value: str, why: str, command: str = "") -> Advice:
    return Advice(_SECTION, item, level, value, why, command)


def _zone(zone: Zone) -> Advice:
    level, where, means = _LEVELS[zone.level]
    if zone.level == 3 and zone.free < _THIN * zone.high:
        level, where = Level.WARN, f"{percent(zone.free - zone.high, zone.high)} above high"
        means = "one burst of allocations wakes kswapd"
    value = (
        f"free {size(zone.free)} of {size(zone.managed)}: {where}"
        f" (min {size(zone.min)}, low {size(zone.low)}, high {size(zone.high)})"
    )
    why = f"{means}; reclaim evicts inodes in the thousands, beside tasks that delete files"
    command = "" if level is Level.OK else "sysctl -w vm.watermark_scale_factor=100"
    if command:
        why += "; a higher factor wakes kswapd earlier, so that fewer tasks reclaim by themselves"
    return _line(f"node {zone.node} zone {zone.zone}", level, value, why, command)


def _of_meminfo(host: HostState, memory: Memory) -> list[Advice]:
    lines = [_swap(host, memory), _overcommit(host, memory)]
    return [line for line in (*lines, _dirty(host, memory), _huge(memory)) if line is not None]


def swap_wanted(memory: Memory) -> int:
    """Bytes of swap that would hold all that is committed and does not fit into RAM: whole GiB,
    at least 2 and at most as much as there is RAM.
    """
    missing = max(0, (memory.committed or 0) - memory.total)
    return max(2, min(-(-missing // _GIB), max(2, memory.total // _GIB))) * _GIB


def has_room(host: HostState, count: int) -> bool:
    """Whether some ext4 has room for a file of that size and a GiB to spare; True if unknown."""
    return host.room is None or not host.room.free or max(host.room.free.values()) > count + _GIB


def swap_commands(host: HostState, count: int) -> str:
    """How to make a swap file of that size where there is most room; O_DIRECT, because through the
    page cache it would start the very reclaim that it is to prevent. Where no ext4 has the room,
    compressed memory is better than none.
    """
    room = host.room.free if host.room else {}
    place = max(room, key=lambda mount: room[mount], default="/")
    if not has_room(host, count):
        return f"zram=$(zramctl -f -s {count >> 20}M) && mkswap $zram && swapon $zram"
    file = f"{place.rstrip('/')}/swapfile"
    return (
        f"dd if=/dev/zero of={file} bs=1M count={count >> 20} oflag=direct && chmod 600 {file}"
        f" && mkswap {file} && swapon {file}"
    )


def _swap(host: HostState, memory: Memory) -> Advice:
    if memory.swap_total:
        used = memory.swap_total - (memory.swap_free or 0)
        names = ", ".join(f"{area.path} ({size(area.size)})" for area in host.swaps)
        full = used > 0.9 * memory.swap_total
        return _line(
            "swap",
            Level.WARN if full else Level.OK,
            f"{size(used)} of {size(memory.swap_total)} used: {names or 'not listed'}",
            "full: as good as none" if full else "anonymous memory has somewhere to go",
            swap_commands(host, swap_wanted(memory)).replace("swapfile", "swapfile2")
            if full
            else "",
        )
    return _line(
        "swap",
        Level.WARN,
        "none",
        "anonymous memory cannot be reclaimed, so all pressure falls on page cache and slabs, that"
        " is on inodes; swap makes this bug rarer, it does not mend it",
        swap_commands(host, swap_wanted(memory)),
    )


def _overcommit(host: HostState, memory: Memory) -> Advice | None:
    mode = host.vm.overcommit_memory if host.vm else None
    ratio = memory.commit_ratio
    if mode is None or ratio is None:
        return None
    value = (
        f"mode {mode}; {size(memory.committed or 0)} committed,"
        f" {ratio * 100:.0f} % of CommitLimit {size(memory.commit_limit or 0)}"
    )
    if mode == 2:
        level = Level.FAIL if ratio > 0.95 else Level.WARN if ratio > 0.8 else Level.OK
        why = "the limit is enforced: above it every fork and every malloc fails"
        fix = "" if level is Level.OK else "sysctl -w vm.overcommit_memory=0"
        return _line("overcommit", level, value, why, fix)
    over = (memory.committed or 0) > memory.total + (memory.swap_total or 0)
    why = "the limit is not enforced in this mode; " + (
        "more is promised than RAM and swap hold: if tasks use it, reclaim never ends, then OOM"
        if over
        else "what is promised fits into RAM and swap"
    )
    if mode == 1:
        fix = "sysctl -w vm.overcommit_memory=0   # refuses the obviously impossible"
        return _line("overcommit", Level.WARN, value, why, fix)
    if over:
        return _line("overcommit", Level.WARN, value, f"{why}; see swap")
    return _line("overcommit", Level.OK, value, why)


def _dirty(host: HostState, memory: Memory) -> Advice | None:
    vm = host.vm
    if vm is None or vm.dirty_ratio is None or vm.dirty_background_ratio is None:
        return None
    if vm.dirty_bytes or vm.dirty_background_bytes:
        allowed, early = vm.dirty_bytes or 0, vm.dirty_background_bytes or 0
        value = f"dirty_bytes {size(allowed)}, dirty_background_bytes {size(early)}"
    else:
        allowed = (memory.dirtyable or 0) * vm.dirty_ratio // 100
        value = (
            f"dirty_ratio {vm.dirty_ratio}, dirty_background_ratio {vm.dirty_background_ratio}:"
            f" up to {size(allowed)} may be dirty"
        )
    why = "dirty pages cannot be reclaimed before they are written: reclaim takes inodes instead"
    much = vm.dirty_ratio > 40 or allowed > memory.total // 2
    fix = "sysctl -w vm.dirty_ratio=20 vm.dirty_background_ratio=5" if much else ""
    return _line("dirty pages", Level.WARN if much else Level.OK, value, why, fix)


def _huge(memory: Memory) -> Advice | None:
    if not memory.huge_total or not memory.huge_bytes:
        return None
    held = memory.huge_total * memory.huge_bytes
    much = held > memory.total // 10
    return _line(
        "huge pages",
        Level.WARN if much else Level.OK,
        f"{memory.huge_total} reserved: {size(held)}",
        "reserved huge pages are no page cache and cannot be reclaimed",
        "sysctl -w vm.nr_hugepages=0   # unless a program maps hugetlbfs" if much else "",
    )


def _reclaim(host: HostState) -> list[Advice]:
    counts = host.reclaim
    if "pgscan_kswapd" not in counts or "pgscan_direct" not in counts:
        return []
    kswapd, direct = counts["pgscan_kswapd"], counts["pgscan_direct"]
    value = (
        f"{kswapd} pages scanned by kswapd, {direct} by tasks themselves,"
        f" {counts.get('slabs_scanned', 0)} slab objects, since the boot"
    )
    often = direct > 0.1 * (kswapd + direct) and direct > 10_000
    return [
        _line(
            "reclaim",
            Level.WARN if often else Level.OK,
            value,
            "a task that reclaims by itself evicts inodes in its own context, on any CPU",
            "sysctl -w vm.watermark_scale_factor=100" if often else "",
        )
    ]


def _cache_pressure(host: HostState) -> list[Advice]:
    value = host.vm.vfs_cache_pressure if host.vm else None
    if value is None:
        return []
    why = "how eagerly reclaim takes inodes and dentries: below 100 it takes page cache first, so"
    why += " fewer inodes die in reclaim"
    eager = value > 100 or (value == 100 and is_thin(host))
    level = Level.WARN if eager or value == 0 else Level.OK
    if value == 0:
        why = "0 never takes inodes: memory ends in OOM"
    fix = "sysctl -w vm.vfs_cache_pressure=50" if level is Level.WARN else ""
    return [_line("vfs_cache_pressure", level, str(value), why, fix)]


def _pressure(host: HostState) -> list[Advice]:
    for found in host.pressure:
        if found.resource == "memory":
            level = Level.FAIL if found.full > 10 else Level.WARN if found.some > 1 else Level.OK
            value = f"some {found.some:.2f} %, full {found.full:.2f} % of the last 10 s"
            return [_line("pressure", level, value, "tasks wait for memory: reclaim is at work")]
    if "pressure" in host.problems:
        return []
    return [
        _line("pressure", Level.UNKNOWN, "no PSI in this kernel", "Linux 4.20, CONFIG_PSI, psi=1")
    ]


def _slabs(host: HostState) -> list[Advice]:
    lines = []
    memory = host.memory
    if memory and memory.slab_unreclaimable is not None:
        much = memory.slab_unreclaimable > memory.total // 4
        lines.append(
            _line(
                "slabs",
                Level.WARN if much else Level.OK,
                f"{size(memory.slab_reclaimable or 0)} reclaimable,"
                f" {size(memory.slab_unreclaimable)} not",
                "what cannot be reclaimed leaves less for page cache; a leak shows here",
                "slabtop -s c" if much else "",
            )
        )
    cache = host.slabs.cache("ext4_inode_cache") if host.slabs else None
    if cache is not None:
        idle = cache.total - cache.active
        much = bool(memory) and memory is not None and cache.bytes > memory.total // 5
        lines.append(
            _line(
                "ext4 inodes",
                Level.WARN if much else Level.OK,
                f"{cache.active} in {size(cache.bytes)}, room for {idle} more",
                "these are the objects of this bug; each dies by deletion, unmount or reclaim",
                "ebpfwatch cache   # who holds them" if much else "",
            )
        )
    return lines


def _files(host: HostState) -> list[Advice]:
    vfs = host.vfs
    if vfs is None:
        return []
    many = vfs.files > 0.8 * vfs.files_max
    negative = "" if vfs.dentries_negative is None else f", {vfs.dentries_negative} negative"
    value = (
        f"{vfs.files} open files, {vfs.inodes} inodes, {vfs.dentries} dentries"
        f" ({vfs.dentries_unused} unused{negative})"
    )
    why = (
        "an open file pins its inode and its pages: a program that holds many leaves little to take"
    )
    fix = "lsof -n | awk '{print $1}' | sort | uniq -c | sort -n | tail" if many else ""
    return [_line("open files", Level.WARN if many else Level.OK, value, why, fix)]
