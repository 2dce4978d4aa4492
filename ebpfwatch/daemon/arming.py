"""Hooks that are attached only while there is a reason: they would cost too much always.

A reason is a broken rule, a message of the kernel that an object is damaged, an early warning, or
somebody's wish (SIGUSR2).  What is armed, for how long and why stands in the log; what is not seen
without them, in each verdict.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Callable

from ebpfwatch.catalogue.roles import Hook
from ebpfwatch.daemon.liveness import Liveness
from ebpfwatch.errors import EbpfwatchError
from ebpfwatch.kernel.session import Session
from ebpfwatch.sinks.status import Armed
from ebpfwatch.system import privileges
from ebpfwatch.system.clock import ahead_ns
from ebpfwatch.system.log import say

__all__ = ["Arming"]


class Arming:
    """``on`` are the roles that are attached for a reason now; ``roles`` all that could be.

    ``minutes`` 0: never.  ``configure`` tells the programs what ``session.since`` holds.
    """

    def __init__(
        self, session: Session, minutes: float, liveness: Liveness, configure: Callable[[], None]
    ) -> None:
        self._session = session
        self._minutes = minutes
        self._liveness = liveness
        self._configure = configure
        self.roles = tuple(hook.role for hook in session.loaded.hooks if hook.armed)
        self.on: tuple[str, ...] = ()
        self._since = self._why = ""
        self._until = 0.0
        self._rests_until = -float("inf")  # it cost too much: not before
        self._over_budget = False
        self._told_refusal = False
        for role in self.roles:
            liveness.off(role)

    @property
    def needs(self) -> tuple[str, ...]:
        """The capabilities that attaching takes: perf_event_open() of a kprobe."""
        kinds = {place.kind for place in self._session.links.places if place.role in self.roles}
        if not self._minutes or "kprobe" not in kinds:
            return ()
        from ebpfwatch.kernel.attach import perf_is_restricted  # the daemon hardly ever needs it

        return ("perfmon", "sys_admin") if perf_is_restricted() else ("perfmon",)

    @property
    def doubts(self) -> tuple[str, ...]:
        """A reason for every verdict: what is not seen now, or was not seen until a moment ago."""
        lossy = [(role, Hook(role).loss) for role in self.roles if Hook(role).loss]
        return tuple(
            f"the hook {role} has been attached since {self._since} only: before, {loss}"
            if role in self.on
            else f"the hook {role} waits for a reason to be attached: {loss}"
            for role, loss in lossy
        )

    def arm(self, why: str) -> None:
        """Attach them, or keep them for longer; what costs too much already is not made dearer."""
        if not self._minutes or not self.roles:
            return
        now = time.monotonic()
        if self._over_budget or now < self._rests_until:
            if not self._told_refusal:
                say(f"not armed, though there is a reason: the watcher costs too much ({why})",
                    "warning")  # fmt: skip
            self._told_refusal = True
            return
        self._told_refusal = False
        self._until = now + 60 * self._minutes
        self._why = why
        if self.on:
            return
        self.on = tuple(role for role in self.roles if self._attach(role))
        self._since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        if self.on:
            watched = "; ".join(f"{role}: {Hook(role).watches}" for role in self.on)
            say(f"armed for {self._minutes:g} minutes, because {why} ({watched})", "notice")

    def state(self) -> Armed:
        """What is attached for a reason now."""
        until = self._until + ahead_ns(time.CLOCK_REALTIME) / 1e9
        return Armed(self.on, self._why, until) if self.on else Armed()

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
        if role in self._session.since:
            # Not before the hook is there: what happened on the way to it was not seen.
            self._session.since[role] = time.monotonic_ns()
            self._configure()
        self._liveness.on(role)
        return True

    def look(self, over_budget: bool = False) -> None:
        """Once a tick: detach them when their time is up, or where the watcher costs too much.

        What did cost too much is not armed again for as long as it would have been armed: the
        kernel may repeat its messages every second.
        """
        self._over_budget = over_budget
        now = time.monotonic()
        if not self.on or not (over_budget or now >= self._until):
            return
        for role in self.on:
            self._session.links.detach(role)
            self._liveness.off(role)
        if over_budget:
            self._rests_until = now + 60 * self._minutes
        because = "the watcher costs too much" if over_budget else "their time is up"
        lost = "".join(f"; {Hook(role).loss}" for role in self.on if Hook(role).loss)
        say(f"disarmed: {', '.join(self.on)}: {because}{lost}", "notice")
        self.on = ()


@contextlib.contextmanager
def _allowed() -> Iterator[None]:
    """What attaching a kprobe takes, where it was kept: CAP_PERFMON, before Linux 5.8 and where a
    distribution restricts perf CAP_SYS_ADMIN.
    """
    with privileges.raised("sys_admin"), privileges.raised("perfmon"):
        yield
