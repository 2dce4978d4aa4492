"""Does it add up? Every eviction must have become a free, or a counted loss, or be dying still.

The counters are those of the kernel side; they and the table move while they are read, so a
reading counts only if the counters were the same before and after.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Callable

from ebpfwatch.kernel import libbpf
from ebpfwatch.kernel.session import Session
from ebpfwatch.system.lock import Running

__all__ = ["Balance", "DaemonMaps", "balance"]


@dataclasses.dataclass(frozen=True)
class Balance:
    """One reading that nothing moved in; ``unexplained`` must be 0."""

    counters: dict[str, int]
    dying: int
    dead: int
    also: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def accounted(self) -> int:
        """Where the evicted inodes are: freed, dying, or lost in a way that is counted."""
        losses = ("free_missed", "forgotten_dying", "torn")
        return self.counters["free"] + self.dying + sum(self.counters[loss] for loss in losses)

    @property
    def unexplained(self) -> int:
        """Evictions that nothing accounts for."""
        return self.counters["evict"] - self.accounted


def balance(
    session: Session,
    still: float = 0.0,
    also: Callable[[], dict[str, int]] = dict,
    seconds: float = 60,
) -> Balance:
    """The counts of ``still`` seconds in which nothing moved, nor what ``also`` reads.

    Raises ``TimeoutError`` if the machine never rests that long.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        before, other = session.counters(), also()
        fill = session.scan()
        time.sleep(still)
        if session.counters() == before and also() == other:
            return Balance(before, fill.dying, fill.dead, other)
        time.sleep(0.01)
    raise TimeoutError(f"the machine was never still for one reading within {seconds:g} s")


class DaemonMaps(Session):
    """The maps of a running daemon, opened by id; only what reads them works."""

    def __init__(self, daemon: Running) -> None:
        self.maps = {n: libbpf.object_fd_by_id("map", i) for n, i in daemon.maps.items()}
        self.programs = {n: libbpf.object_fd_by_id("prog", i) for n, i in daemon.programs.items()}
        self._cpus = libbpf.possible_cpus()
        self._buckets = libbpf.map_info(self.maps["table"]).max_entries
