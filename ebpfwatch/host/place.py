"""The names of a device: its node, and where its filesystem is mounted whole."""

from __future__ import annotations

import os

from ebpfwatch.host.mounts import parse
from ebpfwatch.paths import Paths

__all__ = ["place"]


def place(paths: Paths, major: int, minor: int) -> tuple[str, str]:
    """("vdb", "/mnt") of an ext4 device; "" for what is not known, as after an unmount.

    A bind mount shows only a part, so it cannot begin a path.  Raises ``OSError`` or
    ``ParseError`` where the mounts cannot be read.
    """
    text = (paths.proc / "self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    whole = (
        mount.path
        for mount in parse(text)
        if (mount.major, mount.minor, mount.root) == (major, minor, "/")
    )
    try:
        device = os.path.basename(os.readlink(paths.sys / f"dev/block/{major}:{minor}"))
    except OSError:
        device = ""
    return device, next(whole, "")
