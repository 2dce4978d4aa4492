"""The remedies people plan when they meet this bug, judged by this machine's numbers.

Nothing of it has been done: OK is a plan that helps or does no harm here, WARN one that has a
price or misses the bug, FAIL one that would harm this machine.  So these lines do not count for
the exit code.
"""

from __future__ import annotations

from ebpfwatch.advice import Advice, Level, boot_with, percent, size
from ebpfwatch.advice.memory import has_room, is_thin, swap_commands, swap_wanted
from ebpfwatch.host.meminfo import Memory
from ebpfwatch.host.state import HostState

__all__ = ["CRASHKERNEL", "advise", "crashkernel_for"]

_SECTION = "plans"
_GIB = 1 << 30
_MIB = 1 << 20

CRASHKERNEL = "2G-4G:320M,4G-32G:512M,32G-64G:1024M,64G-128G:2048M,128G-:4096M"

#: (from this much RAM, reserve), largest first: the rows of ``CRASHKERNEL``.
_ROWS = tuple(
    (ram * _GIB, mib * _MIB)
    for ram, mib in ((128, 4096), (64, 2048), (32, 1024), (4, 512), (2, 320))
)

_SWAP = 32 * _GIB
_RATIO = 90
_HUGE_PAGES = 128

#: Bytes that slub_debug=UFPZ adds to an object: two tracks, red zones and a moved free pointer. A
#: kernel with a stack depot (5.19) keeps a number in a track, others 16 return addresses.
_DEBUG_LEAST, _DEBUG_MOST = 80, 330


def advise(host: HostState) -> list[Advice]:
    """One line a plan that can be judged; meminfo is needed for most of them."""
    memory = host.memory
    lines = [_data_journal(host), _slub_debug(host)]
    if memory is not None:
        lines = [_crashkernel(host, memory), *lines, _swap_file(host, memory)]
        lines += [_overcommit(memory), _dirty(host, memory), _huge(host, memory)]
    return lines


def _line(item: str, level: Level, value: str, why: str, command: str = "") -> Advice:
    return Advice(_SECTION, item, level, value, why, command)


def crashkernel_for(ram: int) -> int:
    """Bytes that the table reserves on a machine with that much RAM."""
    return next((reserve for least, reserve in _ROWS if ram >= least), 0)


def _crashkernel(host: HostState, memory: Memory) -> Advice:
    # The kernel's own count of RAM is a little more than MemTotal, which lacks what it reserved.
    reserve = crashkernel_for(int(memory.total * 1.02))
    crash = host.crash
    item = "crashkernel by RAM size"
    if crash is not None and crash.crashkernel_bytes is None and not crash.kdump_loaded:
        why = "nothing would use the memory that is set aside; pstore (ramoops) needs no kexec"
        return _line(item, Level.FAIL, "this kernel has no kexec", why)
    if not reserve:
        value = f"{size(memory.total)} RAM: the table has no row below 2 GiB, nothing is reserved"
        why = "give a size by hand, or use ramoops, which needs 1 MB"
        return _line(item, Level.WARN, value, why, boot_with("crashkernel=192M"))
    value = f"{size(reserve)} of {size(memory.total)}, {percent(reserve, memory.total)}"
    why = "right for this size; that memory is gone for everything else"
    if reserve >= 2048 * _MIB:
        why += "; an arm64 kernel before 6.0 reserves only below 4 GiB and may find no such block"
    if crash is not None and crash.kdump_loaded:
        why = "kdump is loaded already: change it only if a dump has failed for lack of memory"
        return _line(item, Level.OK, value, why)
    free = sum(zone.free for zone in host.zones)
    level = Level.OK if free > 2 * reserve else Level.WARN
    if level is Level.WARN:
        why += f"; with {size(free)} free today, reclaim will come sooner"
    return _line(item, level, value, why, boot_with(f"crashkernel={CRASHKERNEL}"))


def _data_journal(host: HostState) -> Advice:
    item = "rootflags=data=journal"
    root = next((disk for disk in host.disks if disk.mount == "/"), None)
    if root is None:
        return _line(item, Level.UNKNOWN, "/ is not seen as ext4", "")
    if root.journal == "none":
        return _line(
            item,
            Level.FAIL,
            f"{root.device} has no journal",
            "ext4 refuses data= without a journal: / would not mount and the machine not boot",
        )
    forbidden = [
        o for o in root.options if o in ("delalloc", "dioread_nolock", "dax", "dax=always")
    ]
    if forbidden:
        return _line(
            item,
            Level.FAIL,
            f"/ is mounted with {', '.join(forbidden)}",
            "ext4 refuses that together with data=journal: / would not mount",
        )
    if root.journal == "journal":
        return _line(item, Level.WARN, "in force", "it does not touch this bug; see storage")
    return _line(
        item,
        Level.WARN,
        f"/ is data={root.journal}" if root.journal else "/ does not tell its mode",
        "this bug is in memory, not on the disk. Every byte would be written twice, delayed"
        " allocation and direct I/O end, and ext4_evict_inode() may wait for a commit, also in"
        " reclaim: the window in which an inode is dying gets longer",
    )


def _slub_debug(host: HostState) -> Advice:
    item = "slub_debug=UFPZ"
    if host.crash and host.crash.slub_debug and set("UFPZ") <= set(host.crash.slub_debug):
        return _line(item, Level.OK, "in force for ext4_inode_cache", "see survival")
    why = (
        "finds a second free only while nobody has the object again, and every allocation of every"
        " cache takes the slow path. For ext4's cache alone the price is small. CONFIG_SLUB_DEBUG"
        " is enough: _ON is only the default, and SLUB_STATS counts but finds nothing"
    )
    command = boot_with("slub_debug=UFPZ,ext4_inode_cache")
    slabs = host.slabs
    if slabs is None:
        return _line(item, Level.WARN, "its cost needs /proc/slabinfo", why, command)
    least, most = slabs.objects * _DEBUG_LEAST, slabs.objects * _DEBUG_MOST
    own = slabs.cache("ext4_inode_cache")
    value = f"{size(least)} to {size(most)} more for {slabs.objects} objects"
    if own is not None:
        value += (
            f"; for ext4_inode_cache alone {size(own.total * _DEBUG_LEAST)}"
            f" to {size(own.total * _DEBUG_MOST)}"
        )
    headroom = sum(zone.free - zone.high for zone in host.zones)
    level = Level.FAIL if host.zones and least > headroom else Level.WARN
    return _line(item, level, value, why, command)


def _swap_file(host: HostState, memory: Memory) -> Advice:
    item = "32 GiB swap file by dd in /tmp"
    wanted = swap_wanted(memory)
    if memory.swap_total and memory.swap_total >= wanted:
        return _line(item, Level.OK, f"{size(memory.swap_total)} of swap are there", "not needed")
    command = swap_commands(host, wanted)
    value = f"{size(wanted)} would hold all that is committed and not in RAM"
    if (memory.committed or 0) <= memory.total:
        value = f"{size(wanted)} would do: all that is committed fits into RAM"
    room = host.room
    if room is not None and room.tmp == "tmpfs":
        why = "/tmp is a tmpfs: dd would fill RAM with it, and swapon refuses a file there"
        return _line(item, Level.FAIL, value, why, command)
    free = room.free.get("/") if room else None
    if free is not None and free < _SWAP + _GIB:
        why = f"/ has {size(free)} left: dd would fill it"
        if not has_room(host, wanted):
            why += "; no ext4 here has room enough: add a disk, or zram"
        return _line(item, Level.FAIL, value, why, command)
    return _line(
        item,
        Level.WARN,
        value,
        "works, slowly. Without oflag=direct dd sends 32 GiB through the page cache and starts the"
        " reclaim it is to prevent; in /tmp a clean-up deletes it, and without chmod 600 anyone may"
        " read it",
        command,
    )


def _limit(memory: Memory, ratio: int, swap: int) -> int:
    """CommitLimit as Documentation/vm/overcommit-accounting.rst has it."""
    huge = (memory.huge_total or 0) * (memory.huge_bytes or 0)
    return (memory.total - huge) * ratio // 100 + swap


def _overcommit(memory: Memory) -> Advice:
    item = f"overcommit_memory=2, ratio {_RATIO}"
    committed = memory.committed
    if committed is None:
        return _line(item, Level.UNKNOWN, "Committed_AS is not told", "")
    swap = memory.swap_total or 0
    alone = _limit(memory, _RATIO, swap)
    after = _limit(memory, _RATIO, max(swap, _SWAP))
    value = (
        f"{size(committed)} committed; the limit would be {size(alone)}"
        f" ({percent(committed, alone)}), with 32 GiB of swap {size(after)}"
        f" ({percent(committed, after)})"
    )
    why = "strict accounting prevents OOM, it does not touch this bug"
    if committed > 0.95 * alone:
        why = f"at once every fork and most allocations of every program would fail; {why}"
        if committed < 0.8 * after:
            why += "; if it must be, swap first and only then the limit"
        return _line(item, Level.FAIL, value, why)
    level = Level.WARN if committed > 0.5 * alone else Level.OK
    return _line(item, level, value, why)


def _dirty(host: HostState, memory: Memory) -> Advice:
    item = "dirty_background_ratio=3, dirty_ratio=80, dirty_writeback_centisecs=100"
    dirtyable = memory.dirtyable
    if dirtyable is None:
        return _line(item, Level.UNKNOWN, "what may be dirty is not told", "")
    value = (
        f"writing would begin at {size(dirtyable * 0.03)} and tasks be stopped at"
        f" {size(dirtyable * 0.8)} of dirty pages"
    )
    why = (
        "3 and 100 are good: writing begins early, in small pieces. 80 is not: dirty pages cannot"
        " be reclaimed, so under pressure what is left to take is the slabs, that is inodes"
    )
    return _line(
        item,
        Level.FAIL if is_thin(host) else Level.WARN,
        value,
        why,
        "sysctl -w vm.dirty_background_ratio=3 vm.dirty_ratio=20 vm.dirty_writeback_centisecs=100",
    )


def _huge(host: HostState, memory: Memory) -> Advice:
    item = f"nr_hugepages={_HUGE_PAGES}"
    page = memory.huge_bytes
    if not page:
        return _line(item, Level.UNKNOWN, "this kernel has no huge pages", "")
    if (memory.huge_total or 0) >= _HUGE_PAGES:
        return _line(item, Level.OK, "in force", "see memory")
    cost = _HUGE_PAGES * page
    headroom = sum(zone.free - zone.high for zone in host.zones)
    value = f"{size(cost)} in pages of {size(page)}; {size(headroom)} are free above high"
    why = (
        "taken at once and for good: no page cache, no slab. Only programs that map hugetlbfs use"
        " them; the transparent huge page of the known case is another thing"
    )
    if host.zones and cost > headroom:
        why = f"compaction and reclaim would have to find them now; {why}"
        return _line(item, Level.FAIL, value, why)
    return _line(item, Level.WARN, value, why)
