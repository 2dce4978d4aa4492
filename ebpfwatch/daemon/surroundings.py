"""What is read at a verdict: the machine, the tasks while they live, where the device is mounted.

All reads are few and small, and a source that fails is counted (``Sources``).
"""

from __future__ import annotations

import time
from typing import Any

from ebpfwatch.host.place import place
from ebpfwatch.host.process import Process, process
from ebpfwatch.host.sources import Sources
from ebpfwatch.host.state import HostReader, HostState
from ebpfwatch.host.zoneinfo import Zone
from ebpfwatch.paths import Paths
from ebpfwatch.verdicts.recorder import Recorder

__all__ = ["Surroundings"]

#: What the flight recorder notes at every tick, by name of the kernel's counter.
_NOTED = {
    "unlink": "unlinks",
    "evict": "ext4 inodes evicted",
    "evict_in_reclaim": "of them inside shrink_slab",
    "free": "freed",
}

_LEVELS = ("below min", "between min and low", "between low and high", "above high")


class Surroundings:
    """Owns the flight recorder's eyes; ``recorder`` is its memory."""

    def __init__(self, paths: Paths, sources: Sources, host: HostReader) -> None:
        self.recorder = Recorder()
        self._paths = paths
        self._sources = sources
        self._host = host
        self._counters: dict[str, int] = {}
        self._counted_ns = 0
        self._levels: dict[str, str] = {}
        self._state = HostState()
        self._state_ns = 0

    def process(self, tgid: int, ns: int) -> Process | None:
        """See ``host.process``."""
        return process(self._paths, tgid, ns)

    def place(self, major: int, minor: int) -> tuple[str, str]:
        """See ``host.place``; ("", "") where the mounts cannot be read."""
        return self._sources.read("mounts", lambda: place(self._paths, major, minor), ("", ""))

    def look(self, counters: dict[str, int]) -> None:
        """Note what the machine did since the last look, and which watermarks it crossed."""
        now_ns = time.monotonic_ns()
        since_s = (now_ns - self._counted_ns) / 1e9
        did = {
            text: counters.get(name, 0) - self._counters.get(name, 0)
            for name, text in _NOTED.items()
        }
        if self._counters and did["ext4 inodes evicted"]:
            parts = ", ".join(f"{count} {text}" for text, count in did.items() if count)
            self.recorder.note(now_ns, f"within {since_s:.1f} s: {parts}")
        self._counters, self._counted_ns = dict(counters), now_ns
        self._host.count_open_files()
        self._state, self._state_ns = self._host.state(), now_ns
        for zone in self._state.zones:
            self._watch_level(now_ns, zone)

    def _watch_level(self, now_ns: int, zone: Zone) -> None:
        name, level = f"node {zone.node} {zone.zone}", _LEVELS[zone.level]
        before = self._levels.get(name, level)
        self._levels[name] = level
        if level != before:
            self.recorder.note(now_ns, f"free memory of {name}: {before} before, {level} now")

    def host(self) -> dict[str, Any]:
        """The machine at the last look, for ``Finding.host``: reading it anew takes milliseconds,
        and a verdict may have no more than those to reach the disk.
        """
        return {"ns": self._state_ns, **self._state.to_json()}

    @property
    def state(self) -> HostState:
        """The machine at the last look."""
        return self._state

    def object_bytes(self) -> int:
        """The size of an object in ext4's inode cache; 0 if not known."""
        slabs = self._state.slabs
        cache = slabs.cache("ext4_inode_cache") if slabs else None
        return cache.object_bytes if cache else 0
