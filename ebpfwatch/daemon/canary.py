"""The canary: a file of our own on each watched mount, whose whole life must be seen, in order.

An attached hook may still not fire.  Without this test "no findings" would prove nothing.
"""

from __future__ import annotations

import collections
import dataclasses
import errno
import os
import threading
import time

from ebpfwatch.catalogue.roles import BY_CANARY, Hook
from ebpfwatch.events.wire import StepEvent, device
from ebpfwatch.system.closed import device_of, open_closed, unused_name
from ebpfwatch.system.grace import force_grace_period, on_one_cpu
from ebpfwatch.system.log import defect

__all__ = ["Canary", "Life", "Run"]

_AGAIN_NS = _PATIENCE_NS = 1_000_000_000
#: A file system that does not answer keeps its thread for ever; together with the others these stay
#: below the unit's TasksMax.
_MOST_THREADS = 4
_MOST_DOUBTFUL = 3  # of them; the last is for those that answered the last time
_NEXT_THREAD_NS = 50_000_000
_FROZEN = "the file system does not answer (frozen?)"
_IN_VAIN = "no thread is free for it: other file systems do not answer"


@dataclasses.dataclass
class Life:
    """One file of ours: when it began, which inode it was, and which steps came, in order.

    ``named``: it had a name, so that there was an unlink.  ``closed``: in a directory that nobody
    but root can open.
    """

    started_ns: int
    dev: tuple[int, int]
    ino: int
    named: bool = True
    closed: bool = False
    object: int = 0
    seen: list[Hook] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Run:
    """A proof under way on one mount.

    A single free may be missed innocently (docs/architecture.md), so a file that is not seen whole
    is followed by another, a second later, until the time is up.  ``problem`` is why no life could
    begin (a read-only mount, a full disk).  ``shared_free``: any_free is the free itself.
    ``asked_ns`` is when a file was last asked for, 0 once it has come or failed.  ``doubtful``: the
    mount did not answer the last time, or was not asked yet.  ``in_vain``: it was not even asked.
    """

    mount: str
    dev: tuple[int, int]
    started_ns: int
    problem: str = ""
    lives: list[Life] = dataclasses.field(default_factory=list)
    shared_free: bool = False
    asked_ns: int = 0
    last_ns: int = 0
    doubtful: bool = True
    in_vain: bool = False

    @property
    def proves(self) -> frozenset[str]:
        """The roles that this run can tell of: a file without a name is never unlinked."""
        named = any(life.named for life in self.lives)
        return BY_CANARY if named else BY_CANARY - {"unlink"}

    def missing(self, roles: frozenset[str]) -> tuple[str, ...]:
        """Attached roles that none of the lives was seen by."""
        seen = {hook.value for life in self.lives for hook in life.seen}
        if self.shared_free and "any_free" in seen:
            seen.add("rcu_free")
        asked = roles & self.proves
        return tuple(hook.value for hook in Hook if hook.value in asked and hook.value not in seen)

    @property
    def in_order(self) -> bool:
        """Whether what came, came in the order of a life."""
        return all(life.seen == sorted(life.seen) for life in self.lives)

    @property
    def order(self) -> str:
        """What came, for people."""
        return "; ".join(", ".join(h.value for h in life.seen) for life in self.lives)


class Canary:
    """Starts runs and matches the kernel's steps to them; bounded, and nobody waits in here.

    Creating a file may hang: on a frozen or dead file system, or because a user holds the lock of
    the directory (a page fault of his while the kernel reads it for him may take as long as he
    likes, FUSE).  So threads do it, few of them, and what they did is collected by ``tend``.
    """

    def __init__(self, roles: frozenset[str], shared_free: bool, home: str = "") -> None:
        """``home`` is a directory of ours, for the file system that it lies on."""
        self.roles = roles
        self._shared_free = shared_free
        self._home = home, device_of(os.stat(home)) if home else (0, 0)
        self._pending: list[Run] = []
        self._settled: list[Run] = []
        self._allocated: collections.OrderedDict[int, int] = collections.OrderedDict()
        self._steps: collections.deque[StepEvent] = collections.deque(maxlen=256)
        self._lock = threading.Lock()
        self._queue: collections.deque[Run] = collections.deque()
        self._flying: dict[str, bool] = {}  # by mount: whether it is doubtful
        self._landed: collections.deque[tuple[Run, Life | OSError]] = collections.deque()
        self._threads = 0
        self._thread_ns = 0
        self.named = False  #: some file of this round had a name
        self.closed = False  #: and that in a directory that nobody else can open
        #: Names may be given in directories that others can open: there is no other directory.
        self.open_names = False

    @property
    def proof_pending(self) -> bool:
        """Whether a proof is under way."""
        return bool(self._pending)

    def start_proofs(
        self, mount: str, dev: tuple[int, int], now_ns: int, doubtful: bool = True
    ) -> Run:
        """Ask for a file of ours on this mount of this device; the rest comes later, through
        ``tend`` and ``feed``.
        """
        run = Run(mount, dev, now_ns, shared_free=self._shared_free, doubtful=doubtful)
        self._pending.append(run)
        self._ask(run, now_ns)
        return run

    def settled(self) -> list[Run]:
        """The runs of which it became known whether they could begin; each once."""
        settled, self._settled = self._settled, []
        return settled

    def _ask(self, run: Run, now_ns: int) -> None:
        run.asked_ns = run.last_ns = now_ns
        with self._lock:
            if run.mount in self._flying:  # nobody is sent after one that does not come back
                self._landed.append((run, OSError(errno.ETIMEDOUT, _FROZEN)))
            else:
                self._queue.append(run)
        self._send_thread(now_ns)

    def _send_thread(self, now_ns: int) -> None:
        """One does all that is waiting; another comes where it does not get on."""
        with self._lock:
            if self._threads >= _MOST_THREADS or self._next() is None:
                return
            if self._threads and now_ns - self._thread_ns < _NEXT_THREAD_NS:
                return
            self._threads += 1
            self._thread_ns = now_ns
        try:
            threading.Thread(target=self._work, name="canary", daemon=True).start()
        except RuntimeError:  # none to be had; the next look tries again
            with self._lock:
                self._threads -= 1

    def _next(self) -> Run | None:
        """The next that may have a thread; with the lock held."""
        may_doubt = sum(self._flying.values()) < _MOST_DOUBTFUL
        return next((run for run in self._queue if may_doubt or not run.doubtful), None)

    def _work(self) -> None:
        while True:
            with self._lock:
                run = self._next()
                if run is None:
                    self._threads -= 1
                    return
                self._queue.remove(run)
                self._flying[run.mount] = run.doubtful
            outcome: Life | OSError
            with on_one_cpu():
                try:
                    outcome = _live(run.mount, run.dev, self._home, self.open_names)
                except OSError as error:
                    outcome = error
                except Exception as error:
                    outcome = OSError(0, defect(error))
                with self._lock:
                    self._flying.pop(run.mount, None)
                    self._landed.append((run, outcome))
                if isinstance(outcome, Life):
                    # Lazy RCU frees it after the time in which its free must be seen.
                    force_grace_period()

    def tend(self, now_ns: int) -> None:
        """Collect what the threads did, and give up on those that do not come back."""
        while self._landed:
            run, outcome = self._landed.popleft()
            if not run.asked_ns:
                continue  # given up before
            run.asked_ns = 0
            if isinstance(outcome, Life):
                self._begin(run, outcome)
            else:
                self._fail(run, str(outcome.strerror))
        for run in self._pending:
            if run.asked_ns and now_ns - run.asked_ns > _PATIENCE_NS:
                run.asked_ns = 0
                with self._lock:
                    run.in_vain = run in self._queue
                    if run.in_vain:
                        self._queue.remove(run)
                self._fail(run, _IN_VAIN if run.in_vain else _FROZEN)
        self._send_thread(now_ns)

    def _begin(self, run: Run, life: Life) -> None:
        if not run.lives:
            self._settled.append(run)
        run.lives.append(life)
        self.named |= life.named
        self.closed |= life.closed
        for event in self._steps:  # those that came before we knew of it
            if event.ns >= life.started_ns and _is_of(event, life):
                self._match(life, event)

    def _fail(self, run: Run, why: str) -> None:
        if not run.lives:  # else it was only another try
            run.problem = f"{run.mount}: {why}"
            self._settled.append(run)

    def feed(self, event: StepEvent) -> None:
        """Match one step; steps of our other files (findings) are not the canary's."""
        if event.hook is Hook.ALLOC:
            self._allocated[event.object] = event.ns
            if len(self._allocated) > 256:
                self._allocated.popitem(last=False)
            return
        self._steps.append(event)
        for run in self._pending:
            for life in reversed(run.lives):
                if _is_of(event, life):
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
        """The runs that began and are complete or whose time is up; the others get another file,
        once a second.
        """
        self._pending = [run for run in self._pending if not run.problem]
        done = [
            run
            for run in self._pending
            if run.lives and (not run.missing(self.roles) or now_ns - run.started_ns > timeout_ns)
        ]
        self._pending = [run for run in self._pending if run not in done]
        for run in self._pending:
            if run.lives and not run.asked_ns and now_ns - run.last_ns >= _AGAIN_NS:
                self._ask(run, now_ns)
        return done


def _is_of(event: StepEvent, life: Life) -> bool:
    return event.ino == life.ino and device(event.dev) == life.dev


def _live(
    mount: str, dev: tuple[int, int], home: tuple[str, tuple[int, int]], open_names: bool
) -> Life:
    """Create, delete and close our file; raises ``OSError``.

    In a directory of root's that nobody else can open, if there is one on this file system: nobody
    can hold its lock or exchange what is in it.  ``home`` is tried, then what mkfs.ext4 made, then
    root's own home.  Else the file gets no name (O_TMPFILE): so none can stay behind in the
    directory of another user, and the directory's lock is not taken (vfs_tmpfile, fs/namei.c).
    """
    own = [home[0]] if home[1] == dev else []
    for place in (*own, f"{mount}/lost+found", f"{mount}/root"):
        directory = open_closed(place, dev)
        if directory is None:
            continue
        try:
            return _named(directory, dev, closed=True)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT):
                raise
        finally:
            os.close(directory)
    return _in_the_root(mount, dev, open_names)


def _in_the_root(mount: str, dev: tuple[int, int], open_names: bool) -> Life:
    """What is mounted over the mount is not meant: no ext4 hook would see a file there."""
    directory = os.open(mount, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(directory)
        if device_of(status) != dev:
            raise OSError(errno.EXDEV, "another file system is mounted over it")
        if open_names and status.st_uid == os.geteuid() and not status.st_mode & 0o022:
            return _named(directory, dev, closed=False)
        started_ns = time.monotonic_ns()
        fd = os.open(
            ".", os.O_TMPFILE | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=directory
        )
        try:
            return Life(started_ns, dev, os.fstat(fd).st_ino, named=False)
        finally:
            os.close(fd)
    finally:
        os.close(directory)


def _named(directory: int, dev: tuple[int, int], closed: bool) -> Life:
    """By a name that nobody can be waiting at, in a directory that cannot be exchanged between the
    two calls.
    """
    name = unused_name("canary")
    started_ns = time.monotonic_ns()
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        stat = os.fstat(fd)
        os.unlink(name, dir_fd=directory)
    finally:
        os.close(fd)
    return Life(started_ns, dev, stat.st_ino, closed=closed)
