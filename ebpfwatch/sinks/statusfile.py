"""The state for ``ebpfwatch status``: a small file beside the lock, which every user may read.

It needs no network and no password, and its age tells a daemon that hangs.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

__all__ = ["NAME", "read", "remove", "write"]

NAME = "status.json"
_MAX_BYTES = 1 << 20


def write(directory: Path, body: dict[str, Any]) -> None:
    """Replace it; raises ``OSError``.  On tmpfs, so nothing waits for a disk."""
    temporary = directory / f".{NAME}"
    data = json.dumps({**body, "written": time.time(), "pid": os.getpid()}).encode()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        os.fchmod(fd, 0o644)
    os.rename(temporary, directory / NAME)


def remove(directory: Path) -> None:
    """At an orderly end; never raises."""
    with contextlib.suppress(OSError):
        os.unlink(directory / NAME)


def read(directory: Path) -> tuple[dict[str, Any], float]:
    """The state, and how many seconds ago it was written; raises ``OSError`` or ``ValueError``."""
    fd = os.open(directory / NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, encoding="ascii") as file:
        body = json.loads(file.read(_MAX_BYTES))
        age = time.time() - os.fstat(file.fileno()).st_mtime
    if not isinstance(body, dict) or not isinstance(body.get("level"), str):
        raise ValueError("not a status")
    return body, age
