"""What is measured: nothing, the floors, ebpfwatch, and what else people would take.

A subject is loaded once and then only attached and detached, so that one round takes seconds and a
noisy neighbour hits all alike.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Callable

from ebpfwatch.catalogue.ladder import Attachment
from ebpfwatch.kernel.attach import attach_or_fail
from ebpfwatch.kernel.session import Session
from ebpfwatch.loader.bpf import EXIT, PROGRAM_TYPES, load_program
from ebpfwatch.loader.running import version_code
from tests.live.harness import load_session

__all__ = [
    "AGAIN",
    "FINE",
    "NO_EVIDENCE",
    "NO_UNLINK",
    "ONE_LINER",
    "ONLY_CAUSES",
    "Subject",
    "available",
    "subjects",
]

HERE = Path(__file__).parent

#: The case's: every unlink printed.
ONE_LINER = (
    "tracepoint:syscalls:sys_enter_unlink, tracepoint:syscalls:sys_enter_unlinkat"
    ' { printf("%s %s %d\\n", str(args->pathname), comm, pid); }'
)


#: What a ratio of two equal things comes to, in the same run: the error of all others.
AGAIN = "nothing, again"

#: The same verdicts without what a report is made of: what the default costs more is its price.
NO_EVIDENCE = "ebpfwatch, no evidence"

#: Without who unlinked, which two of the verdicts need.
NO_UNLINK = "ebpfwatch, no unlink hooks"

#: Without the hooks that see allocations and frees: every cause is told, no second free is.
ONLY_CAUSES = "ebpfwatch, evictions and contracts only"
_OF_FREES = frozenset(("alloc", "destroy", "rcu_free", "any_free"))

#: What differs so little from another subject that only many near pairs show it.
FINE = (AGAIN, NO_EVIDENCE, NO_UNLINK, ONLY_CAUSES)

#: Verdicts into the trace buffer, as by default; without changing the machine's sysctl.
_TRACE: dict[str, object] = {"trace": True, "dump_on_oops": False}


class Subject:
    """``on`` attaches for the duration of a with block; ``floor`` is the subject to divide by."""

    def __init__(self, name: str, on: Callable[[], object], what: str, floor: str = "") -> None:
        self.name, self.on, self.what, self.floor = name, on, what, floor


def subjects(mount: Path, stack: contextlib.ExitStack) -> list[Subject]:
    """All of this machine; loaded until the stack unwinds."""
    found = [
        Subject("nothing", contextlib.nullcontext, "no program anywhere"),
        Subject(AGAIN, contextlib.nullcontext, "the same once more: how far equals differ here"),
    ]
    variants: dict[str, tuple[dict[str, object], str]] = {
        "ebpfwatch": ({"alloc": "auto", **_TRACE}, "the default configuration"),
        "ebpfwatch, everything on": (
            {"alloc": "always", "first_stacks": True, **_TRACE},
            "`hooks.alloc: always`, `evidence.first_stacks: true`",
        ),
        "ebpfwatch, least hooks": (
            {"alloc": "never", "any_free": "never", "table_slots": 4096},
            "`hooks.alloc: never`, `hooks.any_free: never`, `kernel.table_slots: 4096`",
        ),
        NO_EVIDENCE: (
            {"alloc": "auto", "names": False, "trace": False, "dump_on_oops": False},
            "`evidence.names: false`, `evidence.trace: false`: the same verdicts, without a name",
        ),
        NO_UNLINK: (
            {"alloc": "auto", "rungs": "unlink=none", "trace": False, "dump_on_oops": False},
            "`hooks.rungs: unlink=none`, `evidence.trace: false`: who unlinked is unknown, too",
        ),
    }
    variants[ONLY_CAUSES] = (
        {"alloc": "auto", **_TRACE},
        "the default's hooks without those of allocations and frees",
    )
    for name, (changes, what) in variants.items():
        session = load_session(mount, attach=False, **changes)
        stack.callback(session.close)
        floor = "" if name in FINE else f"floor of {name}"
        if floor:
            found.append(Subject(floor, _floor(session, stack), "empty programs on the same hooks"))
        without = _OF_FREES if name == ONLY_CAUSES else frozenset()
        found.append(Subject(name, _watcher(session, without), what, floor))
    return found + _others()


def _watcher(session: Session, without: frozenset[str]) -> Callable[[], object]:
    armed = {hook.role for hook in session.loaded.hooks if hook.armed}

    @contextlib.contextmanager
    def on() -> Iterator[None]:
        for role in dict.fromkeys(place.role for place in session.links.places):
            if role not in without and role not in armed:
                session.links.attach(role)
        session.since = dict.fromkeys(session.since, time.monotonic_ns())
        session.configure(0, ())
        yield
        session.links.detach()

    return on


def _floor(session: Session, stack: contextlib.ExitStack) -> Callable[[], object]:
    places = [(place.kind, place.attachment) for place in session.loaded.places]
    programs = {}
    for kind, _ in places:
        if kind not in programs:
            programs[kind] = load_program(PROGRAM_TYPES[kind], EXIT, version_code())
            stack.callback(os.close, programs[kind])
    return lambda: _attached(places, programs)


@contextlib.contextmanager
def _attached(places: Sequence[tuple[str, Attachment]], programs: dict[str, int]) -> Iterator[None]:
    links = [
        attach_or_fail(kind, programs[kind], attachment, attachment.target)
        for kind, attachment in places
    ]
    yield
    for link in links:
        os.close(link)


def _others() -> list[Subject]:
    """Tools of the distribution, where they are installed."""
    bpftrace = shutil.which("bpftrace")
    found = []
    if bpftrace:
        one_liner = _tool([bpftrace, "-e", ONE_LINER], "Attaching")
        found.append(Subject("bpftrace one-liner", one_liner, "prints every unlink"))
        script = _tool([bpftrace, str(HERE / "lifecycle.bt")], "Attaching")
        found.append(Subject("bpftrace lifecycle", script, "tests/bench/lifecycle.bt"))
    memleak = shutil.which("memleak-bpfcc")
    if memleak:
        leaks = _tool([memleak, "3600"], "Attaching")
        found.append(Subject("bcc memleak", leaks, "memleak-bpfcc on the kernel's allocations"))
    return found


def _tool(words: list[str], ready: str) -> Callable[[], object]:
    @contextlib.contextmanager
    def on() -> Iterator[None]:
        process = _start(words, ready)
        yield
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    return on


#: For them alone: tracefs where it belongs, and the distribution's kernel headers where bcc looks,
#: on a machine whose own kernel has none. memleak takes its layouts from tracefs.
_WITH_WHAT_THEY_WANT = """
[ -e /sys/kernel/tracing/events ] || mount -t tracefs none /sys/kernel/tracing
modules=/lib/modules/$(uname -r)
headers=$(ls -d /usr/src/linux-headers-*-common 2>/dev/null | tail -n 1)
if [ ! -e "$modules/build" ] && [ -n "$headers" ]; then
    mount -t tmpfs none /lib/modules && mkdir "$modules"
    ln -s "${headers%-common}-$(dpkg --print-architecture)" "$modules/build"
    ln -s "$headers" "$modules/source"
fi
exec "$@"
"""


def _start(words: list[str], ready: str) -> subprocess.Popen[bytes]:
    """Start it with its output in a file, and wait until it says that it is attached."""
    words = ["unshare", "--mount", "sh", "-c", _WITH_WHAT_THEY_WANT, "sh", *words]
    log = os.memfd_create("tool")
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "BPFTRACE_STRLEN": "64",
    }
    process = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
    deadline = time.monotonic() + 30
    said = b""
    while ready.encode() not in said:
        said = os.pread(log, 1 << 16, 0)
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise OSError(_reason(said.decode(errors="replace")))
        time.sleep(0.02)
    time.sleep(1)  # "Attaching" comes before the last one is attached
    os.close(log)
    return process


def _reason(said: str) -> str:
    """The first line that calls itself an error, else the last; the rest points at columns."""
    lines = [line for line in said.splitlines() if line.strip()] or ["said nothing"]
    return next((line for line in lines if "error" in line.lower()), lines[-1])[-200:]


def available(found: list[Subject]) -> tuple[list[Subject], dict[str, str]]:
    """Those that can be attached here, and why not the others."""
    good, missing = [], {}
    for subject in found:
        try:
            with subject.on():  # type: ignore[attr-defined]
                good.append(subject)
        except OSError as error:
            missing[subject.name] = " ".join(str(error).split())
    return good, missing
