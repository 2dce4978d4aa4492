"""The canary: a file of our own on each watched mount, whose whole life must be seen, in order.

"Attached" is not "firing".  Only this makes "no findings" mean something.
"""

from __future__ import annotations

import collections
import dataclasses
import os

from ebpfwatch.events.wire import Hook, StepEvent, device

__all__ = ["Canary", "Run"]

_FILE = ".ebpfwatch-canary"


@dataclasses.dataclass
class Run:
    """One life: what must come, what came.

    ``problem`` is why the life could not even begin (a read-only mount, a full disk).
    """

    mount: str
    dev: tuple[int, int] = (0, 0)
    ino: int = 0
    started_ns: int = 0
    problem: str = ""
    seen: list[Hook] = dataclasses.field(default_factory=list)
    object: int = 0

    def missing(self, roles: frozenset[str]) -> tuple[str, ...]:
        """Attached roles that stayed silent."""
        seen = {hook.name.lower() for hook in self.seen}
        if "any_free" in seen and Hook.RCU_FREE not in self.seen:
            seen.add("rcu_free")  # the strict hook is the free itself where nothing better stands
        return tuple(role for role in _PROVABLE if role in roles and role not in seen)

    @property
    def in_order(self) -> bool:
        """Whether what came, came in the order of a life."""
        return self.seen == sorted(self.seen)


#: What a file's life proves; reclaim and the syscalls need other witnesses.
_PROVABLE = ("alloc", "unlink", "evict", "destroy", "rcu_free", "any_free")


class Canary:
    """Starts runs and matches the kernel's steps to them; bounded, no clock of its own."""

    def __init__(self, roles: frozenset[str]) -> None:
        self._roles = roles
        self._pending: list[Run] = []
        self._allocated: collections.OrderedDict[int, int] = collections.OrderedDict()

    def fly(self, mount: str, now_ns: int) -> Run:
        """Create and delete our file on this mount; the steps come later through ``feed``."""
        run = Run(mount, started_ns=now_ns)
        path = os.path.join(mount, f"{_FILE}-{os.getpid()}")
        try:
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
            try:
                stat = os.fstat(fd)
                os.unlink(path)
            finally:
                os.close(fd)
        except OSError as error:
            run.problem = f"{mount}: {error.strerror}"
            return run
        run.dev = os.major(stat.st_dev), os.minor(stat.st_dev)
        run.ino = stat.st_ino
        self._pending.append(run)
        return run

    def feed(self, event: StepEvent) -> None:
        """Match one step; steps of our other files (findings) are not the canary's."""
        if event.hook is Hook.ALLOC:
            self._allocated[event.object] = event.ns
            if len(self._allocated) > 256:
                self._allocated.popitem(last=False)
            return
        for run in self._pending:
            if event.ino != run.ino or device(event.dev) != run.dev:
                continue
            if event.ns < run.started_ns:
                continue
            if not run.object:
                run.object = event.object
                if self._allocated.get(event.object, 0) >= run.started_ns:
                    run.seen.append(Hook.ALLOC)
            if event.object == run.object and not event.leaving:
                run.seen.append(event.hook)
            return

    def finished(self, now_ns: int, timeout_ns: int) -> list[Run]:
        """The runs that are complete or whose time is up."""
        done = [
            run
            for run in self._pending
            if not run.missing(self._roles) or now_ns - run.started_ns > timeout_ns
        ]
        self._pending = [run for run in self._pending if run not in done]
        return done

    @property
    def next_deadline_ns(self) -> int | None:
        """When the oldest pending run began."""
        return min((run.started_ns for run in self._pending), default=None)
