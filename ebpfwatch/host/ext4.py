"""/sys/fs/ext4: what ext4 itself has found wrong on each disk.

The counts are in the superblock, so they survive a reboot; e2fsck sets them back.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ebpfwatch.host.fields import optional, optional_integer
from ebpfwatch.paths import Paths

__all__ = ["Ext4Errors", "read"]


@dataclasses.dataclass(frozen=True)
class Ext4Errors:
    """Of one device; ``last_time`` in seconds since the epoch, 0 if never."""

    device: str
    errors: int
    warnings: int
    last_time: int = 0
    last_function: str = ""
    last_inode: int = 0


def read(paths: Paths) -> tuple[Ext4Errors, ...]:
    """One a mounted device, by name; raises ``OSError`` or ``ParseError``."""
    try:
        directories = sorted((paths.sys / "fs/ext4").iterdir())
    except FileNotFoundError:
        return ()
    found = (_device(directory) for directory in directories if directory.name != "features")
    return tuple(errors for errors in found if errors is not None)


def _device(directory: Path) -> Ext4Errors | None:
    """None where it was unmounted while we looked."""
    errors = optional_integer(directory, "errors_count")
    if errors is None:
        return None
    return Ext4Errors(
        directory.name,
        errors,
        optional_integer(directory, "warning_count") or 0,
        optional_integer(directory, "last_error_time") or 0,
        (optional(directory / "last_error_func") or "").strip(),
        optional_integer(directory, "last_error_ino") or 0,
    )
