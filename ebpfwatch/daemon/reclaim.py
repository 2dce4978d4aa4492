"""Reclaim as the kernel side counts it: bursts for people, and a witness for the hook."""

from __future__ import annotations

import time

from ebpfwatch.config import ReclaimConfig
from ebpfwatch.daemon.liveness import Liveness
from ebpfwatch.host import vmstat
from ebpfwatch.host.sources import Sources
from ebpfwatch.paths import Paths
from ebpfwatch.system.log import say
from ebpfwatch.verdicts.bursts import ReclaimBursts
from ebpfwatch.verdicts.recorder import Recorder

__all__ = ["ReclaimWatch"]

_NS = 1_000_000_000


class ReclaimWatch:
    """``last`` is the time (seconds, CLOCK_MONOTONIC) and the line of the latest burst."""

    def __init__(
        self, paths: Paths, sources: Sources, liveness: Liveness, recorder: Recorder
    ) -> None:
        self._paths = paths
        self._sources = sources
        self._liveness = liveness
        self._recorder = recorder
        self._bursts = ReclaimBursts()

    @property
    def last(self) -> tuple[float, str]:
        """See the class."""
        return self._bursts.last

    def look(self, counters: dict[str, int], settings: ReclaimConfig) -> None:
        """Once a tick."""
        nothing: dict[str, int] = {}
        vm = self._sources.read("vmstat", lambda: vmstat.read(self._paths), nothing)
        self._liveness.witness_reclaim(counters["shrink_start"], vm.get("slabs_scanned", 0))
        self._liveness.witness_dentries(counters["dentry"], counters["unlink"])
        now_ns = time.monotonic_ns()
        line = self._bursts.feed(counters["evict_in_reclaim"], now_ns / _NS, settings.burst_inodes)
        if line:
            self._recorder.note(now_ns, line)
            if self._bursts.notice_due(now_ns / _NS, settings.notice_seconds):
                say(line, "notice")
