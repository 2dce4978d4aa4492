"""`make fuzz SECONDS=n`: damaged input to everything that parses, counted.

Real input, changed at random; what takes a step through our code that none took before is changed
further.  A target may refuse it with its own error and with nothing else, and quickly.
What reads through C (BTF) does so in a child, so that a crash is seen as one.
"""

from __future__ import annotations

import argparse
import bz2
import concurrent.futures
import concurrent.futures.process
import contextlib
import ctypes
import functools
import gzip
import io
import json
import lzma
import multiprocessing
import os
import random
import signal
import socket
import struct
import sys
import tarfile
import time
import traceback
import types
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

from prometheus_client import CollectorRegistry

from ebpfwatch import config
from ebpfwatch.commands.report import _text
from ebpfwatch.errors import EbpfwatchError
from ebpfwatch.events import wire
from ebpfwatch.host import (
    ParseError,
    meminfo,
    mounts,
    pressure,
    process,
    slabinfo,
    swaps,
    vfs,
    vmstat,
    zoneinfo,
)
from ebpfwatch.kernellog.traced import traced
from ebpfwatch.kernellog.watcher import Watcher
from ebpfwatch.loader.btf import Btf, BtfError
from ebpfwatch.postmortem.last_boot import BootRecord
from ebpfwatch.sinks.status import Status
from ebpfwatch.sinks.web import Web, webconfig
from ebpfwatch.sinks.web.guard import Guard
from ebpfwatch.sinks.web.handler import Handler, Pages, _wanted, head
from ebpfwatch.sinks.web.passwords import _basic
from ebpfwatch.text.printable import printable
from ebpfwatch.triage import explain, kofile, summary
from ebpfwatch.triage.logs import logs
from tests.trust.figures import record
from tests.unit.test_verdicts import judged

ROOT = Path(__file__).parents[2]
SLOW_SECONDS = 2.0
BTF = Path("/sys/kernel/btf/vmlinux")
_BATCH = 8
WEB_CONFIG = b"""tls_server_config:
  cert_file: server.crt
  key_file: server.key
  min_version: TLS12
basic_auth_users:
  prometheus: $2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG
"""

Target = Callable[[bytes], None]

_PACKAGE = f"{os.sep}ebpfwatch{os.sep}"
_MOST_INPUTS, _LARGEST_INPUT = 2000, 1 << 16


class Coverage:
    """Which steps, from one line of the package to the next, were taken so far."""

    def __init__(self) -> None:
        self.steps: set[tuple[types.CodeType, int, int]] = set()
        self._new = False

    def finds(self, job: Callable[[], None]) -> bool:
        """Run the job; whether it took a step that none took before."""
        self._new = False
        sys.settrace(self._enter)
        try:
            with contextlib.suppress(Exception):  # it was told when the job ran without us
                job()
        finally:
            sys.settrace(None)
        return self._new

    def _enter(self, frame: types.FrameType, event: str, argument: object) -> Any:
        code = frame.f_code
        if _PACKAGE not in code.co_filename:
            return None
        last = 0

        def line(frame: types.FrameType, event: str, argument: object) -> Any:
            nonlocal last
            step = code, last, frame.f_lineno
            last = frame.f_lineno
            if step not in self.steps:
                self.steps.add(step)
                self._new = True
            return line

        return line


def damage(rng: random.Random, seed: bytes) -> bytes:
    """The seed with a few bytes, or a piece of it, changed, doubled, left out or cut off."""
    data = bytearray(seed)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.randrange(1, 64))
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[at % len(data)] = rng.randrange(256)
        elif kind == 1:
            del data[at:end]
        elif kind == 2:
            data[at:at] = data[at:end] * rng.randrange(1, 9)
        elif kind == 3:
            data[at:at] = rng.choice(NASTY)
        elif kind == 4:
            del data[at:]
        else:
            data[at:end] = rng.randbytes(end - at)
    return bytes(data)


NASTY = (
    b"\0", b"\xff\xff\xff\xff", b"-1", b"9" * 40, b"1e999", b"[" * 2000, b"{" * 500, b"&a *a ",
    b"\r\n\r\n", b": ", b"!!python/object/apply:os.system ['true']\n", b"\xe2\x80\xa8", b"NaN",
)  # fmt: skip


@contextlib.contextmanager
def in_a_file(data: bytes) -> Iterator[Path]:
    """A path where these bytes are."""
    fd = os.memfd_create("fuzz")
    try:
        os.write(fd, data)
        yield Path(f"/proc/{os.getpid()}/fd/{fd}")
    finally:
        os.close(fd)


def read_config(data: bytes) -> None:
    """A configuration."""
    with in_a_file(data) as path, contextlib.suppress(EbpfwatchError):
        config.load(path)


def read_web_config(data: bytes) -> None:
    """A web configuration: certificates, users, headers."""
    with in_a_file(data) as path, contextlib.suppress(EbpfwatchError):
        webconfig.load(str(path))


def read_proc(parse: Callable[[str], object]) -> Target:
    """A file of /proc."""

    def target(data: bytes) -> None:
        with contextlib.suppress(ParseError):
            parse(data.decode("utf-8", "surrogateescape"))

    return target


def read_task(data: bytes) -> None:
    """/proc/PID/stat and cgroup, with a comm that its user chose, and the name as it is shown."""
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(ParseError):
        process._stat(text)
    process._cgroup(text)
    for shown in (printable(text), printable(data.decode("utf-8", "surrogateescape"))):
        # Spaces of every script may stay, which str.isprintable() does not know of.
        assert all(c.isprintable() or unicodedata.category(c) == "Zs" for c in shown)
        assert len(shown.splitlines()) <= 1
        shown.encode("utf-8")


def read_record(data: bytes) -> None:
    """A record of the ring, of any size and version."""
    with contextlib.suppress(wire.DecodeError):
        wire.decode(data)


def read_finding(data: bytes) -> None:
    """A file of the findings directory, or a journal record of root's, as `report` shows it."""
    with contextlib.suppress(ValueError, RecursionError):
        body = json.loads(data)
        if isinstance(body, dict):
            _text(body)


def read_boot(data: bytes) -> None:
    """boot.json, and a name asked of it."""
    with in_a_file(data) as path:
        boot = BootRecord.read(path)
        if boot is not None:
            boot.name(1 << 62)


def read_console(data: bytes) -> None:
    """A trace buffer dumped to the console."""
    for verdict in traced(data.decode("utf-8", "replace").splitlines()):
        verdict.text()


def read_kernel_log(data: bytes) -> None:
    """The log of a dead machine: told, and as JSON."""
    for boot in summary.read(io.BufferedReader(io.BytesIO(data))):
        explain.tell(boot, "log")
        json.dumps(explain.to_json(boot))


def read_kmsg(data: bytes) -> None:
    """Records of /dev/kmsg, one a line: what the watcher makes of them, and what it tells."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    try:
        watcher = Watcher(Path("/dev/null"))
        os.close(watcher.fd)
        watcher.fd = reader
        for record in data.split(b"\n\n")[:64]:
            os.write(writer, record[:4096] or b";")
            for report in watcher.read().reports:
                assert report.title
    finally:
        os.close(reader)
        os.close(writer)


def read_request(data: bytes) -> None:
    """An HTTP request, without a socket: what the thread that answers everybody runs."""
    pages = Pages(CollectorRegistry(), lambda: Status(0.0, ready=True), tuple)
    served: Any = types.SimpleNamespace(guard=Guard(), local=True, pages=pages, defect=_defect)
    found = head(data)
    if found:
        assert Handler(found, served).code


def _defect(path: str, error: Exception) -> None:
    raise error


def read_authorization(data: bytes) -> None:
    """The header of a password."""
    _basic(data.decode("latin-1"))
    _wanted(data.decode("latin-1"))


def read_archive(data: bytes) -> None:
    """A compressed or archived log, by its content."""
    with in_a_file(data) as path:
        with contextlib.suppress(EbpfwatchError):
            for log in logs([str(path)]):
                for boot in log.boots:
                    explain.tell(boot, log.name)


def read_module(data: bytes) -> None:
    """The file of a kernel module: its undefined symbols."""
    list(kofile.undefined(data))


def read_btf(data: bytes) -> None:
    """A detached BTF file, in a child that may take two seconds."""
    with in_a_file(data) as path:
        child = os.fork()
        if child == 0:
            signal.alarm(int(SLOW_SECONDS))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            code = 1
            try:
                btf = Btf(file=str(path))
                btf.offset("inode", "i_ino")
                btf.raw_tracepoint_arguments("kmem_cache_free")
                code = 0
            except BtfError:
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert status == 0, f"the reader ended with status {status:#x}"


@contextlib.contextmanager
def server() -> Iterator[Target]:
    """A web server that must answer or hang up, and still answer the next one."""
    web = Web("127.0.0.1", 0)
    web.start(CollectorRegistry(), lambda: Status(0.0, ready=True), tuple)
    address = ("127.0.0.1", int(web.url.rpartition(":")[2]))

    def ask(data: bytes) -> bytes:
        with socket.create_connection(address, 10) as client:
            with contextlib.suppress(OSError):
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                return b"".join(iter(lambda: client.recv(65536), b""))
        return b""

    def target(data: bytes) -> None:
        answer = ask(data)
        assert b"Traceback" not in answer and not answer.startswith(b"HTTP/1.0 500"), answer[:200]
        assert b"200" in ask(b"GET /-/healthy HTTP/1.0\r\n\r\n")

    yield target
    web.stop()


def small_btf() -> bytes:
    """Types of our own, as small as a BTF file can be: a struct with a pointer to itself."""
    names = b"\0inode\0i_ino\0long\0btf_trace_kmem_cache_free\0"

    def name(text: bytes) -> int:
        return names.index(b"\0" + text + b"\0") + 1

    def kind(which: int, count: int = 0) -> int:
        return which << 24 | count

    words = [
        name(b"long"), kind(1), 8, 64,  # 1: int
        name(b"inode"), kind(4, 2), 16, name(b"i_ino"), 1, 64, 0, 3, 0,  # 2: struct
        0, kind(2), 2,  # 3: pointer to 2
        0, kind(13, 2), 0, 0, 3, 0, 3,  # 4: function
        0, kind(2), 4,  # 5: pointer to 4
        name(b"btf_trace_kmem_cache_free"), kind(8), 5,  # 6: typedef
    ]  # fmt: skip
    types = b"".join(word.to_bytes(4, "little") for word in words)
    head = (0xEB9F | 1 << 16).to_bytes(4, "little")
    sizes = [24, 0, len(types), len(types), len(names)]
    return head + b"".join(size.to_bytes(4, "little") for size in sizes) + types + names


def small_module() -> bytes:
    """A relocatable ELF file of our own: a table of two undefined symbols, and their names."""
    names = b"\0dput\0iput\0"
    symbols = struct.pack("<IBBHQQ", 0, 0, 0, 0, 0, 0)
    symbols += b"".join(struct.pack("<IBBHQQ", at, 16, 0, 0, 0, 0) for at in (1, 6))
    where = 64
    sections = [
        (0, 0, 0, 0),
        (2, where, len(symbols), 2),
        (3, where + len(symbols), len(names), 0),
    ]
    table = b"".join(
        struct.pack("<IIQQQQIIQQ", 0, kind, 0, 0, at, size, link, 0, 8, 24)
        for kind, at, size, link in sections
    )
    begin = where + len(symbols) + len(names)
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 1, 183, 1, 0, 0, begin, 0, 64, 0, 0, 64, len(sections), 2)
    whole = head + symbols + names + table
    assert list(kofile.undefined(whole)) == ["dput", "iput"]
    return whole


def archives(log: bytes) -> list[bytes]:
    """The same log in each form that is unpacked."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        member = tarfile.TarInfo("a/dmesg")
        member.size = len(log)
        archive.addfile(member, io.BytesIO(log))
    return [gzip.compress(log), lzma.compress(log), bz2.compress(log), whole.getvalue()]


def targets(stack: contextlib.ExitStack) -> dict[str, tuple[Target, list[bytes]]]:
    """What is fuzzed, and with what to begin."""
    example = (ROOT / "config.example.yaml").read_bytes()
    step = bytes(wire.StepRecord(wire.Header(1, ctypes.sizeof(wire.StepRecord), 0, 1)))
    finding = json.dumps(judged().to_json()).encode()
    boot = BootRecord("id", "6.1.0", 1.0, test_page=(1, 2))
    trace = b" rm-7 [001] d..3 48.6: bpf_trace_printk: ebpfwatch verdict=3 ino=12 obj=ff12\n"
    trace += b" rm-7 [001] d..3 48.6: bpf_trace_printk: ebpfwatch caller=ff gen=7 dev=800001\n"
    ask = (
        b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: text/plain;q=0.5\r\nRange: bytes=1-2\r\n\r\n"
    )
    samples = sorted((ROOT / "tests/fixtures/logs").glob("*.txt"))
    kmsg = [
        b"\n\n".join(b"4,%d,%d,-;%s" % (n, n, line) for n, line in enumerate(lines[at : at + 64]))
        for log in samples
        for lines in [log.read_bytes().split(b"\n")]
        for at in range(0, len(lines), 64)
    ][:64]
    trees = [ROOT / f"tests/fixtures/proc-{name}" for name in ("4.19", "6.12", "x86")]

    def of(name: str) -> list[bytes]:
        return [(tree / name).read_bytes() for tree in trees if (tree / name).exists()]

    return {
        "config": (read_config, [example]),
        "web config": (read_web_config, [WEB_CONFIG]),
        "mountinfo": (read_proc(mounts.parse), of("self/mountinfo")),
        "zoneinfo": (read_proc(lambda text: zoneinfo.parse(text, 4096)), of("zoneinfo")),
        "meminfo": (read_proc(meminfo.parse), of("meminfo")),
        "slabinfo": (read_proc(lambda text: slabinfo.parse(text, 4096)), of("slabinfo")),
        "swaps": (read_proc(swaps.parse), of("swaps")),
        "pressure": (read_proc(lambda text: pressure.parse(text, "memory")), of("pressure/memory")),
        "dentry-state": (
            read_proc(lambda text: vfs.parse("1 0 2\n", "1 0\n", text)),
            of("sys/fs/dentry-state"),
        ),
        "vmstat": (read_proc(vmstat.parse), of("vmstat")),
        "task": (read_task, [b"7 (a) b (c)) S 1 " + b"2 " * 40, b"0::/a.slice/b.service\n"]),
        "ring record": (read_record, [step, wire.selftest_record(1, 2, 3, 4)]),
        "finding": (read_finding, [finding]),
        "boot.json": (read_boot, [json.dumps(vars(boot)).encode()]),
        "trace on a console": (read_console, [trace]),
        "kernel log": (read_kernel_log, [log.read_bytes() for log in samples]),
        "archived log": (read_archive, archives(samples[0].read_bytes())),
        "module": (read_module, [small_module()]),
        "BTF file": (read_btf, [small_btf()]),
        "/dev/kmsg": (read_kmsg, kmsg),
        "HTTP request": (read_request, [ask]),
        "Authorization and Accept": (
            read_authorization,
            [b"Basic cHJvbWV0aGV1czpzZWNyZXQ=", b"text/plain;q=0.5, application/openmetrics-text"],
        ),
        "HTTP connection": (stack.enter_context(server()), [ask]),
    }


Counts = tuple[int, int, int, float]


def fuzz(
    names: list[str], seconds: float, seed: int
) -> tuple[dict[str, Counts], dict[tuple[str, str], str]]:
    """By target: inputs, steps through our code, inputs that found one, and seconds of CPU; and
    what went wrong.  Each target gets its share of the time.
    """
    counts: dict[str, Counts] = {}
    problems: dict[tuple[str, str], str] = {}
    with contextlib.ExitStack() as stack:
        todo = targets(stack)
        for name in names:
            target, seeds = todo[name]
            rng = random.Random(f"{seed} {name}")
            counts[name] = _fuzz_one(name, target, list(seeds), rng, seconds / len(names), problems)
    return counts, problems


def side_by_side(
    names: list[str], seconds: float, seed: int
) -> tuple[dict[str, Counts], dict[tuple[str, str], str]]:
    """The same, each target in a process of its own, which has all of the time."""
    counts: dict[str, Counts] = {}
    problems: dict[tuple[str, str], str] = {}
    with concurrent.futures.ProcessPoolExecutor(
        len(names), multiprocessing.get_context("fork")
    ) as pool:
        ends = {name: pool.submit(fuzz, [name], seconds, seed) for name in names}
        for name, end in ends.items():
            try:
                found, wrong = end.result()
            except concurrent.futures.process.BrokenProcessPool as error:
                found, wrong = {}, {(name, "died"): f"{name} or another one died: {error}"}
            counts.update(found)
            problems.update(wrong)
    return counts, problems


def _fuzz_one(
    name: str,
    target: Target,
    inputs: list[bytes],
    rng: random.Random,
    seconds: float,
    problems: dict[tuple[str, str], str],
) -> Counts:
    count, coverage, start = 0, Coverage(), time.process_time()
    ran, traced_for, sound = 0.0, 0.0, len(inputs)
    for data in inputs:
        target(data)
        coverage.finds(functools.partial(target, data))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for _ in range(_BATCH):
            # Half of the time the newest: what it found is the least explored.
            newest = inputs[-32:] if rng.random() < 0.5 else inputs
            data = damage(rng, rng.choice(newest))
            began = time.process_time()
            try:
                target(data)
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                kind = f"{type(error).__name__} in {where.name}, line {where.lineno}"
                problems.setdefault((name, kind), f"{name}: {kind}: {error}: {data[:300]!r}")
            took = time.process_time() - began
            if took > SLOW_SECONDS:
                problems.setdefault((name, "slow"), f"{name}: slow: {data[:300]!r}")
            count, ran = count + 1, ran + took
            # Tracing is slow: at most as long as running, so that many inputs are tried.
            if traced_for <= ran and len(data) <= _LARGEST_INPUT:
                began = time.process_time()
                if coverage.finds(functools.partial(target, data)) and len(inputs) < _MOST_INPUTS:
                    inputs.append(data)
                traced_for += time.process_time() - began
    return count, len(coverage.steps), len(inputs) - sound, time.process_time() - start


def main() -> int:
    """Fuzz, print the counts; 1 if anything was not refused as it must be."""
    with contextlib.ExitStack() as stack:
        every = list(targets(stack))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all together")
    parser.add_argument("--each", action="store_true", help="for each, all at the same time")
    parser.add_argument("--only", default="", help=f"names with commas, of: {'; '.join(every)}")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else every
    unknown = sorted(set(names) - set(every))
    if unknown:
        parser.error(f"there is no target {', '.join(unknown)}")
    with contextlib.redirect_stderr(io.StringIO()):
        run = side_by_side if arguments.each else fuzz
        counts, problems = run(names, arguments.seconds, arguments.seed)
    rows = [
        f"| {name} | {inputs} | {steps} | {news} | {cpu:.0f} |"
        for name, (inputs, steps, news, cpu) in counts.items()
    ]
    total = sum(inputs for inputs, *_ in counts.values())
    table = [
        "| damaged | inputs | steps in our code | inputs that found one | seconds of CPU |",
        "|---|---|---|---|---|",
    ]
    table += [*rows, f"| all | {total}, {len(problems)} not refused as they must be | | | |"]
    table += [f"| seed | {arguments.seed} | | | |"]
    command = f"make fuzz SECONDS={arguments.seconds:g}{' EACH=1' if arguments.each else ''}"
    command += f' ONLY="{arguments.only}"' if arguments.only else ""
    if arguments.each:
        record("fuzz-each", command, table, ROOT / "docs/security.md")
    else:
        record("fuzz", command, table)
    print("\n".join(list(problems.values())[:20]) or "as it must be", flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
