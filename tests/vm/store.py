"""Where what guests are made of is kept, built once."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

__all__ = ["CACHE", "fingerprint", "locked", "making"]

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


@contextlib.contextmanager
def making(target: Path) -> Iterator[Path]:
    """A path to make ``target`` at: a file or a directory, which does not exist yet.

    What was made takes ``target``'s name when the block ends without an exception, so whatever
    bears that name is whole: a download that broke, a process that was killed and a machine that
    lost its power leave at most ``NAME.partial``, which the next attempt removes first.
    """
    partial = target.with_name(f"{target.name}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove(partial)
    try:
        yield partial
        os.sync()  # the content before the name: rename(2) alone promises no order on the disk
        _remove(target)
        partial.rename(target)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
