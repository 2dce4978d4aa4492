"""Where what guests are made of is kept, built once."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["CACHE", "fingerprint", "locked"]

CACHE = Path(os.environ.get("EBPFWATCH_VM_CACHE", "/var/cache/ebpfwatch-vm"))


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Two runs at once wait for each other."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fingerprint(*recipe: str) -> str:
    """Part of the name of what a recipe made: an older one's is not taken for it."""
    return hashlib.sha256("\0".join(recipe).encode()).hexdigest()[:8]
