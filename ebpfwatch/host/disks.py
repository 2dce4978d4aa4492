"""Each ext4 filesystem with its journal's mode and the disk it lies on."""

from __future__ import annotations

import dataclasses
import re

from ebpfwatch.host.blockdev import Stack, behind
from ebpfwatch.host.fields import optional
from ebpfwatch.host.mounts import Mount, all_mounts, one_a_device
from ebpfwatch.paths import Paths

__all__ = ["JOURNALS", "Disk", "DiskReader"]

#: Values of ``Disk.journal``; "none" is an ext4 without a journal, "" one that does not tell.
JOURNALS = ("ordered", "journal", "writeback", "none", "")

_MODE = re.compile(r"^data=(\w+)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Disk:
    """``device`` is the kernel's name ("vda2"), ``number`` its numbers ("254:2"); ``options`` are
    what mountinfo shows.  ``turned_read_only``: ext4 has done that itself, after an error.
    """

    mount: str
    device: str
    read_only: bool
    journal: str
    options: tuple[str, ...]
    stack: Stack
    number: str = ""
    turned_read_only: bool = False


class DiskReader:
    """Walks the stacks again only when the mounts have changed."""

    def __init__(self) -> None:
        self._mounts: tuple[Mount, ...] = ()
        self._disks: tuple[Disk, ...] = ()

    def read(self, paths: Paths) -> tuple[Disk, ...]:
        """The mounted ext4 filesystems; raises ``OSError`` or ``ParseError``."""
        mounts = all_mounts(paths)
        if mounts != self._mounts:
            self._disks = _disks(paths, mounts)
            self._mounts = mounts
        return self._disks


def _disks(paths: Paths, mounts: tuple[Mount, ...]) -> tuple[Disk, ...]:
    mounted = {mount.path: mount for mount in mounts}
    return tuple(
        _disk(paths, mount, behind(paths, mount.major, mount.minor, mounted))
        for mount in one_a_device(mount for mount in mounts if mount.filesystem == "ext4")
    )


def _disk(paths: Paths, mount: Mount, stack: Stack) -> Disk:
    device = stack.layers[0].partition(" ")[0] if stack.layers else ""
    shown = optional(paths.proc / "fs/ext4" / device / "options") if device else None
    return Disk(
        mount.path,
        device,
        mount.read_only,
        _journal(mount, shown),
        mount.options,
        stack,
        f"{mount.major}:{mount.minor}",
        mount.turned_read_only,
    )


def _journal(mount: Mount, shown: str | None) -> str:
    """The journal's mode. /proc/fs/ext4 tells it always; mountinfo only where it is no default."""
    found = _MODE.search("\n".join(mount.options)) or _MODE.search(shown or "")
    if found:
        return found.group(1) if found.group(1) in JOURNALS else ""
    return "" if shown is None else "none"
