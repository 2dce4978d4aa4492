"""ext4 mounts from /proc/self/mountinfo (proc_pid_mountinfo(5))."""

from __future__ import annotations

import dataclasses
import re

from ebpfwatch.host import ParseError
from ebpfwatch.paths import Paths

__all__ = ["Mount", "ext4_mounts", "parse"]


@dataclasses.dataclass(frozen=True)
class Mount:
    """Where a filesystem can be reached; options are the mount's and the superblock's."""

    major: int
    minor: int
    path: str
    read_only: bool
    options: tuple[str, ...]


def ext4_mounts(paths: Paths) -> tuple[Mount, ...]:
    """One mount for each ext4 device, a writable one if there is one; raises
    ``OSError``/``ParseError``.
    """
    text = (paths.proc / "self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    by_device: dict[tuple[int, int], Mount] = {}
    for mount in parse(text, "ext4"):
        known = by_device.get((mount.major, mount.minor))
        if known is None or (known.read_only and not mount.read_only):
            by_device[mount.major, mount.minor] = mount
    return tuple(by_device.values())


def parse(text: str, filesystem: str) -> tuple[Mount, ...]:
    """All mounts of one filesystem type, in order."""
    mounts = []
    # not splitlines(): a mount point may hold any other line separator of Unicode
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        fields = line.split(" ")
        try:
            dash = fields.index("-", 6)
            kind, superblock = fields[dash + 1], fields[dash + 3]
            major, minor = (int(part) for part in fields[2].split(":"))
        except (ValueError, IndexError):
            raise ParseError(f"/proc/self/mountinfo line {number}: {line[:80]!r}") from None
        if kind != filesystem:
            continue
        options = (*fields[5].split(","), *superblock.split(","))
        mounts.append(Mount(major, minor, _unescape(fields[4]), "ro" in options, options))
    return tuple(mounts)


def _unescape(path: str) -> str:
    return re.sub(r"\\([0-3][0-7]{2})", lambda octal: chr(int(octal.group(1), 8)), path)
