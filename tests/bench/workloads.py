"""What the subjects are measured with. Each run returns seconds and how many operations it did."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.subjects import FINE

__all__ = ["Bench", "WORKLOADS", "Workload"]

HERE = Path(__file__).parent
_SOURCES = {"storm": HERE.parent / "live/storm.c", "churn": HERE / "churn.c", "mix": HERE / "mix.c"}
_PER_DIRECTORY = 1000


class Bench:
    """A directory with the compiled workloads, a fresh ext4, and a tree to unpack."""

    def __init__(self, directory: Path, mount: Path, scale: float) -> None:
        self.directory, self.mount, self.scale = directory, mount, scale
        for name, source in _SOURCES.items():
            words = ["gcc", "-O2", "-Wall", "-o", str(directory / name), str(source)]
            subprocess.run(words, check=True)
        self.cached = 0

    def count(self, full: int) -> int:
        """How many operations, at this scale."""
        return max(100, int(full * self.scale))

    def run(self, name: str, *words: object) -> None:
        """One of the compiled workloads."""
        subprocess.run([self.directory / name, *map(str, words)], check=True)

    def tree(self) -> Path:
        """Python's standard library, packed: a source tree of some thousand files."""
        packed = self.directory / "tree.tar"
        if not packed.exists():
            library = sysconfig.get_path("stdlib", vars={"base": "/usr"})
            words = ["tar", "-cf", str(packed), "--exclude=dist-packages", "-C", library, "."]
            subprocess.run(words, check=True)
        return packed

    def files(self, wanted: int) -> None:
        """Make sure that so many empty files are there to be cached."""
        for number in range(wanted // _PER_DIRECTORY):
            directory = self.mount / f"cached/{number}"
            if directory.exists():
                continue
            directory.mkdir(parents=True)
            for name in range(_PER_DIRECTORY):
                os.mknod(directory / str(name))
        os.sync()

    def cache(self, wanted: int) -> None:
        """Bring so many inodes into memory."""
        self.files(wanted)
        for number in range(wanted // _PER_DIRECTORY):
            directory = self.mount / f"cached/{number}"
            for name in range(_PER_DIRECTORY):
                os.stat(directory / str(name))


class Workload:
    """``run`` gives (seconds, operations); ``rounds`` of it fit the patience of a reader.

    ``warm``: it may run just before it is measured, because it leaves nothing behind that matters.
    """

    def __init__(
        self,
        name: str,
        what: str,
        run: Callable[[Bench], tuple[float, int]],
        rounds: int = 15,
        only: tuple[str, ...] = (),
        warm: bool = True,
    ) -> None:
        self.name, self.what, self.run, self.rounds = name, what, run, rounds
        self.only, self.warm = only, warm

    def takes(self, subject: str) -> bool:
        """Whether it is measured with that subject: ``only`` these, else all that need no pairs."""
        return subject in self.only if self.only else subject not in FINE


def _storm(threads: int, full: int) -> Callable[[Bench], tuple[float, int]]:
    def run(bench: Bench) -> tuple[float, int]:
        count = bench.count(full) // threads
        began = time.perf_counter()
        processes = [
            subprocess.Popen([bench.directory / "storm", bench.mount, str(count), str(thread)])
            for thread in range(threads)
        ]
        assert all(process.wait() == 0 for process in processes)
        return time.perf_counter() - began, count * threads

    return run


def _mix(bench: Bench) -> tuple[float, int]:
    work, count = bench.mount / "mix", bench.count(60_000)
    work.mkdir()
    began = time.perf_counter()
    bench.run("mix", work, count)
    seconds = time.perf_counter() - began
    subprocess.run(["rm", "-rf", work], check=True)
    return seconds, count


def _unpack(bench: Bench) -> tuple[float, int]:
    work, packed = bench.mount / "tree", bench.tree()
    work.mkdir()
    began = time.perf_counter()
    subprocess.run(["tar", "-xf", packed, "-C", work], check=True)
    files = sum(len(names) for _, _, names in os.walk(work))
    subprocess.run(["rm", "-rf", work], check=True)
    return time.perf_counter() - began, files


def _churn(bench: Bench) -> tuple[float, int]:
    count = bench.count(40_000)
    began = time.perf_counter()
    bench.run("churn", count)
    return time.perf_counter() - began, count


def _reclaim(bench: Bench) -> tuple[float, int]:
    count = bench.count(500_000) // _PER_DIRECTORY * _PER_DIRECTORY
    bench.cache(count)
    began = time.perf_counter()
    Path("/proc/sys/vm/drop_caches").write_text("2")
    return time.perf_counter() - began, count


_FEW = ("nothing", "ebpfwatch", "floor of ebpfwatch")

#: The first is what the figures with a goal are made of: on a machine that others share, two runs
#: must be close in time to be compared, and many to be believed.
WORKLOADS = (
    Workload("pairs", "the storm in short runs, close in time", _storm(1, 6_000), 151, _FEW + FINE),
    Workload("storm", "create and unlink, one task", _storm(1, 20_000), 15),
    Workload("storm x2", "the same in two tasks", _storm(2, 20_000)),
    Workload("mix", "file operations like fsstress's", _mix),
    Workload("unpack", "unpack and delete a source tree", _unpack, 9, warm=False),
    Workload("churn", "slab-heavy work without ext4: pipes, sockets, epoll", _churn, 21),
    Workload("reclaim", "drop_caches over 500,000 cached inodes", _reclaim, 7, _FEW, warm=False),
)
