"""Directories of root's that nobody else can open: nobody can hold their lock, or exchange what is
in them, so a file of ours may have a name there.
"""

from __future__ import annotations

import os

from ebpfwatch.system.random_bytes import random_bytes

__all__ = ["device_of", "open_closed", "unused_name"]


def open_closed(place: str, dev: tuple[int, int], how: int = os.O_PATH) -> int | None:
    """The directory, opened, if it is such a one and on this device; None if it is not."""
    try:
        directory = os.open(place, how | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    status = os.fstat(directory)
    if device_of(status) == dev and _is_closed(status):
        return directory
    os.close(directory)
    return None


def _is_closed(status: os.stat_result) -> bool:
    others = 0o007 if status.st_gid == 0 else 0o077
    return status.st_uid == os.geteuid() and not status.st_mode & others


def device_of(status: os.stat_result) -> tuple[int, int]:
    """(major, minor) of the file system."""
    return os.major(status.st_dev), os.minor(status.st_dev)


def unused_name(purpose: str) -> str:
    """One that nobody can be waiting at."""
    return f".ebpfwatch-{purpose}-{random_bytes(8).hex()}"
