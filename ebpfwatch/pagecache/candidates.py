"""Files worth asking about: what processes have open or mapped, then what a walk finds.

A walk itself fills memory: each file it looks at becomes a cached inode and a dentry.  It ends
when told so (``Survey``), never crosses into another filesystem, and stays away from those that
may hang.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Callable

from ebpfwatch.host.mounts import Mount, one_a_device, unescape
from ebpfwatch.paths import Paths

__all__ = ["SLOW", "Candidate", "NamedFiles", "walkable"]

#: Filesystems on which a look-up may wait for another machine or process, or means nothing.
SLOW = ("nfs", "cifs", "smb", "ceph", "9p", "fuse", "autofs", "afs", "lustre", "gluster", "ocfs2")
#: Those whose files have pages of their own in memory.
_CACHED = ("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs", "vfat", "exfat", "iso9660")
_CACHED_TOO = ("squashfs", "erofs", "ntfs3", "overlay", "zfs", "udf", "jfs", "nilfs2")

#: What to open, and what to call it.
Candidate = tuple[str, str]


class NamedFiles:
    """Files of processes; ``hidden`` counts processes whose files this user may not see."""

    def __init__(self, paths: Paths) -> None:
        self._proc = paths.proc
        self.hidden = 0
        self.processes = 0

    def __iter__(self) -> Iterator[Candidate]:
        """Each open or mapped file once a process; processes may come and go meanwhile."""
        pids = sorted(int(name) for name in os.listdir(self._proc) if name.isdigit())
        for pid in pids:
            self.processes += 1
            try:
                yield from self._open(pid)
                yield from self._mapped(pid)
            except PermissionError:
                self.hidden += 1
            except OSError:
                self.processes -= 1  # it has ended

    def _open(self, pid: int) -> Iterator[Candidate]:
        directory = f"{self._proc}/{pid}/fd"
        for name in os.listdir(directory):
            link = f"{directory}/{name}"
            with contextlib.suppress(OSError):
                target = os.readlink(link)
                if target.startswith("/") and not target.startswith("/dev/"):
                    # By the link, so that a deleted file, or one of another mount namespace, opens.
                    yield link, target

    def _mapped(self, pid: int) -> Iterator[Candidate]:
        seen = ""
        with open(f"{self._proc}/{pid}/maps", encoding="utf-8", errors="surrogateescape") as maps:
            for line in maps:
                words = line.rstrip("\n").split(None, 5)
                if len(words) < 6 or not words[5].startswith("/") or words[5] == seen:
                    continue
                seen = words[5]
                link = f"{self._proc}/{pid}/map_files/{_range(words[0])}"
                path = unescape(seen)
                yield (link if seen.endswith(" (deleted)") else path), path


def _range(addresses: str) -> str:
    """map_files writes the same range without leading zeros."""
    begin, _, end = addresses.partition("-")
    return f"{begin.lstrip('0') or '0'}-{end.lstrip('0') or '0'}"


def walkable(mounts: tuple[Mount, ...]) -> tuple[list[Mount], list[Mount]]:
    """One mount a device to walk, largest path last; and those that are left alone."""
    one = one_a_device(mounts)
    walked = [m for m in one if m.filesystem in (*_CACHED, *_CACHED_TOO)]
    left = [m for m in one if m.filesystem.startswith(SLOW)]
    return walked, left


def walk(root: str, refused: Callable[[], None]) -> Iterator[os.DirEntry[str]]:
    """The regular files below a directory of the same filesystem, depth first.

    ``refused`` is called for each directory that this user may not read.
    """
    try:
        device = os.stat(root).st_dev
    except OSError:
        return
    todo = [root]
    while todo:
        try:
            entries = os.scandir(todo.pop())
        except PermissionError:
            refused()
            continue
        except OSError:
            continue  # it has vanished
        with contextlib.suppress(OSError), entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_file(follow_symlinks=False):
                        yield entry
                    elif (
                        entry.is_dir(follow_symlinks=False)
                        and entry.stat(follow_symlinks=False).st_dev == device
                    ):
                        todo.append(entry.path)
