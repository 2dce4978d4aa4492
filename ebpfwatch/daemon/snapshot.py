"""Who asks for the state gets the same one for a second, from any thread."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from pathlib import Path
from typing import Callable

from ebpfwatch.sinks import statusfile, summary
from ebpfwatch.sinks.status import Status

__all__ = ["Snapshots"]

_SECONDS = 1.0


class Snapshots:
    """``take`` makes a new one; it is called from whichever thread asks, never from two at once."""

    def __init__(self, take: Callable[[], Status]) -> None:
        self._take = take
        self._lock = threading.Lock()
        self._last: Status | None = None
        self._at = -float("inf")

    def status(self) -> Status:
        """The state of everything, at most a second old."""
        with self._lock:
            now = time.monotonic()
            if self._last is None or now - self._at >= _SECONDS:
                self._last = self._take()
                self._at = now
            return self._last

    def write(self, directory: Path, url: str, state_directory: str) -> None:
        """For `ebpfwatch status`, which sees by the file's age that we hang; never raises."""
        body = summary.to_json(self.status(), url, state_directory)
        with contextlib.suppress(OSError):
            statusfile.write(directory, body)

    def outdate(self) -> None:
        """Something has happened that the next who asks shall see."""
        self._at = -float("inf")

    def freeze(self, started: float) -> None:
        """From here on what was: nobody must read fds that are about to be closed."""
        with self._lock:
            last = self._last or Status(started)
            self._last = dataclasses.replace(last, ready=False)
            self._at = float("inf")
