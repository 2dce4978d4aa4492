"""The daemon's log where its reader stops: nobody waits for it, and what is lost is told."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys, time
from ebpfwatch.system import log
log.from_a_thread()
began = time.monotonic()
for number in range(20000):
    log.say(f"line {number} " + "x" * 100)
open(sys.argv[1], "w").write(str(time.monotonic() - began))
sys.exit(0 if log.settle(float(sys.argv[2])) else 3)
"""


def speak(tmp_path: Path, stderr: int, seconds: float) -> subprocess.Popen[bytes]:
    """A process that says 20,000 lines."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, tmp_path / "took", str(seconds)], cwd=ROOT, stderr=stderr
    )


def test_a_pipe_that_nobody_reads_stops_nobody(tmp_path: Path) -> None:
    """All is said within a second or two, and the exit waits no longer than it was told to."""
    reader, writer = os.pipe()
    try:
        process = speak(tmp_path, writer, 0.2)
        assert process.wait(20) == 3
        assert float((tmp_path / "took").read_text()) < 5
    finally:
        os.close(reader)
        os.close(writer)


def test_a_terminal_that_is_held_stops_nobody(tmp_path: Path) -> None:
    """As by Ctrl-S: nobody takes what the terminal holds."""
    master, slave = os.openpty()
    try:
        assert speak(tmp_path, slave, 0.2).wait(20) == 3
    finally:
        os.close(master)
        os.close(slave)


def test_what_is_lost_is_counted(tmp_path: Path) -> None:
    """A reader that comes back reads whole lines, in order, and how many are missing."""
    reader, writer = os.pipe()
    process = speak(tmp_path, writer, 30)
    os.close(writer)
    deadline = time.monotonic() + 20
    while not (tmp_path / "took").exists() or not (tmp_path / "took").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with open(reader, encoding="utf-8") as stream:
        lines = stream.read().splitlines()
    assert process.wait(20) == 0
    told = [line for line in lines if line.startswith("ebpfwatch: line ")]
    numbers = [int(line.split()[2]) for line in told]
    assert numbers == sorted(numbers) and all(line.endswith("x" * 100) for line in told)
    lost = [int(line.split()[1]) for line in lines if "lines of this log are lost" in line]
    assert lost and len(told) + sum(lost) == 20000
