"""Signals as flags, and an fd that wakes a select: nothing is done inside a handler.

Not as exceptions: those would be swallowed inside the C callbacks of the ring buffer.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

__all__ = ["Signals"]


class Signals:
    """``fd`` is readable once a signal has come."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self._came: set[int] = set()
        self.fd, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._came.add(number)

    @property
    def stop(self) -> bool:
        """Whether SIGTERM or SIGINT has come; that stays."""
        return signal.SIGTERM in self._came or signal.SIGINT in self._came

    def take(self, number: signal.Signals) -> bool:
        """Whether this one has come since it was last asked for."""
        came = number in self._came
        self._came.discard(number)
        return came

    def drain(self) -> None:
        """Make ``fd`` wait for the next one."""
        os.read(self.fd, 4096)

    def close(self) -> None:
        """The handlers stay, and wake nobody."""
        signal.set_wakeup_fd(-1)
        os.close(self.fd)
        os.close(self._writer)
