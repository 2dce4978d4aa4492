"""Debian's debug symbols of a guest's kernel: some 300 MB, fetched once and kept."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.vm.kernels import DEBIAN, Kernel, fetch
from tests.vm.store import CACHE, locked

__all__ = ["vmlinux"]


def vmlinux(kernel: Kernel) -> Path:
    """The kernel's vmlinux with DWARF; ``SystemExit`` for one that has no -dbg package."""
    if kernel.name not in DEBIAN:
        raise SystemExit(
            f"no debug symbols for {kernel.name}: only Debian's kernels have a package"
        )
    target = CACHE / "debug" / kernel.name
    with locked():
        if not (target / "done").exists():
            shutil.rmtree(target, ignore_errors=True)
            fetch(DEBIAN[kernel.name][0], [f"linux-image-{kernel.release}-dbg"], target)
            (target / "done").touch()
    return next(target.glob(f"usr/lib/debug/**/vmlinux-{kernel.release}"), None) or next(
        target.glob("usr/lib/debug/**/vmlinux")
    )
