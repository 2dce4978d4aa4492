"""The daemon's own log: one line on standard error, which systemd takes into the journal."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

from ebpfwatch.text.printable import printable

__all__ = ["defect", "put", "say"]

_LEVELS = {"err": 3, "warning": 4, "notice": 5, "info": 6}


def defect(error: Exception) -> str:
    """An unexpected exception on one line: what it is, and where it came from."""
    where = ""
    frame = error.__traceback__
    while frame is not None:
        code = frame.tb_frame.f_code
        where = f" ({os.path.basename(code.co_filename)}:{frame.tb_lineno})"
        frame = frame.tb_next
    return f"{type(error).__name__}: {error}{where}"


def put(stream: str, line: str) -> bool:
    """One line on "stdout" or "stderr"; False where it cannot be written (a full disk, no reader).

    The stream is then opened again: what it has buffered would fail each later line, and the exit.
    """
    file: TextIO | None = getattr(sys, stream)
    if file is None:
        return False
    try:
        print(line, file=file, flush=True)
    except (OSError, ValueError):
        with contextlib.suppress(OSError):
            fd = 1 if stream == "stdout" else 2
            again = open(fd, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
            setattr(sys, stream, again)
        return False
    return True


def say(text: str, level: str = "info", journal: bool | None = None) -> None:
    """Print one line on stderr, whatever is in the text; never raises.

    Under systemd the ``<N>`` prefix gives the line its priority in the journal
    (sd-daemon(3)); on a terminal it would only be noise.
    """
    if journal is None:
        journal = _stderr_is_journal()
    prefix = f"<{_LEVELS[level]}>" if journal else ""
    put("stderr", f"{prefix}ebpfwatch: {printable(text)}")


def _stderr_is_journal() -> bool:
    """True when systemd connected our stderr to the journal (JOURNAL_STREAM, systemd.exec(5))."""
    stream = os.environ.get("JOURNAL_STREAM", "")
    try:
        stat = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return stream == f"{stat.st_dev}:{stat.st_ino}"
