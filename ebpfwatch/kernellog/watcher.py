"""The kernel's log as it is written: /dev/kmsg, one record a read.

Only facility 0 counts: that is the kernel itself.  Whatever user space writes into /dev/kmsg gets
another facility from the kernel (devkmsg_write()), and our own findings in that log are never read
back.  Messages of the kernel itself that begin with a name which a user chose (a task's, a network
device's) are refused by ``known.recognise``.  Opened while we may; reading needs no privilege
later.

Anybody can make the kernel write: a loop of failing mounts in a user namespace makes 25,000
records a second.  So reading has a budget; while it is used up ``wanted`` is False, nobody must
poll ``fd``, and what the kernel overwrites meanwhile is counted as lost.
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

from ebpfwatch.kernellog.known import DISK_ERROR, KnownMessage, disk_of, recognise
from ebpfwatch.kernellog.oops import Parser
from ebpfwatch.kernellog.report import Record, Report

__all__ = ["Batch", "Event", "Watcher"]

_LARGEST = 8192  # bytes: CONSOLE_EXT_LOG_MAX, the most that one read may give
_PORTION = 500  # records at once: the ring of probe events must not wait longer
_A_SECOND = 500  # records, as long as it may last: some 0.5 % of a CPU
_AT_ONCE = 20000  # records of one burst: 146 warnings with stacks (docs/case.md) were some 9,000
_HISTORY = 20000  # records of the time before us that are looked at
_USER = 1  # LOG_USER: what devkmsg_write() makes of a line without a facility of its own
_OWN = "ebpfwatch: "  # how sinks/kmsg.py begins
_MOST_OWN = 999


@dataclasses.dataclass(frozen=True)
class Event:
    """One message of a known kind, as it came; ``ns`` is CLOCK_MONOTONIC when it was read."""

    ns: int
    known: KnownMessage
    text: str


@dataclasses.dataclass
class Batch:
    """What one look found: single messages, and reports that are complete with their stack."""

    events: list[Event] = dataclasses.field(default_factory=list)
    reports: list[Report] = dataclasses.field(default_factory=list)


class _Budget:
    """How many records may be read: a bucket that fills with time."""

    def __init__(self, now: float) -> None:
        self._left = float(_AT_ONCE)
        self._filled = now
        self._waiting = False

    def left(self, now: float) -> int:
        """What may be read now; once it is used up, nothing until a second's worth has come."""
        self._left = min(_AT_ONCE, self._left + (now - self._filled) * _A_SECOND)
        self._filled = now
        if self._left < 1:
            self._waiting = True
        elif self._left >= _A_SECOND:
            self._waiting = False
        return 0 if self._waiting else int(self._left)

    def used(self, records: int) -> None:
        """So many were read."""
        self._left -= records


class Watcher:
    """``fd`` becomes readable when there is more, -1 where there is no log (``missing`` says why).

    ``before`` counts what this boot's log held already when it was opened, by kind, and
    ``before_ns`` is when the last of each was printed; it is no event any more.
    ``disk_errors_before`` counts its messages of disk errors by device.  ``own`` are the
    findings of an earlier process of ours in it, with their time: only root can write them, and
    only the start asks.  ``lost`` counts records that the kernel overwrote before they were read.
    """

    def __init__(self, path: Path) -> None:
        self.lost = 0
        self.missing = ""
        self.before: dict[str, int] = {}
        self.before_ns: dict[str, int] = {}
        self.disk_errors_before: dict[str, int] = {}
        self.own: list[tuple[int, str]] = []
        self._printed_ns = 0
        self._history = True
        self._next: int | None = None
        self._parser = Parser()
        self._budget = _Budget(time.monotonic())
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as error:
            self.fd = -1
            self.missing = f"{path}: {error.strerror}"
            return
        self._read_history()

    def _read_history(self) -> None:
        for _ in range(_HISTORY):
            text = self._read()
            if text is None:
                break
            known = recognise(text)
            if known is not None:
                self.before[known.kind] = self.before.get(known.kind, 0) + 1
                self.before_ns[known.kind] = self._printed_ns
                if known.kind == DISK_ERROR:
                    disk = disk_of(text)
                    errors = self.disk_errors_before.get(disk, 0)
                    self.disk_errors_before[disk] = errors + 1
        else:
            os.lseek(self.fd, 0, os.SEEK_END)
            self._next = None
        self._history = False
        self.lost = 0  # what was overwritten before we came is not our loss

    def read(self) -> Batch:
        """At most a portion of what is there; never waits, never raises."""
        batch = Batch()
        allowed = min(_PORTION, self._budget.left(time.monotonic())) if self.fd >= 0 else 0
        for _ in range(allowed):
            text = self._read()
            if text is None:
                break
            self._budget.used(1)
            known = recognise(text)
            if known is not None:
                batch.events.append(Event(time.monotonic_ns(), known, text[:300]))
            batch.reports += self._parser.feed(Record(text, time.monotonic()), known)
        return batch

    @property
    def wanted(self) -> bool:
        """Whether ``fd`` is worth polling now."""
        return self.fd >= 0 and self._budget.left(time.monotonic()) > 0

    def close(self) -> None:
        """Give the file back."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _read(self) -> str | None:
        """The next message of the kernel itself, "" for another's, None when there is none."""
        try:
            data = os.read(self.fd, _LARGEST)
        except BlockingIOError:
            return None
        except BrokenPipeError:
            return ""  # overrun: the next record's number says how many are gone
        except OSError:
            return None
        return self._message(data) if data else None

    def _message(self, data: bytes) -> str:
        """Documentation/ABI/testing/dev-kmsg: "6,339,5140900,-;text\\n KEY=value\\n"."""
        head, _, body = data.partition(b";")
        numbers = head.split(b",")
        try:
            facility, sequence = int(numbers[0]) >> 3, int(numbers[1])
            self._printed_ns = int(numbers[2]) * 1000
        except (ValueError, IndexError):
            return ""
        if self._next is not None and sequence > self._next:
            self.lost += sequence - self._next
        self._next = sequence + 1
        text = body.partition(b"\n")[0].decode("utf-8", "replace").strip()
        if self._history and facility == _USER and text.startswith(_OWN):
            self.own = [*self.own[-_MOST_OWN:], (self._printed_ns, text)]
        return text if not facility else ""
