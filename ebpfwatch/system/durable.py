"""A file that is there whole or not at all, whatever happens to the machine meanwhile."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["PREFIX", "create", "write"]

#: Of the names that are being written; one that is found later was cut off and can go.
PREFIX = ".writing-"


def create(path: Path) -> int:
    """The fd of a new file that only we may read; raises ``OSError``, also if it is there."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)


def write(path: Path, data: bytes) -> None:
    """Put this in place of the file; raises ``OSError`` (full disk ...) and then leaves nothing."""
    temporary = path.with_name(f"{PREFIX}{path.name}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    try:
        with os.fdopen(create(temporary), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
        _sync_directory(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _sync_directory(path: Path) -> None:
    """Without it a name may be gone with the power: the file's own fsync does not hold a rename."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
