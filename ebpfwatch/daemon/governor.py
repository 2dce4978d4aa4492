"""The governor: above a CPU budget the watcher gives up what it can do without, and says so.

What is measured, and what cannot be, is argued in docs/performance.md.  ``Load`` and
``Governor`` are pure, ``HookSwitch`` carries the decision out on the links, and ``Governing`` is
all of them together, once a tick.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Callable

from ebpfwatch.catalogue.counters import STEPS
from ebpfwatch.catalogue.roles import Hook
from ebpfwatch.daemon.liveness import Liveness
from ebpfwatch.errors import EbpfwatchError
from ebpfwatch.kernel.session import NEVER, Session
from ebpfwatch.sinks.status import Governed
from ebpfwatch.system import privileges
from ebpfwatch.system.log import say

__all__ = ["STEP_NS", "Governing", "Governor", "HookSwitch", "Load"]

#: What one step of an inode's life costs in the kernel where the hardware's counters were cold:
#: ``make bench`` prints it as the added cost of a life, four steps.
STEP_NS = 250

#: What may go, dearest first, and what is lost with it. Without any of them a double free by ext4's
#: own hand is proven.
EXPENDABLE = {
    hook.value: hook.loss for hook in sorted(Hook, key=lambda hook: hook.goes) if hook.loss
}

_DOWN_AFTER = 2  #: ticks above the budget
_UP_AFTER = 12  #: ticks below half of it; twice as many after each relapse
_PATIENCE = 5  #: relapses that still double it


@dataclasses.dataclass
class Governor:
    """Which step to be on: 0 is everything on, ``steps`` the last.

    ``budget`` is in percent of one CPU, 0 = no governor.  Feed it once a tick.  ``disarm``: what is
    armed is to go, before any step.
    """

    budget: float
    steps: int
    step: int = 0
    disarm: bool = False
    _over: int = 0
    _under: int = 0
    _relapses: int = 0

    def feed(self, percent: float, armed: bool = False) -> int:
        """The step for the next tick, by what the last one has cost; ``armed``: something is."""
        over = 0 < self.budget < percent
        under = not self.budget or percent < self.budget / 2
        self._over = self._over + 1 if over else 0
        self._under = self._under + 1 if under else 0
        self.disarm = armed and self._over >= _DOWN_AFTER
        if self.disarm:
            self._over = 0
        elif self._over >= _DOWN_AFTER and self.step < self.steps:
            self._over = 0
            self._relapses = min(self._relapses + 1, _PATIENCE)
            self.step += 1
        elif self.step and self._under >= _UP_AFTER << max(0, self._relapses - 1):
            self._under = 0
            self.step -= 1
        return self.step


class Load:
    """CPU time of the watcher between two looks, in percent of one CPU.

    The daemon's own is exact, and that of its main thread alone: how much is scraped is up to
    whoever reaches the port, and no hook that goes makes it cheaper.  The programs' is exact while
    ``kernel.bpf_stats_enabled`` is on, else the steps they counted times ``STEP_NS``.  The traps of
    a kprobe on every slab free are in neither: each costs ``slab_free_ns``.
    """

    def __init__(self, slab_free_ns: float) -> None:
        self._slab_free_ns = slab_free_ns
        self._before: tuple[float, float, int, int] | None = None

    def feed(self, now: float, own: float, counters: Mapping[str, int], run_ns: int) -> float:
        """``now`` and ``own`` (CPU) in seconds; ``run_ns`` is the programs' total, 0 if unknown."""
        steps = sum(counters.get(name, 0) for name in STEPS)
        spent = own + counters.get("slab_free", 0) * self._slab_free_ns / 1e9
        before, self._before = self._before, (now, spent, steps, run_ns)
        if before is None or now <= before[0]:
            return 0.0
        measured = run_ns - before[3]
        programs = measured if measured > 0 else (steps - before[2]) * STEP_NS
        return 100 * (spent - before[1] + programs / 1e9) / (now - before[0])


class HookSwitch:
    """Takes hooks off and puts them back. ``off`` are the roles that are given up.

    ``configure`` tells the programs what ``session.since`` holds: before a hook goes, and after it
    has come back, for a program must not mistake "not reported" for "did not happen".
    ``allowed`` surrounds an attach, which is a privilege on some kernels.
    """

    def __init__(
        self,
        session: Session,
        configure: Callable[[], None],
        allowed: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._session = session
        self._configure = configure
        self._allowed = allowed
        # Where it is the only one that sees the free, it is not expendable.
        alone = not session.links.attached("rcu_free")
        self.roles: Sequence[str] = tuple(
            role
            for role in EXPENDABLE
            if session.links.attached(role) and not (role == "any_free" and alone)
        )
        self.off: tuple[str, ...] = ()
        self._stuck = False

    def go(self, step: int, percent: float) -> tuple[str, ...]:
        """Carry out the step; returns the roles whose links have changed."""
        wanted = tuple(self.roles[:step])
        for role in (role for role in wanted if role not in self.off):
            # What any_free concludes, it concludes while it runs: nothing to be told before.
            if role != "any_free":
                self._session.since[role] = NEVER
                self._configure()
            self._session.links.detach(role)
            say(f"governor: {percent:.1f} % of a CPU is over the budget: the hook {role} is off;"
                f" {EXPENDABLE[role]}", "warning")  # fmt: skip
            self.off = (*self.off, role)
            return (role,)
        for role in (role for role in self.off if role not in wanted):
            return (role,) if self._put_back(role) else ()
        return ()

    def _put_back(self, role: str) -> bool:
        try:
            with self._allowed():
                self._session.links.attach(role)
        except EbpfwatchError as error:
            if not self._stuck:
                say(f"governor: {error.message}; off until the next start", "warning")
            self._stuck = True
            return False
        # Not before the hook is there: what happened on the way to it was not seen.
        self._session.since[role] = time.monotonic_ns()
        self._configure()
        self.off = tuple(other for other in self.off if other != role)
        say(f"governor: below half of the budget: the hook {role} is on again", "notice")
        return True

    @property
    def doubts(self) -> tuple[str, ...]:
        """A reason for every verdict while something is off."""
        return tuple(
            f"the hook {role} is off, because the watcher cost too much: {EXPENDABLE[role]}"
            for role in self.off
        )


class Governing:
    """Measures the load, decides, and switches hooks off and on."""

    def __init__(
        self,
        session: Session,
        budget: float,
        configure: Callable[[], None],
        liveness: Liveness,
    ) -> None:
        self._session = session
        self._liveness = liveness
        self._load = Load(session.loaded.slab_free_ns)
        # sys_admin is kept for the perf buffers, where there are any; elsewhere it changes nothing.
        allowed = functools.partial(privileges.raised, "sys_admin")
        self._switch = HookSwitch(session, configure, allowed)
        self._governor = Governor(budget, len(self._switch.roles))
        self._cpu_percent = 0.0

    def set_budget(self, percent: float) -> None:
        """governor.cpu_percent has changed."""
        self._governor.budget = percent

    def look(self, counters: Mapping[str, int], armed: bool) -> None:
        """Once a tick; ``armed``: something is attached for a reason, and goes before the rest."""
        now, run_ns = time.monotonic(), self._session.run_ns()
        self._cpu_percent = self._load.feed(now, time.thread_time(), counters, run_ns)
        step = self._governor.feed(self._cpu_percent, armed)
        for role in self._switch.go(step, self._cpu_percent):
            is_off = role in self._switch.off
            (self._liveness.off if is_off else self._liveness.on)(role)

    @property
    def over_budget(self) -> bool:
        """What is armed is to go now, or something else has gone already."""
        return self._governor.disarm or bool(self._switch.off)

    @property
    def doubts(self) -> tuple[str, ...]:
        """A reason for every verdict while something is off."""
        return self._switch.doubts

    def state(self) -> Governed:
        """Our part of the snapshot."""
        return Governed(self._cpu_percent, self._switch.off)
