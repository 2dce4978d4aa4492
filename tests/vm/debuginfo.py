"""A guest's kernel's vmlinux: beside one that was brought; Debian's (300 MB) is fetched once."""

from __future__ import annotations

from pathlib import Path

from tests.vm.kernels import BROUGHT, DEBIAN, Kernel, fetch
from tests.vm.store import CACHE, locked, making

__all__ = ["vmlinux"]


def vmlinux(kernel: Kernel) -> Path:
    """The kernel's vmlinux with DWARF; ``SystemExit`` says where there is none."""
    if kernel.name not in DEBIAN:
        beside = BROUGHT / kernel.name / "vmlinux"
        if not beside.exists():
            raise SystemExit(f"no debug symbols for {kernel.name}: there is no {beside}")
        return beside
    target = CACHE / "debug" / kernel.name
    with locked():
        if not (target / "done").exists():
            with making(target) as directory:
                wanted = [f"linux-image-{kernel.release}-dbg"]
                fetch(DEBIAN[kernel.name][0], wanted, directory)
                (directory / "done").touch()
    return next(target.glob(f"usr/lib/debug/**/vmlinux-{kernel.release}"), None) or next(
        target.glob("usr/lib/debug/**/vmlinux")
    )
