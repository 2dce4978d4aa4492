"""``ebpfwatch unlinks``: every unlink as it happens; what people used a bpftrace one-liner for."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import errno
import os
import select
import signal
import struct
import time
from types import FrameType

from ebpfwatch.errors import Exit
from ebpfwatch.events.wire import DecodeError, UnlinkEvent, decode, device
from ebpfwatch.kernel import libbpf
from ebpfwatch.kernel.protocol import LoadRequest
from ebpfwatch.kernel.session import Session, load, start_loader
from ebpfwatch.system import privileges
from ebpfwatch.system.clock import ahead_ns
from ebpfwatch.system.log import say
from ebpfwatch.text.printable import printable

_EVERYBODY = 0xFFFFFFFF  # probes/sys_unlink.c
_IN_FLIGHT = 1024
_TELL_SECONDS = 5.0


def configure(parser: argparse.ArgumentParser) -> None:
    """How long, and how much."""
    parser.add_argument("--seconds", type=float, metavar="S", help="stop after S seconds")
    parser.add_argument("--count", type=_positive, metavar="N", help="stop after N lines")
    parser.add_argument("--pid", type=_positive, help="only this process")
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
    value = int(text)
    if not 1 <= value <= most:
        raise argparse.ArgumentTypeError(f"must be 1 to {most}")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Print one line a call until stopped; says meanwhile and at the end what was lost."""
    request = LoadRequest(
        "unlinks.c",
        alloc="never",
        strict=False,
        table_slots=64,
        note_slots=arguments.in_flight,
        ring_bytes=1 << 20,
        verbose=arguments.verbose,
    )
    session = load(start_loader(request))
    whose = arguments.pid or _EVERYBODY
    libbpf.map_update(session.maps["wanted"], 0, struct.pack("=I", whose))
    # No file of others is opened from here on, so not even what the daemon keeps.
    privileges.drop(session.counters, always=())
    watch = _Watch(session, arguments)
    with contextlib.closing(session), _Stop() as stop:
        watch.follow(stop)
        watch.finish()
    return Exit.OK


class _Stop:
    """SIGINT and SIGTERM as a flag, so that what was lost is told at the end.

    Not as an exception: that would be swallowed inside the ring's C callback. ``fd`` ends a select.
    """

    def __init__(self) -> None:
        self.asked = False
        self.fd, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def __enter__(self) -> _Stop:
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, _: FrameType | None) -> None:
        self.asked = True

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        os.close(self.fd)
        os.close(self._writer)


class _Watch:
    """What was begun, read, shown and lost; ``begun == read + lost + under way`` at any time."""

    def __init__(self, session: Session, arguments: argparse.Namespace) -> None:
        self._session = session
        self._count: int | None = arguments.count
        self._room: int = arguments.in_flight
        self._ends = time.monotonic() + (arguments.seconds or float("inf"))
        self._read = self._shown = self._garbled = self._told = 0
        self._next_look = 0.0

    def follow(self, stop: _Stop) -> None:
        """Until the time or the lines are used up, or a signal comes."""
        print(
            f"{'TIME':15} {'PID':>7} {'COMM':16} {'RESULT':8} {'DEV':>7} {'INODE':>10} PATH",
            flush=True,
        )
        while not stop.asked and self._shown != self._count:
            left = self._ends - time.monotonic()
            if left <= 0:
                break
            select.select([self._session.fd, stop.fd], [], [], min(1.0, left))
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
            if self._shown != self._count:
                self._shown += 1
                lines.append(line(event, offset_ns))
        if lines:
            print("\n".join(lines), flush=True)


def _listed(reasons: dict[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in reasons.items() if number)


def line(event: UnlinkEvent, offset_ns: int) -> str:
    """One call; a name that only the kernel knows stands for a path that could not be read."""
    when = datetime.datetime.fromtimestamp((event.ns + offset_ns) / 1e9)
    result = "ok" if event.result == 0 else errno.errorcode.get(-event.result, str(event.result))
    dev = ":".join(map(str, device(event.dev))) if event.ino else "-"
    inode = str(event.ino) if event.ino else "-"
    path = printable(event.path) or f".../{printable(event.name)}"
    return (
        f"{when:%H:%M:%S.%f} {event.who.tgid:>7} {printable(event.who.comm):16} {result:8}"
        f" {dev:>7} {inode:>10} {path}"
    )
