"""`make soak HOURS=n`: storm and reclaim for hours, a self-test in every round, and what drifts.

A watcher of its own: run directory, state, port and ext4 are made for it, so that it can run
beside others.  The load runs at nice 19, the daemon as it always does.  Ends with exit 1 if a
self-test was not found, if anything was found that is none, if an eviction is not accounted for, or
if the daemon grew.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ebpfwatch.commands.selftest import double_free, open_playback
from ebpfwatch.config import FindingsConfig
from ebpfwatch.errors import EbpfwatchError
from ebpfwatch.system.lock import running_daemon
from tests.live.balance import Balance, DaemonMaps, balance
from tests.live.harness import (
    DaemonProcess,
    build_storm,
    command,
    loop_ext4,
    start_daemon,
)
from tests.trust.figures import record

_FOUND = re.compile(r"OK   report: (\d+) ms")
_MEMCG = Path("/sys/fs/cgroup/memory")
_RSS_LIMIT = 32e6
_KEPT = FindingsConfig.keep
_DRIFT_LIMIT = 1e6  # bytes an hour


@dataclasses.dataclass(frozen=True)
class Round:
    """What one round saw; bytes and milliseconds."""

    seconds: float
    rss: int
    fds: int
    threads: int
    found_ms: float | None  # None: the self-test was not found
    scrape_ms: float


def storm(binary: Path, mount: Path, files: int, round_: int) -> None:
    """Two tasks create and unlink side by side."""
    tasks = [
        subprocess.Popen(["nice", "-n", "19", binary, mount, str(files // 2), f"{round_}-{task}"])
        for task in range(2)
    ]
    for task in tasks:
        assert task.wait() == 0


def reclaim(mount: Path, files: int) -> None:
    """Let reclaim, not deletion, take inodes: in a cgroup of our own, else of the whole machine."""
    directory = mount / "reclaim"
    make = f"mkdir -p {directory}; cd {directory}; seq {files} | xargs touch; cat *"
    group = _MEMCG / f"ebpfwatch-soak-{os.getpid()}"
    if not (_MEMCG / "memory.force_empty").exists():
        subprocess.run(["sh", "-c", make], check=True, stdout=subprocess.DEVNULL)
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("2")
        return
    group.mkdir(exist_ok=True)
    enter = f"echo $$ >{group}/cgroup.procs; "
    subprocess.run(["sh", "-c", enter + make], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["sync", "-f", mount], check=True)
    with contextlib.suppress(OSError):  # busy: it has taken what it could
        (group / "memory.force_empty").write_text("0")
    with contextlib.suppress(OSError):
        group.rmdir()


def selftest(daemon: DaemonProcess) -> float | None:
    """Milliseconds from the second free to the finding on disk; None if it was not found."""
    done = command("selftest", "--timeout", "30", run_directory=daemon.run_directory)
    found = _FOUND.search(done.stdout)
    if done.returncode or not found:
        print(f"NOT FOUND: {done.stdout}{done.stderr}", flush=True)
        return None
    return float(found.group(1))


def observe(daemon: DaemonProcess, began: float) -> Round:
    """One self-test, one scrape, and the daemon's size."""
    found_ms = selftest(daemon)
    before = time.monotonic()
    daemon.metrics()
    scrape_ms = (time.monotonic() - before) * 1000
    process = Path(f"/proc/{daemon.process.pid}")
    status = (process / "status").read_text()

    def value(name: str) -> int:
        found = re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)
        assert found is not None
        return int(found.group(1))

    fds = len(os.listdir(process / "fd"))
    return Round(
        time.monotonic() - began, value("VmRSS") * 1024, fds, value("Threads"), found_ms, scrape_ms
    )


def fill(daemon: DaemonProcess) -> None:
    """All the findings that it keeps, played before the first round.

    What it remembers of them is bounded; filled up later, it would hide a leak, or look like one.
    Where the kernel runs no program for a test (before 5.10), there are none: said, and no more.
    """
    try:
        bed = open_playback(running_daemon(daemon.run_directory))
    except EbpfwatchError as error:
        print(f"without findings before the first round: {error}", flush=True)
        return
    for number in range(_KEPT):
        bed.inode.ino = 1_000_000 + number
        double_free(bed)
        time.sleep(0.005)  # none of them is to be lost
    bed.close()
    deadline = time.monotonic() + 300
    while len(list((daemon.state / "findings").glob("[!.]*.json"))) < _KEPT:
        assert time.monotonic() < deadline, "the findings that were played are not on disk"
        time.sleep(1)


@contextlib.contextmanager
def watched(directory: Path) -> Iterator[tuple[DaemonProcess, Path]]:
    """An ext4 and a daemon that is not nice to us; it must stop in order."""
    with loop_ext4(directory) as mount:
        daemon = start_daemon(directory, interval_seconds="60", per_minute="10000")
        os.setpriority(os.PRIO_PROCESS, daemon.process.pid, 0)
        try:
            fill(daemon)
            yield daemon, mount
        finally:
            status = daemon.stop()
            print(daemon.log.read_text(), flush=True)
            assert status == 0, status


def drift(rounds: list[Round], name: str) -> tuple[float, float, float]:
    """(median of the first quarter, of the last, change an hour)."""
    values = [getattr(r, name) for r in rounds if getattr(r, name) is not None]
    quarter = max(1, len(values) // 4)
    first, last = statistics.median(values[:quarter]), statistics.median(values[-quarter:])
    hours = max(1e-9, (rounds[-1].seconds - rounds[0].seconds) * 0.75 / 3600)
    return first, last, (last - first) / hours


def real_findings(daemon: DaemonProcess) -> list[str]:
    """Everything found that is not the self-test's."""
    found = []
    for file in (daemon.state / "findings").glob("*.json"):
        body = json.loads(file.read_text())
        if not body["test"]:
            found.append(f"{body['verdict']} {body['confidence']}: {body['summary']}")
    return found


def table(
    rounds: list[Round], reading: Balance, lost: dict[str, int], real: list[str]
) -> list[str]:
    """The lines of docs/reliability.md."""
    counters = reading.counters
    found = [r.found_ms for r in rounds if r.found_ms is not None]
    rss, fds, threads = (drift(rounds, name) for name in ("rss", "fds", "threads"))
    latency, scrape = drift(rounds, "found_ms"), drift(rounds, "scrape_ms")
    losses = ", ".join(f"{name} {n}" for name, n in lost.items() if n) or "none"
    return [
        "| what | figure |",
        "|---|---|",
        f"| duration | {(rounds[-1].seconds) / 3600:.2f} h, {len(rounds)} rounds |",
        f"| inodes evicted | {counters['evict']}, of them {counters['evict_in_reclaim']} by"
        " reclaim |",
        f"| accounted for | {counters['free']} freed, {reading.dying} dying at the end,"
        f" {counters['free_missed']} frees not seen, {counters['forgotten_dying']} forgotten,"
        f" {counters['torn']} torn |",
        f"| unexplained | {reading.unexplained} |",
        f"| lost, by kind | {losses} |",
        f"| self-tests found | {len(found)} of {len(rounds)} |",
        f"| false positives | {len(real)} |",
        f"| from the second free to the finding on disk | median {statistics.median(found):.0f} ms,"
        f" slowest {max(found):.0f} ms; first quarter {latency[0]:.0f} ms, last {latency[1]:.0f} ms"
        " |",
        f"| resident memory | {rss[0] / 1e6:.1f} MB to {rss[1] / 1e6:.1f} MB,"
        f" {rss[2] / 1e6:+.2f} MB an hour, most {max(r.rss for r in rounds) / 1e6:.1f} MB |",
        f"| file descriptors | {fds[0]:.0f} to {fds[1]:.0f} |",
        f"| threads | {threads[0]:.0f} to {threads[1]:.0f} |",
        f"| a scrape | {scrape[0]:.0f} ms to {scrape[1]:.0f} ms |",
    ]


def objections(rounds: list[Round], reading: Balance, real: list[str]) -> list[str]:
    """What is not as it must be."""
    said = [f"false positive: {line}" for line in real]
    missed = sum(1 for r in rounds if r.found_ms is None)
    if missed:
        said.append(f"{missed} self-tests were not found")
    if reading.unexplained:
        said.append(f"{reading.unexplained} evictions are not accounted for")
    if max(r.rss for r in rounds) > _RSS_LIMIT:
        said.append(f"the daemon grew to {max(r.rss for r in rounds) / 1e6:.1f} MB")
    enough = rounds[-1].seconds > 1800
    if enough and drift(rounds, "rss")[2] > _DRIFT_LIMIT:
        said.append("resident memory drifts")
    if drift(rounds, "fds")[1] > drift(rounds, "fds")[0]:
        said.append("file descriptors leak")
    return said


def main() -> int:
    """Soak, print the table; 1 if something is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--round", type=float, default=20.0, help="seconds")
    parser.add_argument("--files", type=int, default=20_000, help="of a storm")
    parser.add_argument("--storm", type=Path, help="the storm, compiled elsewhere")
    arguments = parser.parse_args()
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory(prefix="ebpfwatch-soak-", dir="/var/tmp") as name:
        directory = Path(name)
        binary = arguments.storm or build_storm(directory)
        with watched(directory) as (daemon, mount):
            began = time.monotonic()
            while time.monotonic() - began < arguments.hours * 3600:
                start = time.monotonic()
                storm(binary, mount, arguments.files, len(rounds))
                reclaim(mount, 500)
                rounds.append(observe(daemon, began))
                print(f"{len(rounds)} {rounds[-1]}", flush=True)
                time.sleep(max(0.0, start + arguments.round - time.monotonic()))
            reading = balance(DaemonMaps(running_daemon(daemon.run_directory)))
            metrics = daemon.settled_metrics()
            real = real_findings(daemon)
    label = re.compile(r'ebpfwatch_lost_events_total{kind="(\w+)"}')
    lost = {m.group(1): int(n) for s, n in metrics.items() if (m := label.fullmatch(s))}
    hours = f"{arguments.hours:g}"
    record("soak", f"make soak HOURS={hours}", table(rounds, reading, lost, real))
    said = objections(rounds, reading, real)
    print("\n".join(said) or "as it must be", flush=True)
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
