"""Mounts from /proc/self/mountinfo (proc_pid_mountinfo(5))."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from ebpfwatch.host import ParseError, fields
from ebpfwatch.paths import Paths

__all__ = [
    "Mount",
    "all_mounts",
    "ext4_elsewhere",
    "ext4_mounts",
    "none_visible",
    "one_a_device",
    "parse",
    "unescape",
]


_TURNED = frozenset(("ro", "emergency_ro", "shutdown"))


@dataclasses.dataclass(frozen=True)
class Mount:
    """Where a filesystem can be reached; options are the mount's and the superblock's.

    ``root`` is the directory of the filesystem that is mounted there: not "/" for a bind mount.
    ``turned_read_only``: the filesystem is read-only and was not mounted so (mount(8) sets both
    flags); ext4 does that to itself after an error.
    """

    major: int
    minor: int
    path: str
    read_only: bool
    options: tuple[str, ...]
    filesystem: str
    root: str = "/"
    turned_read_only: bool = False


def ext4_mounts(paths: Paths) -> tuple[Mount, ...]:
    """One mount for each ext4 device, a writable one if there is one; raises
    ``OSError``/``ParseError``.
    """
    return one_a_device(mount for mount in all_mounts(paths) if mount.filesystem == "ext4")


def ext4_elsewhere(paths: Paths) -> tuple[str, ...]:
    """The devices of all ext4 filesystems that the kernel has mounted, by name.

    /sys/fs/ext4 has a directory for each, whoever mounted it and wherever (ext4_register_sysfs()),
    while mountinfo shows only what this process can reach: in a chroot or a container that may be
    none.
    """
    try:
        names = {directory.name for directory in (paths.sys / "fs/ext4").iterdir()}
    except OSError:
        return ()
    return tuple(sorted(names - {"features"}))


def none_visible(devices: Sequence[str]) -> tuple[str, str]:
    """What is wrong where this process sees no ext4 mount, and what to do."""
    if not devices:
        return "no ext4 filesystem is mounted, so there is nothing to watch", "mount one"
    return (
        f"ext4 is mounted on this machine ({', '.join(devices)}), but not where this process can"
        " see it: it runs in a chroot or a container",
        "run it outside, or mount a directory of such a filesystem inside",
    )


def all_mounts(paths: Paths) -> tuple[Mount, ...]:
    """Every mount, in order; raises ``OSError``/``ParseError``."""
    return parse(fields.text(paths.proc / "self/mountinfo"))


def one_a_device(mounts: Iterable[Mount]) -> tuple[Mount, ...]:
    """The first mount of each device, or the first writable one."""
    by_device: dict[tuple[int, int], Mount] = {}
    for mount in mounts:
        known = by_device.get((mount.major, mount.minor))
        if known is None or (known.read_only and not mount.read_only):
            by_device[mount.major, mount.minor] = mount
    return tuple(by_device.values())


def parse(text: str) -> tuple[Mount, ...]:
    """All mounts, in order."""
    mounts = []
    # not splitlines(): a mount point may hold any other line separator of Unicode
    for number, line in enumerate(fields.whole(text, "/proc/self/mountinfo").split("\n"), 1):
        if not line:
            continue
        words = line.split(" ")
        try:
            dash = words.index("-", 6)
            kind, superblock = words[dash + 1], words[dash + 3]
            major, minor = (int(part) for part in words[2].split(":"))
        except (ValueError, IndexError):
            raise ParseError(f"/proc/self/mountinfo line {number}: {line[:80]!r}") from None
        own, shared = words[5].split(","), superblock.split(",")
        # ext4_show_options(): "emergency_ro" after an error where that does not set the flag of the
        # superblock any more, "shutdown" where the device went (both since v6.15).
        turned = "rw" in own and not _TURNED.isdisjoint(shared)
        options = (*own, *shared)
        path, root = unescape(words[4]), unescape(words[3])
        read_only = "ro" in options or turned
        mounts.append(Mount(major, minor, path, read_only, options, kind, root, turned))
    return tuple(mounts)


def unescape(path: str) -> str:
    """A path as it is; the kernel writes spaces and the like in octal."""
    if "\\" not in path:
        return path
    return re.sub(r"\\([0-3][0-7]{2})", lambda octal: chr(int(octal.group(1), 8)), path)
