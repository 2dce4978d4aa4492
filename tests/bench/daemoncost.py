"""What the daemon itself costs: start, memory, CPU, and how fast it answers under a storm."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from ebpfwatch.commands.selftest import double_free, open_playback
from ebpfwatch.system.lock import Running, running_daemon
from tests.bench.starting import Start, Watched, memory_limit
from tests.bench.workloads import Bench
from tests.live.harness import PATIENCE, ROOT, DaemonProcess, start_daemon, write_config

__all__ = ["costs", "starts"]

_SMALL = 96  #: MiB: as much as the machines of the case have free

_FRESH_SCRAPES = 60


def costs(bench: Bench, lives: int, rest: float, shots: int) -> dict[str, float]:
    """Figures by name; seconds, bytes and percent of one CPU."""
    found: dict[str, float] = {}
    daemon = _start(bench, "cost")
    try:
        found.update(_at_rest(daemon, rest))
        found.update(_in_storm(bench, daemon, shots))
        found.update(_after(bench, daemon, lives))
    finally:
        daemon.stop()
    return found


def starts(bench: Bench) -> dict[str, float]:
    """Figures of the start: from what is kept, with the compiler, and both with little memory."""
    kept, fresh = bench.directory / "kept", bench.directory / "fresh"
    for directory in (kept, fresh):  # one each that is not counted: what is compiled is kept then
        _watched(bench, directory)
    figures = {}
    for way, directory, count in (("", kept, 9), (", compiling", fresh, 5)):
        rounds = [_watched(bench, directory, keep=not way) for _ in range(count)]
        assert all(start.compiled is bool(way) for start in rounds), way
        figures[f"start to ready{way}, s"] = statistics.median(s.seconds for s in rounds)
        cpu = statistics.median(s.cpu_seconds for s in rounds)
        figures[f"CPU time of all processes until ready{way}, s"] = cpu
        figures[f"peak of all processes at a start{way}, MB"] = max(s.peak_mb for s in rounds)
    with memory_limit(_SMALL << 20) as wrapper:
        for way, directory in (("", kept), (", compiling", fresh)) if wrapper else ():
            start = _watched(bench, directory, wrapper, keep=not way)
            figures[f"start to ready in a cgroup of {_SMALL} MiB{way}, s"] = start.seconds
    return figures


def _watched(
    bench: Bench, directory: Path, wrapper: Sequence[str] = (), keep: bool = True
) -> Start:
    """One start in this directory; without ``keep`` nothing that was compiled is there."""
    directory.mkdir(exist_ok=True)
    if not keep:
        shutil.rmtree(directory / "state/programs", ignore_errors=True)
    words = [*wrapper, sys.executable, "-m", "ebpfwatch", "run", "--config"]
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(directory / "run")}
    # As installed: the packages compile the Python when they are installed, a checkout at its first
    # start. Compiling takes as long as all else, and 6 MB, and the shell may have switched it off.
    environment["PYTHONPYCACHEPREFIX"] = str(bench.directory / "pycache")
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    daemon = Watched([*words, str(write_config(directory))], directory / "log", environment, ROOT)
    try:
        return daemon.start(PATIENCE)
    finally:
        daemon.stop()


def _start(bench: Bench, name: str) -> DaemonProcess:
    directory = bench.directory / name
    directory.mkdir()
    # Each finding must be written: no folding, no limit.
    return start_daemon(directory, fold_seconds="0", per_minute="10000")


def _status(daemon: DaemonProcess, key: str) -> int:
    text = Path(f"/proc/{daemon.process.pid}/status").read_text()
    found = re.search(rf"^{key}:\s+(\d+)", text, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


def _cpu(daemon: DaemonProcess) -> float:
    """Seconds of CPU, user and system; schedstat is exact where stat counts ticks."""
    total = 0.0
    for task in Path(f"/proc/{daemon.process.pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((task / "schedstat").read_text().split()[0]) / 1e9
    return total


def _at_rest(daemon: DaemonProcess, seconds: float) -> dict[str, float]:
    daemon.metrics()
    time.sleep(12)  # the first canaries
    cpu, began = _cpu(daemon), time.monotonic()
    time.sleep(seconds)
    percent = 100 * (_cpu(daemon) - cpu) / (time.monotonic() - began)
    memory = daemon.settled_metrics()["ebpfwatch_kernel_memory_bytes"]
    fresh = [_scrape_ms(daemon, 1.05) for _ in range(_FRESH_SCRAPES)]
    anew = "scrape that reads every collector anew"
    return {
        f"{anew}, median of {_FRESH_SCRAPES}, ms": statistics.median(fresh),
        f"{anew}, p99 of {_FRESH_SCRAPES}, ms": _p99(fresh),
        f"daemon CPU at rest ({seconds:.0f} s), %": percent,
        "kernel memory, MB": memory / 1e6,
        "daemon RSS at rest, MB": _status(daemon, "VmRSS") / 1e6,
    }


@contextlib.contextmanager
def _storming(bench: Bench) -> Iterator[None]:
    words = [bench.directory / "storm", bench.mount, str(10**9), "endless"]
    process = subprocess.Popen(list(map(str, words)))
    try:
        yield
    finally:
        process.terminate()
        process.wait()
        for left in bench.mount.glob("storm-endless-*"):
            left.unlink()


def _in_storm(bench: Bench, daemon: DaemonProcess, shots: int) -> dict[str, float]:
    with _storming(bench):
        cpu, began = _cpu(daemon), time.monotonic()
        time.sleep(20)
        percent = 100 * (_cpu(daemon) - cpu) / (time.monotonic() - began)
        facts = running_daemon(daemon.run_directory)
        latencies = [_latency_ms(facts, number) for number in range(shots)]
        scrapes = [_scrape_ms(daemon) for _ in range(shots)]
    return {
        "daemon CPU in a storm, %": percent,
        f"event to file in a storm, median of {shots}, ms": statistics.median(latencies),
        f"event to file in a storm, p99 of {shots}, ms": _p99(latencies),
        f"scrape in a storm, median of {shots}, ms": statistics.median(scrapes),
        f"scrape in a storm, p99 of {shots}, ms": _p99(scrapes),
    }


def _p99(values: list[float]) -> float:
    return sorted(values)[max(0, -(-len(values) * 99 // 100) - 1)]


def _latency_ms(daemon: Running, number: int) -> float:
    """From a second free through the loaded programs until a new finding is on the disk."""
    bed = open_playback(daemon)
    bed.inode.ino, bed.inode.generation = 10_000_000 + number, number
    findings = os.path.join(daemon.state_directory, "findings")
    before = set(os.listdir(findings))
    began_ns = double_free(bed)
    while not any(name.endswith(".json") for name in set(os.listdir(findings)) - before):
        if time.monotonic_ns() - began_ns > 10_000_000_000:
            raise TimeoutError("no finding within 10 s")
        time.sleep(0.0005)
    return (time.monotonic_ns() - began_ns) / 1e6


def _scrape_ms(daemon: DaemonProcess, pause: float = 0.05) -> float:
    """Collectors are kept for a second: after a longer pause they are read."""
    time.sleep(pause)
    began = time.perf_counter()
    with urllib.request.urlopen(f"{daemon.url}/metrics", timeout=10) as answer:
        answer.read()
    return (time.perf_counter() - began) * 1e3


def _after(bench: Bench, daemon: DaemonProcess, lives: int) -> dict[str, float]:
    before = _status(daemon, "VmRSS")
    halves = [
        subprocess.Popen([bench.directory / "storm", bench.mount, str(lives // 2), f"r{number}"])
        for number in range(2)
    ]
    assert all(process.wait() == 0 for process in halves)
    daemon.metrics()
    after = _status(daemon, "VmRSS")
    return {
        f"daemon RSS after {lives:,} lives, MB": after / 1e6,
        f"daemon RSS growth over {lives:,} lives, MB": (after - before) / 1e6,
    }
