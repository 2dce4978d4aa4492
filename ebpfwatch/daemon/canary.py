"""The canary: a file of our own on each watched mount, whose whole life must be seen, in order.

"Attached" is not "firing".  Only this makes "no findings" mean something.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import os
import threading

from ebpfwatch.catalogue.roles import BY_CANARY, Hook
from ebpfwatch.events.wire import StepEvent, device
from ebpfwatch.system.random_bytes import random_bytes
from ebpfwatch.system.worker import within

__all__ = ["Canary", "Life", "Run"]

_FILE = ".ebpfwatch-canary"
_AGAIN_NS = 1_000_000_000
_PATIENCE_SECONDS = 0.2


@dataclasses.dataclass
class Life:
    """One file of ours: when it began, which inode it was, and which steps came, in order."""

    started_ns: int
    dev: tuple[int, int]
    ino: int
    object: int = 0
    seen: list[Hook] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Run:
    """A proof under way on one mount.

    A single free may be missed innocently (docs/architecture.md), so a file that is not seen whole
    is followed by another, a second later, until the time is up.  ``problem`` is why no life could
    begin (a read-only mount, a full disk).  ``shared_free``: any_free is the free itself.
    """

    mount: str
    dev: tuple[int, int]
    started_ns: int
    problem: str = ""
    lives: list[Life] = dataclasses.field(default_factory=list)
    shared_free: bool = False

    def missing(self, roles: frozenset[str]) -> tuple[str, ...]:
        """Attached roles that none of the lives was seen by."""
        seen = {hook.value for life in self.lives for hook in life.seen}
        if self.shared_free and "any_free" in seen:
            seen.add("rcu_free")
        return tuple(
            hook.value
            for hook in Hook
            if hook.value in roles & BY_CANARY and hook.value not in seen
        )

    @property
    def in_order(self) -> bool:
        """Whether what came, came in the order of a life."""
        return all(life.seen == sorted(life.seen) for life in self.lives)

    @property
    def order(self) -> str:
        """What came, for people."""
        return "; ".join(", ".join(h.value for h in life.seen) for life in self.lives)


class Canary:
    """Starts runs and matches the kernel's steps to them; bounded, no clock of its own."""

    def __init__(self, roles: frozenset[str], shared_free: bool) -> None:
        self.roles = roles
        self._shared_free = shared_free
        self._pending: list[Run] = []
        self._allocated: collections.OrderedDict[int, int] = collections.OrderedDict()
        self._stuck: dict[str, threading.Thread] = {}

    @property
    def proof_pending(self) -> bool:
        """Whether a proof is under way."""
        return bool(self._pending)

    def start_proofs(self, mount: str, dev: tuple[int, int], now_ns: int) -> Run:
        """Create and delete our file on this mount of this device; the steps come later through
        ``feed``.
        """
        run = Run(mount, dev, now_ns, shared_free=self._shared_free)
        try:
            run.lives.append(self._live(run, now_ns))
        except OSError as error:
            run.problem = f"{mount}: {error.strerror}"
            return run
        self._pending.append(run)
        return run

    def _live(self, run: Run, now_ns: int) -> Life:
        """One file's life; raises ``OSError``, also if the mount does not answer in time.

        A frozen or dead file system keeps whoever writes to it, so a thread does; while one is
        stuck there, no other is sent after it.
        """
        self._stuck = {path: task for path, task in self._stuck.items() if task.is_alive()}
        outcome: list[Life | OSError] = []

        def job() -> None:
            try:
                outcome.append(_live(run.mount, run.dev, now_ns))
            except OSError as error:
                outcome.append(error)

        try:
            task = self._stuck.get(run.mount) or within(_PATIENCE_SECONDS, job, "canary")
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, str(error)) from None
        if task is not None:
            self._stuck[run.mount] = task
            raise OSError(errno.ETIMEDOUT, "the file system does not answer (frozen?)")
        if isinstance(outcome[0], OSError):
            raise outcome[0]
        return outcome[0]

    def feed(self, event: StepEvent) -> None:
        """Match one step; steps of our other files (findings) are not the canary's."""
        if event.hook is Hook.ALLOC:
            self._allocated[event.object] = event.ns
            if len(self._allocated) > 256:
                self._allocated.popitem(last=False)
            return
        for run in self._pending:
            for life in reversed(run.lives):
                if event.ino == life.ino and device(event.dev) == life.dev:
                    self._match(life, event)
                    return

    def _match(self, life: Life, event: StepEvent) -> None:
        if event.ns < life.started_ns:
            return
        if not life.object:
            life.object = event.object
            if self._allocated.get(event.object, 0) >= life.started_ns:
                life.seen.append(Hook.ALLOC)
        if event.object == life.object and not event.leaving:
            life.seen.append(event.hook)

    def finished(self, now_ns: int, timeout_ns: int) -> list[Run]:
        """The runs that are complete or whose time is up; the others get another file."""
        done = [
            run
            for run in self._pending
            if not run.missing(self.roles) or now_ns - run.started_ns > timeout_ns
        ]
        self._pending = [run for run in self._pending if run not in done]
        for run in self._pending:
            if now_ns - run.lives[-1].started_ns >= _AGAIN_NS:
                with contextlib.suppress(OSError):
                    run.lives.append(self._live(run, now_ns))
        return done


def _live(mount: str, dev: tuple[int, int], now_ns: int) -> Life:
    """Create, delete and close our file; raises ``OSError``.

    The directory may be anybody's: so a name that nobody can be waiting at, and a directory that
    cannot be exchanged between the two calls.  What is mounted over the mount is not meant: no
    ext4 hook would see a file there.
    """
    name = f"{_FILE}-{random_bytes(8).hex()}"
    directory = os.open(mount, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _device(directory) != dev:
            raise OSError(errno.EXDEV, "another file system is mounted over it")
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=directory)
        try:
            stat = os.fstat(fd)
            os.unlink(name, dir_fd=directory)
        finally:
            os.close(fd)
    finally:
        os.close(directory)
    return Life(now_ns, dev, stat.st_ino)


def _device(fd: int) -> tuple[int, int]:
    dev = os.fstat(fd).st_dev
    return os.major(dev), os.minor(dev)
