"""Buffers of CPUs that went offline and came back are opened anew (kernels without a ring
buffer).
"""

from __future__ import annotations

import time

from ebpfwatch.kernel.session import Session
from ebpfwatch.system import privileges
from ebpfwatch.system.log import say

__all__ = ["Mending"]

_AGAIN_SECONDS = 60.0


class Mending:
    """``Session.mend`` with the capability that it needs, and what is said of it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._again_at = 0.0  # after a refusal; 0: none

    def look(self) -> None:
        """Once a tick; never raises."""
        now = time.monotonic()
        if not self._session.mending_needs or now < self._again_at:
            return
        try:
            with privileges.raised("sys_admin"):
                count = self._session.mend()
        except OSError as error:
            if not self._again_at:
                say(f"{error.strerror}: what is said there is lost, and counted as submit", "err")
            self._again_at = now + _AGAIN_SECONDS
        else:
            self._again_at = 0.0
            if count:
                say(f"{count} CPU(s) lost their buffer (offline?): it is open again", "notice")
