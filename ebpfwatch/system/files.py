"""Files that root reads or runs by their path: what they must be, and who may change them."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

__all__ = ["open_regular", "read_regular", "resolved", "why_not_ours", "why_not_roots"]

_MOST_LINKS = 40  # the kernel's own bound, MAXSYMLINKS in include/linux/namei.h


def open_regular(path: str | Path, flags: int = 0) -> int:
    """The fd of a regular file, open for reading; raises ``OSError`` for anything else.

    A FIFO would keep root waiting for a writer, and a device may do anything when it is opened for
    reading: so the open does not wait (O_NONBLOCK), and what was opened is looked at before the
    first read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | flags)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, "is a directory", str(path))
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return fd


def read_regular(path: str | Path, limit: int, flags: int = 0) -> bytes:
    """At most so many bytes of a regular file; raises ``OSError``."""
    with os.fdopen(open_regular(path, flags), "rb") as file:
        return file.read(limit)


def why_not_ours(directory: Path) -> str:
    """Who else could exchange what we write in this directory, in words; "" if nobody could.
    Raises ``OSError``.
    """
    path = directory.resolve(strict=True)
    for place in (path, *path.parents):
        status = os.stat(place)
        if status.st_uid not in (0, os.geteuid()):
            return f"{place} belongs to user {status.st_uid}"
        # Who may write to a sticky directory may not exchange what is of others in there.
        sticky = place != path and status.st_mode & stat.S_ISVTX
        others = 0o022 if place in (path, path.parent) else 0o002
        if status.st_mode & others and not sticky:
            return f"{place} can be written by others (mode {stat.S_IMODE(status.st_mode):o})"
    return ""


def why_not_roots(path: str) -> str:
    """Who else could change this file or exchange it, in words; "" if nobody could.  Every
    directory on the way to it counts, and every symbolic link.  Raises ``OSError``.
    """
    return _walk(path)[1]


def resolved(path: str) -> str:
    """The path without symbolic links; raises ``OSError``, also where somebody else could change
    what is found there.  As nobody else can, it stays the same file after this look.
    """
    real, why_not = _walk(path)
    if why_not:
        raise OSError(errno.EPERM, why_not, path)
    return real


def _walk(path: str) -> tuple[str, str]:
    """The path without symbolic links, and what is wrong with it or with what leads to it."""
    at, todo, links = "/", path.split("/")[::-1], 0
    why_not = _hands("/", os.lstat("/"))
    while todo and not why_not:
        name = todo.pop()
        if name in ("", "."):
            continue
        if name == "..":
            at = os.path.dirname(at)
            continue
        entry = os.path.join(at, name)
        status = os.lstat(entry)
        why_not = _hands(entry, status)
        if not stat.S_ISLNK(status.st_mode):
            at = entry
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(entry)
        todo += target.split("/")[::-1]
        at = "/" if target.startswith("/") else at
    return at, why_not


def _hands(entry: str, status: os.stat_result) -> str:
    """Who else could replace one step of the path, by its owner or mode.

    In a sticky directory only an entry's owner, the directory's and root may exchange it
    (check_sticky in fs/namei.c).
    """
    if status.st_uid not in (0, os.geteuid()):
        return f"{entry} belongs to user {status.st_uid}"
    if stat.S_ISLNK(status.st_mode):
        return ""  # its mode means nothing
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if status.st_mode & 0o022 and not sticky:
        return f"{entry} can be written by others (mode {stat.S_IMODE(status.st_mode):o})"
    return ""
