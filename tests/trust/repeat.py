"""`make stable`: the test command again and again, from a fresh clone, alone and beside CPU hogs.

A test that fails one time in twenty is found here and not by whoever changes something else. Each
run has a clone of its own of what is committed here, so that nothing of this work tree helps it;
packages that the machine has already are not installed again. A hog is a process that does nothing
but take a CPU, at the priority of the tests; there is one for each CPU.

Prints a row a run and, at the end, how many were green. Exit 1 if one was not; the output of each
run stays in --logs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: What pytest says last, and the name of a test that failed.
_SUMMARY = re.compile(r"(?m)^=* ?(?:\d+ \w+, )*(?P<passed>\d+) passed\b.*$")
_FAILED = re.compile(r"(?m)^(?:FAILED|ERROR) (\S+)")
_MADE = re.compile(r"(?m)^make(?:\[\d+\])?: \*\*\* \[\S+ (?P<target>\S+)\] Error")


@dataclasses.dataclass(frozen=True)
class Run:
    """How one run ended."""

    number: int
    hogs: int
    code: int
    seconds: float
    passed: int
    failed: tuple[str, ...]

    def row(self) -> str:
        """For a table in Markdown."""
        result = "green" if self.code == 0 else f"exit {self.code}: {', '.join(self.failed)}"
        cells = (self.number, self.hogs, f"{self.seconds:.0f} s", self.passed, result)
        return f"| {' | '.join(map(str, cells))} |"


@contextlib.contextmanager
def hogging(count: int) -> Iterator[None]:
    """That many processes that take a CPU each."""
    script = "import os\np = os.getppid()\nwhile os.getppid() == p:\n    sum(range(10**5))"
    hogs = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(count)]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def judged(number: int, hogs: int, code: int, seconds: float, output: str) -> Run:
    """What the output of one run says."""
    passed = sum(int(found["passed"]) for found in _SUMMARY.finditer(output))
    failed = _FAILED.findall(output)
    failed = failed or [f"make {found['target']}" for found in _MADE.finditer(output)][:1]
    return Run(number, hogs, code, seconds, passed, tuple(dict.fromkeys(failed)))


def one(number: int, hogs: int, command: str, log: Path, directory: Path | None) -> Run:
    """One run in a clone of its own."""
    with tempfile.TemporaryDirectory(dir=directory, prefix="ebpfwatch-stable-") as name:
        clone = Path(name) / "clone"
        words = ["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)]
        subprocess.run(words, check=True)
        began = time.monotonic()
        with hogging(hogs), open(log, "wb") as output:
            code = subprocess.run(
                ["sh", "-c", command],
                cwd=clone,
                env={**os.environ, "MAKEFLAGS": "", "MAKELEVEL": ""},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            ).returncode
        seconds = time.monotonic() - began
    return judged(number, hogs, code, seconds, log.read_text(errors="replace"))


def main() -> int:
    """Print the table; exit 1 if a run was not green."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=10, help="how often (default 10)")
    parser.add_argument(
        "--hogs", type=int, default=5, help="of these the last N beside CPU hogs (default 5)"
    )
    parser.add_argument("--command", default="make test", help='(default "make test")')
    parser.add_argument("--logs", type=Path, default=Path("dist/stable"), metavar="DIR")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="where the clones are made")
    arguments = parser.parse_args()
    if not shutil.which("git"):
        parser.error("git is not installed")
    arguments.logs.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "log", "-1", "--format=%h"], capture_output=True, text=True
    ).stdout.strip()
    print(f"`{arguments.command}` of commit {commit}, from a fresh clone, {os.cpu_count()} CPUs:\n")
    print("| run | CPU hogs | took | passed | result |\n|---|---|---|---|---|", flush=True)
    green = 0
    for number in range(1, arguments.runs + 1):
        hogs = (os.cpu_count() or 1) if number > arguments.runs - arguments.hogs else 0
        log = arguments.logs / f"run-{number}.log"
        run = one(number, hogs, arguments.command, log, arguments.directory)
        print(run.row(), flush=True)
        green += run.code == 0
    print(f"\n{green} of {arguments.runs} were green; the output of each is in {arguments.logs}")
    return int(green != arguments.runs)


if __name__ == "__main__":
    raise SystemExit(main())
