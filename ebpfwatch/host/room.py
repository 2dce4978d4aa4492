"""Where a swap file could go. Asked only by `ebpfwatch check`: statvfs may wait for a disk."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable
from typing import Callable

from ebpfwatch.host.disks import Disk
from ebpfwatch.host.mounts import all_mounts
from ebpfwatch.paths import Paths

__all__ = ["Room", "read"]


@dataclasses.dataclass(frozen=True)
class Room:
    """Free bytes of each writable ext4, by mount point; the type of filesystem /tmp is on."""

    free: dict[str, int]
    tmp: str


def read(
    paths: Paths,
    disks: Iterable[Disk],
    statvfs: Callable[[str], os.statvfs_result] = os.statvfs,
) -> Room:
    """Raises ``OSError``/``ParseError`` for the mounts; a disk that does not answer is left out."""
    free: dict[str, int] = {}
    for disk in disks:
        if not disk.read_only:
            with contextlib.suppress(OSError):
                found = statvfs(disk.mount)
                free[disk.mount] = found.f_bavail * found.f_frsize
    above = [mount for mount in all_mounts(paths) if mount.path in ("/", "/tmp")]
    # The last mount on a directory is the one that is seen.
    tmp = max(above, key=lambda mount: len(mount.path), default=None)
    return Room(free, tmp.filesystem if tmp else "")
