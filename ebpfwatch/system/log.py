"""The daemon's own log: one line on standard error, which systemd takes into the journal.

Whoever reads it may stop to: a terminal that is held (Ctrl-S), a pipe whose reader sleeps.  A
command then waits, as every program does.  The daemon must not: a thread of its own writes, and
what finds no room is lost and counted.
"""

from __future__ import annotations

import collections
import contextlib
import os
import select
import sys
import threading
import time
from typing import TextIO

from ebpfwatch.text.printable import printable

__all__ = ["defect", "from_a_thread", "put", "say", "settle"]

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


_FDS = {"stdout": 1, "stderr": 2}
_MOST_BYTES = 256 << 10


class _Writer:
    """Writes lines in a thread.  By file descriptor: a buffer that a stuck thread has locked could
    not be flushed at exit.
    """

    def __init__(self) -> None:
        self._lines: collections.deque[tuple[str, bytes]] = collections.deque()
        self._bytes = 0
        self._lost = 0
        self._failed: set[str] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._busy = False

    def put(self, stream: str, line: str) -> bool:
        """False where there is no room, or where the stream took none the last time."""
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._changed:
            if self._bytes + len(data) > _MOST_BYTES:
                self._lost += 1
                return False
            self._lines.append((stream, data))
            self._bytes += len(data)
            self._changed.notify_all()
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="log", daemon=True)
                with contextlib.suppress(RuntimeError):  # none to be had; the next line tries again
                    thread.start()
                    self._thread = thread
        return stream not in self._failed

    def settle(self, seconds: float) -> bool:
        """Wait for what is waiting; False if that takes longer."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while self._lines or self._busy:
                left = deadline - time.monotonic()
                if left <= 0 or self._thread is None:
                    return False
                self._changed.wait(left)
        return True

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                while not self._lines:
                    self._changed.wait()
                stream, data = self._lines.popleft()
                self._bytes -= len(data)
                lost, self._lost, self._busy = self._lost, 0, True
            self._write(stream, data)
            if lost:
                self._write("stderr", _head("warning") + b"%d lines of this log are lost:" % lost)
                self._write("stderr", b" nobody read it\n")

    def _write(self, stream: str, data: bytes) -> None:
        self._failed.discard(stream)
        while data:
            try:
                data = data[os.write(_FDS[stream], data) :]
            except BlockingIOError:  # somebody has made it non-blocking
                select.select([], [_FDS[stream]], [])
            except (OSError, ValueError):
                self._failed.add(stream)
                return


_writer: _Writer | None = None


def from_a_thread() -> None:
    """From here on no line waits for its reader; call it once privileges are dropped."""
    global _writer
    _writer = _writer or _Writer()


def settle(seconds: float) -> bool:
    """Wait for the lines that are waiting, then write as a command does; False, and no change,
    where nobody reads them.
    """
    global _writer
    if _writer is not None:
        if not _writer.settle(seconds):
            return False
        _writer = None
    return True


def put(stream: str, line: str) -> bool:
    """One line on "stdout" or "stderr"; False where it cannot be written (a full disk, no reader).

    The stream is then opened again: what it has buffered would fail each later line, and the exit.
    """
    if _writer is not None:
        return _writer.put(stream, line)
    file: TextIO | None = getattr(sys, stream)
    if file is None:
        return False
    try:
        print(line, file=file, flush=True)
    except (OSError, ValueError):
        with contextlib.suppress(OSError):
            again = open(
                _FDS[stream], "w", encoding="utf-8", errors="backslashreplace", closefd=False
            )
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


def _head(level: str) -> bytes:
    prefix = f"<{_LEVELS[level]}>" if _stderr_is_journal() else ""
    return f"{prefix}ebpfwatch: ".encode()


def _stderr_is_journal() -> bool:
    """True when systemd connected our stderr to the journal (JOURNAL_STREAM, systemd.exec(5))."""
    stream = os.environ.get("JOURNAL_STREAM", "")
    try:
        stat = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return stream == f"{stat.st_dev}:{stat.st_ino}"
