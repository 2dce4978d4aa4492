"""Open files that the kernel holds and no process has: opened by a module and never closed.

/proc/sys/fs/file-nr counts every struct file.  A process has one by a descriptor or by a mapping;
loop devices, swap files and System V segments have one each without a process.  What is left over
is the kernel's own.  The count is taken while the machine runs on, so it is a range: ``least`` is
sure, ``most`` is possible.

Not told apart: descriptors that share one file after fork() or dup() are counted as a file each
(kcmp(2) would be one system call a pair), so ``least`` may be too low.  A second look, at what is
left over only, adds files under way in a socket (told since Linux commit 3c32da19a858, "unix: Show
number of pending scm files of receive queue in fdinfo", v5.6), files registered with io_uring, and
threads with descriptors of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Callable

from ebpfwatch.host import ParseError
from ebpfwatch.host.fields import numbers, present, text
from ebpfwatch.paths import Paths
from ebpfwatch.system.namespaces import in_own_pid_namespace

__all__ = ["OpenFiles", "read"]

#: So many files that no process has are a leak, unless a graphics driver keeps its buffers so
#: (shmem_file_setup() in drm_gem_object_init(), drivers/gpu/drm/drm_gem.c, v4.19).
_LEAK = 500
_LEAK_BESIDE_GRAPHICS = 20_000

_BEHIND_DESCRIPTORS = re.compile(r"^(?:scm_fds|UserFiles):\s*([0-9]{1,9})$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class OpenFiles:
    """One count.

    ``files`` is the kernel's number, which may be wrong by ``error``.  ``descriptors`` and
    ``mapped`` are those of all processes that could be read; ``unread`` processes hide their
    descriptors, ``unmapped`` their mappings.  ``others`` have no process by right; a driver of
    ``graphics`` has more of them, which nobody counts.  ``least`` and ``most`` are None where
    something was not read, and then ``why_not`` says what; ``seen`` is False where even the
    descriptors are not all there.
    """

    files: int
    error: int
    processes: int
    descriptors: int
    unread: int
    mapped: int
    unmapped: int
    others: int
    graphics: bool
    least: int | None
    most: int | None
    seen: bool = True
    why_not: str = ""
    seconds: float = 0.0

    @property
    def beyond_descriptors(self) -> int | None:
        """Files that no descriptor leads to: mapped ones, and those of the kernel."""
        return max(0, self.files - self.descriptors) if self.seen else None

    @property
    def limit(self) -> int:
        """From so many files without a process on somebody has forgotten to close them."""
        return _LEAK_BESIDE_GRAPHICS if self.graphics else _LEAK


class _TooLong(Exception):
    """The time for a count is over."""


def read(
    paths: Paths, budget_seconds: float = 2.0, clock: Callable[[], float] = time.thread_time
) -> OpenFiles:
    """Count; raises ``OSError`` or ``ParseError`` where file-nr cannot be read.

    After ``budget_seconds`` of CPU time it gives up, and the count says so.
    """
    count = _Count(paths, budget_seconds, clock)
    before = after = _file_nr(paths)
    why_not, seen = _container(paths), True
    try:
        count.take()
        after = _file_nr(paths)
        if min(before, after) > count.owned:
            count.look_again()
    except _TooLong:
        seen = False
        why_not = f"given up after {budget_seconds:g} s of CPU time: too many descriptors"
    seen = seen and not why_not and not count.unread
    return count.result(before, after, seen, why_not or count.hidden())


def _container(paths: Paths) -> str:
    """Why not all processes are in this /proc; "" if they are."""
    if not in_own_pid_namespace(paths.proc):
        return ""
    return "seen from a container: the processes outside it are not in its /proc"


def _file_nr(paths: Paths) -> int:
    return numbers(text(paths.proc / "sys/fs/file-nr"), 3, "/proc/sys/fs/file-nr")[0]


class _Count:
    """What was found so far."""

    def __init__(self, paths: Paths, budget: float, clock: Callable[[], float]) -> None:
        self._paths = paths
        self._clock = clock
        self._began = clock()
        self._ends = self._began + budget
        self.processes = self.descriptors = self.unread = self.mapped = self.unmapped = 0
        self._sockets = 0  # descriptors of sockets
        self._targets: set[int] = set()  # by hash: a name may be long, and there may be many
        self._socket_targets: set[int] = set()
        self._came_or_went = 0
        self._behind = 0  # found by the second look
        self.others = _others(paths)

    @property
    def owned(self) -> int:
        """At most so many files have an owner; descriptors of one socket are one file."""
        shared = self._sockets - len(self._socket_targets)
        return self.descriptors - shared + self.mapped + self.others + self._behind

    def hidden(self) -> str:
        """Why not all of the processes could be read; "" if they were."""
        if self.unread:
            return f"the descriptors of {self.unread} processes may not be read: that takes root"
        if self.unmapped:
            missing = f"the mappings of {self.unmapped} processes may not be read"
            return f"{missing}: that takes root with CAP_SYS_PTRACE"
        return ""

    def result(self, before: int, after: int, seen: bool, why_not: str) -> OpenFiles:
        """The range, if all was read."""
        least, most = min(before, after), max(before, after)
        # The kernel adds up the parts of the CPUs only roughly (percpu_counter_read_positive() in
        # get_nr_files(), fs/file_table.c, v4.19): each CPU keeps back less than one batch.
        cpus = os.cpu_count() or 1
        # Processes that came or went meanwhile may have had twice as many as the others.
        changed = 2 * self._came_or_went * self.owned // max(1, self.processes)
        error = cpus * max(32, 2 * cpus) + changed
        known = not why_not
        return OpenFiles(
            least,
            error + most - least,
            self.processes,
            self.descriptors,
            self.unread,
            self.mapped,
            self.unmapped,
            self.others,
            any((self._paths.sys / "class/drm").glob("card*")),
            max(0, least - error - self.owned) if known else None,
            max(0, most + error - len(self._targets) - self.others) if known else None,
            seen,
            why_not,
            round(self._clock() - self._began, 3),
        )

    def take(self) -> None:
        """Each process once; one that ends meanwhile is none."""
        pids = self._pids()
        gone = 0
        for pid in pids:
            self._hurry()
            try:
                self._process(self._paths.proc / pid)
                self.processes += 1
            except (FileNotFoundError, ProcessLookupError):
                gone += 1
        self._came_or_went = gone + len(set(self._pids()) - set(pids))

    def _hurry(self) -> None:
        if self._clock() > self._ends:
            raise _TooLong

    def _pids(self) -> list[str]:
        return [name for name in os.listdir(self._paths.proc) if name.isdigit()]

    def _process(self, home: Path) -> None:
        directory = home / "fd"
        try:
            numbers_ = os.listdir(directory)
        except PermissionError:
            # Since Linux commit f1f1f2569901 ("proc: report open files as size in stat() for
            # /proc/pid/fd", v6.2) everybody may know their number; before it is 0.
            size = os.stat(directory).st_size
            self.descriptors += size
            self.unread += not size
        else:
            self.descriptors += len(numbers_)
            self._name(directory, numbers_)
        try:
            with open(home / "maps", encoding="utf-8", errors="surrogateescape") as maps:
                self._map(maps)
        except PermissionError:
            self.unmapped += 1

    def _name(self, directory: Path, numbers_: list[str]) -> None:
        for position, number in enumerate(numbers_):
            if not position % 1024:
                self._hurry()
            try:
                target = os.readlink(directory / number)
            except FileNotFoundError:
                continue
            except PermissionError:
                return
            if target.startswith("socket:["):
                self._sockets += 1
                self._socket_targets.add(hash(target))
            self._targets.add(hash(target))

    def _map(self, maps: Iterable[str]) -> None:
        """One file a run of mappings of one inode, as the loader of programs makes them: where the
        offset does not rise, the file may have been opened a second time.
        """
        last: dict[tuple[str, str], int] = {}
        for line in maps:
            words = line.split(None, 5)
            if len(words) < 6 or words[4] == "0":
                continue
            key, offset = (words[3], words[4]), _hexadecimal(words[2])
            if offset <= last.get(key, offset):
                self.mapped += 1
            last[key] = offset
            self._targets.add(hash(words[5].rstrip("\n").replace("\\012", "\n")))

    def look_again(self) -> None:
        """At what the first look cannot see."""
        for pid in self._pids():
            self._hurry()
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                self._behind += self._behind_descriptors(self._paths.proc / pid)
                self._behind += _of_threads(self._paths.proc / pid)

    def _behind_descriptors(self, home: Path) -> int:
        found = 0
        for number in os.listdir(home / "fd"):
            with contextlib.suppress(FileNotFoundError):
                target = os.readlink(home / "fd" / number)
                if target.startswith(("socket:[", "anon_inode:[io_uring]")):
                    info = present(home / "fdinfo" / number) or ""
                    found += sum(map(int, _BEHIND_DESCRIPTORS.findall(info)))
        return found


def _hexadecimal(word: str) -> int:
    try:
        return int(word, 16)
    except ValueError:
        raise ParseError(f"/proc/PID/maps: {word[:40]!r} is no number") from None


def _of_threads(home: Path) -> int:
    """Descriptors of threads that do not have their process's (unshare(CLONE_FILES))."""
    threads = os.listdir(home / "task")
    if len(threads) < 2:
        return 0
    common = set(os.listdir(home / "fd"))
    found = 0
    for thread in threads:
        with contextlib.suppress(FileNotFoundError):
            own = set(os.listdir(home / "task" / thread / "fd"))
            # A few differ because the process opens and closes meanwhile.
            found += len(own) if len(own ^ common) > 8 else 0
    return found


def _others(paths: Paths) -> int:
    """Files that the kernel itself has by right, one each."""
    loops = sum(1 for _ in (paths.sys / "block").glob("loop*/loop/backing_file"))
    swaps = (present(paths.proc / "swaps") or "").split("\n")
    segments = (present(paths.proc / "sysvipc/shm") or "").split("\n")
    lines = itertools.chain(swaps[1:], segments[1:])
    return loops + sum(bool(line.strip()) for line in lines)
