"""A start of the daemon, seen from outside: how long until it is ready, how much memory that takes.

Of the standard library alone: guests measure with it, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

__all__ = ["Start", "Watched", "memory_limit"]

_LOOK_SECONDS = 0.003
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "cgroup.procs"),
    (Path("/sys/fs/cgroup"), "memory.max", "cgroup.procs"),
)


@dataclasses.dataclass(frozen=True)
class Start:
    """``seconds`` until the log said so, infinite if it ended before; ``peak_mb``: of the processes
    that were there at one time, the sum of the most that each had had by then (VmHWM), so not less
    than what all had together; ``compiled``: what the log says of where the programs are from.
    ``cpu_seconds`` is what the daemon and the children that have ended took until then: other work
    on the machine hardly changes it.
    """

    seconds: float
    peak_mb: float
    compiled: bool
    cpu_seconds: float = 0.0


class Watched:
    """A daemon that is being started; ``start`` returns when it is ready or has ended."""

    def __init__(
        self, words: Sequence[str], log: Path, environment: Mapping[str, str], cwd: Path
    ) -> None:
        self._log = log
        self._children: list[int] = []
        self._most = 0
        self._began = time.monotonic()
        with open(log, "wb") as stderr:
            self.process = subprocess.Popen(
                words, stdout=subprocess.DEVNULL, stderr=stderr, env=dict(environment), cwd=cwd
            )

    def start(self, patience: float) -> Start:
        """Look at all its processes until it is ready; raises ``TimeoutError``."""
        while True:
            self._look()
            text = self._log.read_text(errors="replace")
            now = time.monotonic() - self._began
            if "ready after" in text or self.process.poll() is not None:
                ready = "ready after" in text
                seconds = now if ready else float("inf")
                cpu = _cpu(self.process.pid)
                return Start(seconds, self._most / 1e6, "compiled now" in text, cpu)
            if now > patience:
                raise TimeoutError(f"not ready within {patience:g} s:\n{text}")
            time.sleep(_LOOK_SECONDS)

    def stop(self) -> None:
        """SIGTERM, and wait."""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(60)

    def _look(self) -> None:
        self._children = self._children or _children(self.process.pid)
        self._most = max(self._most, sum(map(_peak, (self.process.pid, *self._children))))


def _children(parent: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) > parent:
            with contextlib.suppress(OSError, IndexError, ValueError):
                stat = Path(f"/proc/{name}/stat").read_text()
                if int(stat.rpartition(")")[2].split()[1]) == parent:
                    found.append(int(name))
    return found


def _cpu(pid: int) -> float:
    """utime, stime, cutime and cstime; 0 where the process has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    ticks = sum(map(int, stat.rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _peak(pid: int) -> int:
    """VmHWM in bytes; 0 where the process has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB", text, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


@contextlib.contextmanager
def memory_limit(size: int) -> Iterator[list[str]]:
    """A cgroup with so much memory: the words that run what follows them in there, [] where this
    machine has no such controller.
    """
    for root, limit, processes in _CGROUPS:
        group = root / "ebpfwatch-bench"
        try:
            group.mkdir(exist_ok=True)
            (group / limit).write_text(str(size))
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        try:
            yield ["sh", "-c", f'echo $$ >{group / processes}; exec "$@"', "sh"]
        finally:
            with contextlib.suppress(OSError):
                group.rmdir()
        return
    yield []
