"""Hooks that are attached only while there is a reason: they would cost too much always.

A reason is a broken rule, a message of the kernel that an object is damaged, or somebody's wish
(SIGUSR2).  What is armed, for how long and why stands in the log.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from ebpfwatch.catalogue.roles import ARMED, Hook
from ebpfwatch.daemon.liveness import Liveness
from ebpfwatch.errors import EbpfwatchError
from ebpfwatch.kernel.session import Session
from ebpfwatch.system import privileges
from ebpfwatch.system.log import say

__all__ = ["Arming"]


class Arming:
    """``on`` are the roles that are attached for a reason now; ``roles`` all that could be.

    ``minutes`` 0: never.
    """

    def __init__(self, session: Session, minutes: float, liveness: Liveness) -> None:
        self._session = session
        self._minutes = minutes
        self._liveness = liveness
        known = {place.role for place in session.links.places}
        self.roles = tuple(
            hook.value
            for hook in Hook
            if hook.value in ARMED & known and not session.links.attached(hook.value)
        )
        self.on: tuple[str, ...] = ()
        self._until = 0.0
        self._over_budget = False
        for role in self.roles:
            liveness.off(role)

    @property
    def needs(self) -> tuple[str, ...]:
        """The capability that attaching takes: perf_event_open() of a kprobe."""
        kinds = {place.kind for place in self._session.links.places if place.role in self.roles}
        return ("perfmon",) if self._minutes and "kprobe" in kinds else ()

    def arm(self, why: str) -> None:
        """Attach them, or keep them for longer; what costs too much already is not made dearer."""
        if not self._minutes or not self.roles or self._over_budget:
            return
        self._until = time.monotonic() + 60 * self._minutes
        if self.on:
            return
        self.on = tuple(role for role in self.roles if self._attach(role))
        if self.on:
            watched = "; ".join(f"{role}: {Hook(role).watches}" for role in self.on)
            say(f"armed for {self._minutes:g} minutes, because {why} ({watched})", "notice")

    def arm_if(self, reason: str, asked: bool) -> None:
        """Where somebody asked for it (SIGUSR2), or where ``reason`` is not empty."""
        reason = "somebody asked for it (SIGUSR2)" if asked else reason
        if reason:
            self.arm(reason)

    def _attach(self, role: str) -> bool:
        try:
            with _allowed():
                self._session.links.attach(role)
        except EbpfwatchError as error:
            say(f"{error.message}: the hook {role} cannot be armed", "warning")
            return False
        self._liveness.on(role)
        return True

    def look(self, over_budget: bool = False) -> None:
        """Once a tick: detach them when their time is up, or where the watcher costs too much."""
        self._over_budget = over_budget
        if not self.on or not (over_budget or time.monotonic() >= self._until):
            return
        for role in self.on:
            self._session.links.detach(role)
            self._liveness.off(role)
        because = "the watcher costs too much" if over_budget else "their time is up"
        say(f"disarmed: {', '.join(self.on)}: {because}", "notice")
        self.on = ()


@contextlib.contextmanager
def _allowed() -> Iterator[None]:
    """What attaching a kprobe takes, where it was kept: CAP_PERFMON, before Linux 5.8
    CAP_SYS_ADMIN.
    """
    with privileges.raised("sys_admin"), privileges.raised("perfmon"):
        yield
