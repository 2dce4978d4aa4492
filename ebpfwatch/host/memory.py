"""Our own size."""

from __future__ import annotations

import os

from ebpfwatch.paths import Paths

__all__ = ["own_rss"]


def own_rss(paths: Paths) -> int:
    """Resident bytes of this process (/proc/self/statm)."""
    pages = int((paths.proc / "self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
