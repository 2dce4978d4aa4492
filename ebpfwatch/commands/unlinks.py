"""``ebpfwatch unlinks``: every unlink as it happens; what people used a bpftrace one-liner for."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import errno
import json
import os
import select
import signal
import struct
import time

from ebpfwatch.commands import seconds
from ebpfwatch.errors import Exit
from ebpfwatch.events.wire import DecodeError, UnlinkEvent, decode, device
from ebpfwatch.kernel import libbpf
from ebpfwatch.kernel.pending import start_loader
from ebpfwatch.kernel.protocol import LoadRequest
from ebpfwatch.kernel.session import Session, load
from ebpfwatch.system import privileges
from ebpfwatch.system.clock import ahead_ns
from ebpfwatch.system.log import say
from ebpfwatch.system.signals import Signals
from ebpfwatch.text.printable import printable

_AT_FDCWD = -100  # include/uapi/linux/fcntl.h
_EVERYBODY = 0xFFFFFFFF  # probes/sys_unlink.c
_IN_FLIGHT = 1024
_TELL_SECONDS = 5.0

EXAMPLES = """\
examples:
  ebpfwatch unlinks --under /var/lib/app       who deletes files there, with whole paths
  ebpfwatch unlinks --comm rm --errors         every call of rm, also those that failed
  ebpfwatch unlinks --json --seconds 60        a minute of them, for a program
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """How long, and how much."""
    parser.add_argument("--seconds", type=seconds, metavar="S", help="stop after S seconds")
    parser.add_argument("--count", type=_positive, metavar="N", help="stop after N lines")
    parser.add_argument("--pid", metavar="PID", type=_positive, help="only this process")
    parser.add_argument("--comm", metavar="NAME", help="only tasks of this name")
    parser.add_argument(
        "--under", metavar="DIR", help="only paths below this directory; relative ones if resolved"
    )
    parser.add_argument(
        "--errors", action="store_true", help="calls that failed, too; else they are counted"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "--no-resolve",
        action="store_true",
        help="leave a relative path as it is, and keep no capability at all",
    )
    parser.add_argument(
        "--in-flight",
        type=_room,
        default=_IN_FLIGHT,
        metavar="N",
        help=f"calls under way at once that there is room for ({_IN_FLIGHT}); more are counted",
    )
    parser.add_argument("--verbose", action="store_true", help="show what the loader says")


def _positive(text: str) -> int:
    return _bounded(text, (1 << 32) - 2)


def _room(text: str) -> int:
    return _bounded(text, 1 << 16)  # some 400 bytes each


def _bounded(text: str, most: int) -> int:
    value = int(text[:12]) if text.isascii() and text.isdigit() else 0
    if not 1 <= value <= most:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 to {most}")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Print one line a call until stopped; says meanwhile and at the end what was lost."""
    request = LoadRequest(
        "unlinks.c",
        alloc="never",
        any_free="never",
        table_slots=64,
        note_slots=arguments.in_flight,
        ring_bytes=1 << 20,
        verbose=arguments.verbose,
    )
    session = load(start_loader(request))
    whose = arguments.pid or _EVERYBODY
    libbpf.map_update(session.maps["wanted"], 0, struct.pack("=I", whose))
    # No file of others is opened from here on; /proc/PID/cwd is read, which takes CAP_SYS_PTRACE.
    resolving = () if arguments.no_resolve else ("sys_ptrace",)
    privileges.drop(session.counters, always=resolving)
    watch = _Watch(session, arguments)
    signals = Signals(signal.SIGINT, signal.SIGTERM)
    with contextlib.closing(session), contextlib.closing(signals):
        watch.follow(signals)
        watch.finish()
    return Exit.OK


class _Watch:
    """What was begun, read, shown and lost; ``begun == read + lost + under way`` at any time."""

    def __init__(self, session: Session, arguments: argparse.Namespace) -> None:
        self._session = session
        self._count: int | None = arguments.count
        self._room: int = arguments.in_flight
        self._ends = time.monotonic() + (arguments.seconds or float("inf"))
        self._read = self._shown = self._garbled = self._told = self._failed = 0
        self._errors: bool = arguments.errors
        self._comm: str | None = arguments.comm
        self._under = os.path.realpath(arguments.under) if arguments.under else ""
        self._json: bool = arguments.json
        self._resolve = not arguments.no_resolve
        self._next_look = 0.0

    def follow(self, signals: Signals) -> None:
        """Until the time or the lines are used up, or a signal comes."""
        say("watching; Ctrl-C ends it")
        if not self._json:
            print(_HEAD, flush=True)
        while not signals.stop and self._shown != self._count:
            left = self._ends - time.monotonic()
            if left <= 0:
                break
            select.select([self._session.fd, signals.fd], [], [], min(1.0, left))
            self._print_all()
            self._tell_at_times()

    def finish(self) -> None:
        """Detach, show what is still in the ring, and say what is missing."""
        self._session.links.detach()
        self._print_all()
        counters = self._session.counters()
        reasons = self._reasons(counters)
        lost = sum(reasons.values())
        under_way = counters["unlink"] - self._read - lost
        if under_way > 0:
            reasons["not returned when it ended"] = under_way
        if self._failed:
            say(f"{self._failed} calls that failed are not shown; --errors shows them")
        if any(reasons.values()):
            missing = f"{lost + max(0, under_way)} of {counters['unlink']} calls are not shown"
            say(f"{missing}: {_listed(reasons)}", "warning")

    def _tell_at_times(self) -> None:
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _TELL_SECONDS
        reasons = self._reasons(self._session.counters())
        lost = sum(reasons.values())
        if lost > self._told:
            self._told = lost
            say(f"{lost} calls so far are lost: {_listed(reasons)}", "warning")

    def _reasons(self, counters: dict[str, int]) -> dict[str, int]:
        return {
            f"more under way than --in-flight {self._room}": counters["call_lost"],
            "came faster than they could be read": counters["submit"] + self._session.dropped,
            "could not be decoded": self._garbled,
        }

    def _print_all(self) -> None:
        self._session.consume()
        offset_ns = ahead_ns(time.CLOCK_REALTIME)
        lines = []
        while self._session.records:
            try:
                event = decode(self._session.records.popleft())
            except DecodeError as error:
                self._garbled += 1
                if self._garbled == 1:
                    say(f"{error}; later ones are only counted", "warning")
                continue
            if not isinstance(event, UnlinkEvent):
                continue
            self._read += 1
            path = whole_path(event) if self._resolve else event.path
            if self._shown != self._count and self._wanted(event, path):
                self._shown += 1
                lines.append((as_json if self._json else line)(event, offset_ns, path))
        if lines:
            print("\n".join(lines), flush=True)

    def _wanted(self, event: UnlinkEvent, path: str) -> bool:
        if self._comm is not None and event.who.comm != self._comm:
            return False
        if self._under and not f"{os.path.normpath(path)}/".startswith(f"{self._under}/"):
            return False
        if event.result and not self._errors:
            self._failed += 1
            return False
        return True


def whole_path(event: UnlinkEvent) -> str:
    """The path with the directory that it is relative to; as it is where that cannot be read, as of
    a process that has ended.

    Read after the call: a process that has changed its directory since gives the new one.
    """
    if event.path.startswith("/") or not event.path:
        return event.path
    where = "cwd" if event.dfd == _AT_FDCWD else f"fd/{event.dfd}"
    try:
        return os.path.join(os.readlink(f"/proc/{event.who.tgid}/{where}"), event.path)
    except OSError:
        return event.path


def _listed(reasons: dict[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in reasons.items() if number)


_HEAD = f"{'TIME':27} {'PID':>7} {'COMM':16} {'RESULT':8} {'DEV':>7} {'INODE':>10} PATH"


def line(event: UnlinkEvent, offset_ns: int, path: str) -> str:
    """One call; a name that only the kernel knows stands for a path that could not be read."""
    dev = ":".join(map(str, device(event.dev))) if event.ino else "-"
    inode = str(event.ino) if event.ino else "-"
    return (
        f"{_when(event, offset_ns)} {event.who.tgid:>7} {printable(event.who.comm):16}"
        f" {_result(event):8} {dev:>7} {inode:>10} {printable(path or f'.../{event.name}')}"
    )


def as_json(event: UnlinkEvent, offset_ns: int, path: str) -> str:
    """The same for programs; ``dev`` and ``inode`` are null where no ext4 inode was reached."""
    return json.dumps(
        {
            "time": _when(event, offset_ns),
            "pid": event.who.tgid,
            "tid": event.who.pid,
            "comm": event.who.comm,
            "result": _result(event),
            "dev": ":".join(map(str, device(event.dev))) if event.ino else None,
            "inode": event.ino or None,
            "path": path,
            "name": event.name,
        }
    )


def _when(event: UnlinkEvent, offset_ns: int) -> str:
    """UTC, which the Z says."""
    seconds_ = (event.ns + offset_ns) / 1e9
    when = datetime.datetime.fromtimestamp(seconds_, datetime.timezone.utc)
    return f"{when:%Y-%m-%dT%H:%M:%S.%f}Z"


def _result(event: UnlinkEvent) -> str:
    return "ok" if event.result == 0 else errno.errorcode.get(-event.result, str(event.result))
