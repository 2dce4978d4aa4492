"""/proc/sys/fs: open files, inodes and dentries of all filesystems (proc_sys_fs(5))."""

from __future__ import annotations

import dataclasses

from ebpfwatch.host.fields import numbers, text
from ebpfwatch.paths import Paths

__all__ = ["Vfs", "parse", "read"]


@dataclasses.dataclass(frozen=True)
class Vfs:
    """Counts; ``dentries_negative`` is None before Linux 5.0, which does not tell."""

    files: int
    files_max: int
    inodes: int
    inodes_unused: int
    dentries: int
    dentries_unused: int
    dentries_negative: int | None = None


def read(paths: Paths) -> Vfs:
    """This machine's; raises ``OSError`` or ``ParseError``."""
    root = paths.proc / "sys/fs"
    return parse(*(text(root / name) for name in ("file-nr", "inode-nr", "dentry-state")))


def parse(file_nr: str, inode_nr: str, dentry_state: str) -> Vfs:
    """Three files of one line each."""
    files, _, files_max = numbers(file_nr, 3, "/proc/sys/fs/file-nr")[:3]
    inodes, inodes_unused = numbers(inode_nr, 2, "/proc/sys/fs/inode-nr")[:2]
    state = numbers(dentry_state, 6, "/proc/sys/fs/dentry-state")
    # Since Linux commit af0c9af1b3f6 ("fs/dcache: Track & report number of negative dentries")
    # (in v5.0) the fifth is their number; before, a dummy that is always 0.
    return Vfs(files, files_max, inodes, inodes_unused, state[0], state[1], state[4] or None)
