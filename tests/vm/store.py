"""Where what guests are made of is kept, built once."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["CACHE", "locked"]

CACHE = Path(os.environ.get("EBPFWATCH_VM_CACHE", "/var/cache/ebpfwatch-vm"))


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Two runs at once wait for each other."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
