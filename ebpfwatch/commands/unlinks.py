"""``ebpfwatch unlinks``: every unlink as it happens; what people used a bpftrace one-liner for."""

from __future__ import annotations

import argparse
import datetime
import errno
import select
import time

from ebpfwatch.errors import Exit, say
from ebpfwatch.events.wire import DecodeError, UnlinkEvent, decode, device
from ebpfwatch.kernel.session import Session, load, start_loader
from ebpfwatch.sinks.text import plain


def configure(parser: argparse.ArgumentParser) -> None:
    """How long, and how much."""
    parser.add_argument("--seconds", type=float, metavar="S", help="stop after S seconds")
    parser.add_argument("--count", type=int, metavar="N", help="stop after N lines")
    parser.add_argument("--pid", type=int, help="only this process")
    parser.add_argument("--verbose", action="store_true", help="show what the loader says")


def run(arguments: argparse.Namespace) -> int:
    """Print one line a call until stopped; says at the end what was lost."""
    request = {
        "unit": "unlinks.c",
        "alloc": "never",
        "strict": False,
        "table_slots": 64,
        "note_slots": 64,
        "ring_bytes": 1 << 20,
        "mounts": [],
        "verbose": arguments.verbose,
    }
    session = load(start_loader(request))
    deadline = time.monotonic() + (arguments.seconds or float("inf"))
    print(
        f"{'TIME':15} {'PID':>7} {'COMM':16} {'RESULT':8} {'DEV':>7} {'INODE':>10} PATH", flush=True
    )
    shown = 0
    try:
        while time.monotonic() < deadline and shown != arguments.count:
            select.select([session.fd], [], [], min(1.0, max(0.0, deadline - time.monotonic())))
            session.consume()
            shown += _print_all(session, arguments, shown)
    except KeyboardInterrupt:
        pass
    finally:
        lost = session.counters()["submit"] + session.dropped
        session.close()
    if lost:
        say(f"{lost} calls are not shown: they came faster than they could be read", "warning")
    return Exit.OK


def _print_all(session: Session, arguments: argparse.Namespace, before: int) -> int:
    printed = 0
    offset_ns = time.time_ns() - time.monotonic_ns()
    lines = []
    while session.records:
        try:
            event = decode(session.records.popleft())
        except DecodeError as error:
            say(str(error), "warning")
            continue
        if not isinstance(event, UnlinkEvent):
            continue
        if arguments.pid and event.who.tgid != arguments.pid:
            continue
        if arguments.count and before + printed >= arguments.count:
            break
        lines.append(line(event, offset_ns))
        printed += 1
    if lines:
        print("\n".join(lines), flush=True)
    return printed


def line(event: UnlinkEvent, offset_ns: int) -> str:
    """One call; a name that only the kernel knows stands for a path that could not be read."""
    when = datetime.datetime.fromtimestamp((event.ns + offset_ns) / 1e9)
    result = "ok" if event.result == 0 else errno.errorcode.get(-event.result, str(event.result))
    dev = ":".join(map(str, device(event.dev))) if event.ino else "-"
    inode = str(event.ino) if event.ino else "-"
    path = plain(event.path) or f".../{plain(event.name)}"
    return (
        f"{when:%H:%M:%S.%f} {event.who.tgid:>7} {plain(event.who.comm):16} {result:8}"
        f" {dev:>7} {inode:>10} {path}"
    )
