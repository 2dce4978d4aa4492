"""/sys/fs/ext4: what ext4 itself has found wrong on each disk.

The counts are in the superblock, so they survive a reboot; e2fsck sets them back.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ebpfwatch.host.fields import optional, optional_integer
from ebpfwatch.paths import Paths

__all__ = ["CODES", "Ext4Errors", "read"]

#: EXT4_ERR_* of fs/ext4/ext4.h (v5.10) that tell a failing disk from a damaged structure.
CODES = {
    2: "I/O error",
    3: "no memory",
    4: "bad checksum",
    5: "damaged structure",
    6: "no space",
    8: "read-only",
    16: "shut down",
}


@dataclasses.dataclass(frozen=True)
class Ext4Errors:
    """Of one device; times in seconds since the epoch, 0 if never.

    ``last_code`` is the superblock's number of the error (``CODES``), 0 where there is none.
    """

    device: str
    errors: int
    warnings: int
    last_time: int = 0
    last_function: str = ""
    last_inode: int = 0
    first_time: int = 0
    first_function: str = ""
    last_code: int = 0

    @property
    def last_error(self) -> str:
        """The last error in a word; "" where the kernel keeps none."""
        return CODES.get(self.last_code, str(self.last_code) if self.last_code else "")


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
        optional_integer(directory, "first_error_time") or 0,
        (optional(directory / "first_error_func") or "").strip(),
        optional_integer(directory, "last_error_errcode") or 0,
    )
