"""The ext4 filesystems: what they have noted, how they journal, what they lie on."""

from __future__ import annotations

import datetime

from ebpfwatch.advice import Advice, Level
from ebpfwatch.host.account import errors_of
from ebpfwatch.host.disks import Disk
from ebpfwatch.host.diskstat import DiskStat
from ebpfwatch.host.ext4 import Ext4Errors
from ebpfwatch.host.mounts import none_visible
from ebpfwatch.host.state import HostState

__all__ = ["advise"]

_SECTION = "storage"

_STALLED_SECONDS = 10.0

_LATEST = 253402300799  #: the end of the year 9999: a damaged superblock may say anything

_JOURNAL = {
    "ordered": "the default: this bug is in memory, the journal's mode does not touch it",
    "journal": "data goes through the journal: ext4_evict_inode() may wait for a commit, also in"
    " reclaim, and inodes are dying for longer",
    "writeback": "after a crash files may hold old data: a crash of this bug then costs more",
    "none": "no journal: after a crash of this bug the disk needs a full e2fsck",
    "": "the mode of the journal is not told",
}


def advise(host: HostState) -> list[Advice]:
    """Four lines a filesystem: disk, journal, work, errors."""
    if "disks" in host.problems:
        return [Advice(_SECTION, "ext4", Level.UNKNOWN, host.problems["disks"], "")]
    if not host.disks:
        # Where ext4's own directory could not be read, nothing is known of other mounts.
        what, remedy = none_visible([found.device for found in host.ext4])
        return [Advice(_SECTION, "ext4", Level.FAIL, what, remedy)]
    errors = {found.device: found for found in host.ext4}
    stats = {stat.number: stat for stat in host.disk_stats}
    lines = []
    for disk in host.disks:
        lines += [_disk(disk), _journal(disk)]
        stat = stats.get(disk.number)
        if stat is not None:
            lines.append(_work(disk, stat, host.disk_errors))
        found = errors.get(disk.device)
        if found is not None:
            lines.append(_errors(disk, found))
    if "ext4" in host.problems:
        lines.append(Advice(_SECTION, "errors", Level.UNKNOWN, host.problems["ext4"], ""))
    return lines


def _disk(disk: Disk) -> Advice:
    below = " > ".join((*disk.stack.layers, "+".join(disk.stack.drivers) or "unknown driver"))
    item = f"{disk.mount} disk"
    if disk.stack.passed:
        return Advice(
            _SECTION,
            item,
            Level.WARN,
            f"{below}, {', '.join(disk.stack.passed)} passed through (vfio)",
            "a real device writes into this guest's memory by itself: its firmware, or the host's"
            " IOMMU, could damage a slab unseen; compare with the same load on a virtio disk",
        )
    if not disk.stack.layers:
        return Advice(_SECTION, item, Level.UNKNOWN, "not in /sys/dev/block", "")
    return Advice(
        _SECTION,
        item,
        Level.OK,
        below,
        "not passed through: only this kernel's own driver moves its data",
    )


def _journal(disk: Disk) -> Advice:
    level = {"ordered": Level.OK, "": Level.UNKNOWN}.get(disk.journal, Level.WARN)
    value = f"data={disk.journal}" if disk.journal not in ("", "none") else disk.journal
    fix = ""
    if disk.journal == "none":
        fix = f"tune2fs -O has_journal /dev/{disk.device}   # unmounted; / from a rescue system"
    elif disk.journal in ("journal", "writeback"):
        fix = "# take data= out of /etc/fstab or rootflags= and mount again: a remount cannot"
    return Advice(
        _SECTION, f"{disk.mount} journal", level, value or "not told", _JOURNAL[disk.journal], fix
    )


def _work(disk: Disk, stat: DiskStat, disk_errors: dict[str, int] | None) -> Advice:
    item = f"{disk.mount} device"
    if not stat.present:
        return Advice(
            _SECTION,
            item,
            Level.FAIL,
            f"{disk.number} is gone, and its filesystem is still mounted",
            "ext4 cannot write any more; inodes that it cannot write out are evicted with errors",
            f"umount -l '{disk.mount}'   # after saving what is in memory only",
        )
    if disk.turned_read_only:
        return Advice(
            _SECTION,
            item,
            Level.FAIL,
            "ext4 has made itself read-only",
            "it met an error of the disk or of its own structures; what the kernel's log says of it"
            " came before everything else",
            "dmesg | grep -E 'EXT4-fs|I/O error|JBD2'",
        )
    mean = stat.request_seconds / stat.requests if stat.requests else 0.0
    value = f"there; {stat.requests} requests of {mean * 1000:.1f} ms on average"
    if stat.stalled_seconds >= _STALLED_SECONDS:
        return Advice(
            _SECTION,
            item,
            Level.WARN,
            f"{stat.in_flight} requests in flight, none completed for {stat.stalled_seconds:.0f} s",
            "the disk does not answer; tasks that wait for it hold their inodes",
        )
    errors = errors_of(disk, disk_errors or {})
    if errors:
        return Advice(
            _SECTION,
            item,
            Level.WARN,
            f"{errors} messages of its errors in the kernel's log",
            "a disk that fails is a mistake of its own; what came after it may be its consequence",
            "dmesg | grep -E 'I/O error|critical .* error|FAILED Result'",
        )
    said = "" if disk_errors is None else ", and the kernel's log has no error of it"
    return Advice(_SECTION, item, Level.OK, value, f"the disk answers{said}")


def _errors(disk: Disk, found: Ext4Errors) -> Advice:
    item = f"{disk.mount} errors"
    if found.errors:
        seconds = max(0, min(found.last_time, _LATEST))
        when = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
        return Advice(
            _SECTION,
            item,
            Level.FAIL,
            f"{found.errors}, the last {when:%Y-%m-%d %H:%M} UTC in {found.last_function or '?'}"
            + (f" ({found.last_error})" if found.last_error else ""),
            "what ext4 holds to be true on disk is not: a damaged inode table alone can make the"
            " same inode die twice; repair before anything else is concluded",
            f"e2fsck -f /dev/{disk.device}   # unmounted; / by fsck.mode=force at the next boot",
        )
    if found.warnings:
        why = "ext4 has warned, and lost nothing by its own account"
        return Advice(
            _SECTION, item, Level.WARN, f"{found.warnings} warnings", why, "dmesg | grep EXT4-fs"
        )
    return Advice(_SECTION, item, Level.OK, "none", "the disk structures are not the cause")
