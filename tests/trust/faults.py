"""`make faults KILLS=n`: kill -9 at random points of load and run, and what is left behind.

Half of the kills fall into the time in which the programs are compiled and attached, the others
while findings are being written.  After each: no program and no child left, no half file, every
finding that the journal line on stdout acknowledged as kept is on disk, and the next daemon starts.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ebpfwatch.commands.selftest import double_free, open_playback
from ebpfwatch.errors import EbpfwatchError
from ebpfwatch.kernel.playback import Playback
from ebpfwatch.system.lock import running_daemon
from tests.live.harness import ROOT, loop_ext4, start_daemon, write_config
from tests.trust.figures import record

_LOADING_SECONDS = 2.0


@dataclasses.dataclass
class Kill:
    """One daemon and its end."""

    phase: str
    whole: int
    acknowledged: int
    problems: list[str]


def loaded_ids() -> set[int]:
    """All BPF programs in the kernel; other watchers' are among them."""
    done = subprocess.run(["bpftool", "-j", "prog"], capture_output=True, text=True, check=True)
    return {program["id"] for program in json.loads(done.stdout)}


def children_of(pid: int) -> list[int]:
    """Its children at this moment."""
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def lives(pid: int) -> bool:
    """Whether a process still runs; one that nobody has reaped does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_bed(directory: Path, process: subprocess.Popen[bytes]) -> tuple[Playback, set[int]]:
    """The test object of the daemon, once it has loaded."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(EbpfwatchError):
            daemon = running_daemon(directory / "run")
            if daemon.programs:
                return open_playback(daemon), set(daemon.programs.values())
        time.sleep(0.01)
    raise RuntimeError(f"the daemon did not start: {(directory / 'log').read_text()}")


def kill_once(directory: Path, rng: random.Random, number: int) -> Kill:
    """Start a daemon, kill it somewhere, look at what is left."""
    loading = number % 2 == 0
    out = directory / "out"
    with open(directory / "log", "wb") as log, open(out, "wb") as stdout:
        process = subprocess.Popen(
            [sys.executable, "-m", "ebpfwatch", "run", "--config", directory / "config.yaml"],
            cwd=ROOT,
            env={**os.environ, "RUNTIME_DIRECTORY": str(directory / "run")},
            stdout=stdout,
            stderr=log,
        )
    ours: set[int] = set()
    if loading:
        time.sleep(rng.uniform(0, _LOADING_SECONDS))
    else:
        bed, ours = wait_bed(directory, process)
        for shot in range(rng.randrange(1, 9)):
            bed.inode.ino = number * 100 + shot
            double_free(bed)
        bed.close()  # our own fds would keep the programs loaded
        time.sleep(rng.uniform(0, 0.5))
    children = children_of(process.pid)
    process.kill()
    process.wait()
    kill = Kill("loading" if loading else "writing", 0, 0, [])
    look(kill, directory, out, children, ours)
    return kill


def look(kill: Kill, directory: Path, out: Path, children: list[int], ours: set[int]) -> None:
    """What is left of it."""
    deadline = time.monotonic() + 5
    while any(map(lives, children)) or ours & loaded_ids():
        if time.monotonic() > deadline:
            left = [pid for pid in children if lives(pid)]
            kill.problems.append(f"left: processes {left}, programs {ours & loaded_ids()}")
            break
        time.sleep(0.01)
    told = []
    for line in out.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            told.append(json.loads(line)["id"])
    kill.acknowledged = len(told)
    for file in (directory / "state/findings").glob("[!.]*.json"):
        try:
            json.loads(file.read_bytes())
            kill.whole += 1
        except ValueError:
            kill.problems.append(f"half a file: {file.name}")


def survives(directory: Path) -> list[str]:
    """A daemon after all the kills: it starts, tidies up, finds, and stops in order."""
    daemon = start_daemon(directory)
    said = []
    bed = open_playback(running_daemon(daemon.run_directory))
    double_free(bed)
    bed.close()
    time.sleep(2)
    half = [p.name for p in (directory / "state").rglob(".writing-*")]
    if half:
        said.append(f"not tidied up: {half}")
    if daemon.stop() != 0:
        said.append(daemon.log.read_text())
    return said


def came_and_stayed(before: set[int]) -> set[int]:
    """Programs that were not there before; the kernel frees them some time after their last fd."""
    deadline = time.monotonic() + 10
    while (stayed := loaded_ids() - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    return stayed


def main() -> int:
    """Kill, count, print; 1 if anything was left behind or lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    kills: list[Kill] = []
    with tempfile.TemporaryDirectory(prefix="ebpfwatch-faults-", dir="/var/tmp") as name:
        directory = Path(name)
        (directory / "ext4").mkdir()
        with loop_ext4(directory / "ext4", 64 << 20):
            write_config(directory, keep="100000", per_minute="10000")
            before = loaded_ids()
            for number in range(arguments.kills):
                kills.append(kill_once(directory, rng, number))
                for problem in kills[-1].problems:
                    print(f"kill {number} (seed {arguments.seed}): {problem}", flush=True)
                if number % 50 == 49:
                    print(f"{number + 1} kills", flush=True)
            problems = [p for kill in kills for p in kill.problems] + survives(directory)
            stayed = came_and_stayed(before)
            problems += [f"BPF programs that stayed: {stayed}"] if stayed else []
    phases = collections.Counter(kill.phase for kill in kills)
    acknowledged = sum(kill.acknowledged for kill in kills)
    rows = [
        f"| daemons killed | {len(kills)}: {phases['loading']} while loading,"
        f" {phases['writing']} while writing findings |",
        f"| findings told on stdout before the kill | {acknowledged} |",
        f"| whole files in the end | {kills[-1].whole} |",
        f"| half files, processes or programs left | {len(problems)} |",
        f"| BPF programs that came meanwhile and stayed, others' included | {len(stayed)} |",
        f"| seed | {arguments.seed} |",
    ]
    record("kills", f"make faults KILLS={len(kills)}", ["| what | figure |", "|---|---|", *rows])
    print("\n".join(problems) or "as it must be", flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
