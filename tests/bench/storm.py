"""`make bench`: what detection costs a create+unlink storm, side by side in one run.

Rounds of storms, each subject once a round in turn, so that a noisy neighbour hits all alike;
reported is the median over rounds of each subject's time divided by that of the same round with
nothing attached.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ebpfwatch.kernel.ladder import LADDER
from ebpfwatch.kernel.libbpf import library
from ebpfwatch.kernel.prober import _EXIT, PROGRAM_TYPES, _load, attach
from ebpfwatch.kernel.running import version_code
from ebpfwatch.kernel.session import load, start_loader

ROOT = Path(__file__).parents[2]


@contextmanager
def nothing(mount: Path) -> Iterator[None]:
    """No program anywhere."""
    yield


@contextmanager
def floor(mount: Path) -> Iterator[None]:
    """Empty programs on the very tracepoints that ebpfwatch takes: what no watcher can be below."""
    with ExitStack() as stack:
        for rungs in LADDER.values():
            for rung in rungs:
                if rung.kind != "raw_tracepoint":
                    continue
                for attachment in rung.attachments:
                    program = _load(PROGRAM_TYPES[rung.kind], _EXIT, version_code())
                    link = attach(rung.kind, program, attachment, attachment.target)
                    assert program >= 0 and link >= 0, attachment
                    stack.callback(os.close, program)
                    stack.callback(os.close, link)
        yield


def watcher(**changes: bool) -> Callable[[Path], object]:
    """ebpfwatch's programs; reading the ring is not part of a quiet storm."""

    @contextmanager
    def attached(mount: Path) -> Iterator[None]:
        request = {
            "unit": "ebpfwatch.c",
            "alloc": True,
            "strict": True,
            "table_slots": 32768,
            "note_slots": 4096,
            "ring_bytes": 262144,
            "mounts": [str(mount)],
            **changes,
        }
        session = load(start_loader(request))
        yield
        session.close()

    return attached


#: "ebpfwatch" has all evidence off that can be, "evidence" is the default, and "stacks" has whole
#: stacks of the first steps besides.
SUBJECTS = {
    "nothing": nothing,
    "floor": floor,
    "ebpfwatch": watcher(),
    "evidence": watcher(trace=True, dump_on_oops=False),
    "stacks": watcher(trace=True, dump_on_oops=False, first_stacks=True),
}


def storm_seconds(binary: Path, mount: Path, count: int) -> float:
    """One storm on one thread."""
    began = time.perf_counter()
    subprocess.run([binary, mount, str(count)], check=True)
    return time.perf_counter() - began


def main() -> None:
    """Print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=100_000, help="files a storm")
    arguments = parser.parse_args()
    library()
    with tempfile.TemporaryDirectory(prefix="ebpfwatch-bench-") as name:
        directory = Path(name)
        binary, mount = directory / "storm", directory / "mnt"
        subprocess.run(["gcc", "-O2", "-o", binary, ROOT / "tests/live/storm.c"], check=True)
        mount.mkdir()
        with open(directory / "image", "wb") as image:
            image.truncate(1 << 30)
        subprocess.run(["mkfs.ext4", "-q", "-F", directory / "image"], check=True)
        subprocess.run(["mount", "-o", "loop", directory / "image", mount], check=True)
        try:
            report(measure(binary, mount, arguments.rounds, arguments.count), arguments.count)
        finally:
            subprocess.run(["umount", mount], check=True)


def measure(binary: Path, mount: Path, rounds: int, count: int) -> dict[str, list[float]]:
    """Seconds by subject, one entry a round; the order turns with each round."""
    storm_seconds(binary, mount, count // 10)
    seconds: dict[str, list[float]] = {name: [] for name in SUBJECTS}
    names = list(SUBJECTS)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            with SUBJECTS[name](mount):  # type: ignore[attr-defined]
                seconds[name].append(storm_seconds(binary, mount, count))
    return seconds


def report(seconds: dict[str, list[float]], count: int) -> None:
    """Ratios to nothing and to the floor, with their spread."""
    print(f"{platform.machine()}, Linux {platform.release()}, {os.cpu_count()} CPUs, {count} files")
    print(f"{'subject':10} {'us/file':>8} {'to nothing':>11} {'to floor':>9}  spread")
    rows = {}
    for name, values in seconds.items():
        to_nothing = [a / b for a, b in zip(values, seconds["nothing"])]
        to_floor = [a / b for a, b in zip(values, seconds["floor"])]
        rows[name] = {
            "us_per_file": statistics.median(values) / count * 1e6,
            "to_nothing": statistics.median(to_nothing),
            "to_floor": statistics.median(to_floor),
            "spread": [min(to_nothing), max(to_nothing)],
        }
        row = rows[name]
        print(
            f"{name:10} {row['us_per_file']:8.2f} {row['to_nothing']:11.3f}"
            f" {row['to_floor']:9.3f}  {min(to_nothing):.3f}..{max(to_nothing):.3f}"
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
