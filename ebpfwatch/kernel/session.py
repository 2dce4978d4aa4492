"""What was loaded: owns the fds, reads maps and the ring.

The links live in the fds: when this process ends, however it ends, the programs are gone.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import re
import struct
import time

from ebpfwatch.catalogue.counters import COUNTERS, EVENTS, LOSSES
from ebpfwatch.catalogue.layout import FIRST_STACK_DEPTH, GRACE_BUCKETS, OBJECT_DEAD, WAYS
from ebpfwatch.events.wire import Bucket, Settings
from ebpfwatch.kernel import libbpf
from ebpfwatch.kernel.contracts import unchecked
from ebpfwatch.kernel.links import Links
from ebpfwatch.kernel.pending import Pending
from ebpfwatch.kernel.protocol import Loaded
from ebpfwatch.kernel.state import KernelState, TableFill

__all__ = ["NEVER", "Session", "load"]

_QUEUE = 4096

#: Later than every value of CLOCK_MONOTONIC.
NEVER = 2**64 - 1


class Session:
    """The loaded watcher; ``loaded`` is what the loader said of it.

    ``records`` holds the raw records read so far, oldest first; ``dropped`` counts those that
    found it full.
    """

    def __init__(self, loaded: Loaded, fds: list[int]) -> None:
        self.loaded = loaded
        maps = len(loaded.maps)
        ours = maps + len(loaded.programs)
        self.maps = dict(zip(loaded.maps, fds))
        self.programs = dict(zip(loaded.programs, fds[maps:ours]))
        self._fds = fds[:ours]
        self.links = Links(loaded.places, fds[ours:], self.programs)
        self._unchecked = unchecked(loaded.hooks, loaded.offsets, loaded.features.ringbuf)
        self._cpus = libbpf.possible_cpus()
        self._submit_lost: tuple[int, ...] = (0,) * self._cpus
        self._buckets = (
            libbpf.map_info(self.maps["table"]).max_entries if "table" in self.maps else 0
        )
        #: Since when (CLOCK_MONOTONIC, ns) a hook has been attached without a gap; ``NEVER``: it
        #: is off.  What the programs conclude from not having been told of something hangs on it.
        self.since = {"alloc": 0, "any_free": 0, "unlink": 0}
        #: Since when no eviction was missed; 0: not known.
        self.since["evict"] = time.monotonic_ns() if self.links.attached("evict") else 0
        self.text = (
            0,
            0,
        )  #: where the kernel's own code is, from the first address to behind the last
        self.records: collections.deque[bytes] = collections.deque()
        self._memory = 0
        self.dropped = 0
        reader = libbpf.RingReader if loaded.features.ringbuf else libbpf.PerfReader
        self._ring = reader(self.maps["records"], self._keep)

    def _keep(self, record: bytes) -> None:
        if len(self.records) >= _QUEUE:
            self.dropped += 1
            return
        self.records.append(record)

    @property
    def fd(self) -> int:
        """Readable when records wait."""
        return self._ring.fd

    @property
    def table_slots(self) -> int:
        """Objects the table can remember."""
        return self._buckets * WAYS

    def consume(self) -> int:
        """Move what is in the ring to ``records``; returns how many."""
        count = self._ring.consume()
        self.dropped += self._ring.take_lost()
        return count

    @property
    def mending_needs(self) -> tuple[str, ...]:
        """The capability that ``mend`` needs, () where there is nothing to mend.

        perf_event_open() of a whole CPU, where kernel.perf_event_paranoid is above 0.
        """
        return () if self.loaded.features.ringbuf else ("sys_admin",)

    def mend(self) -> int:
        """Open anew what CPUs have lost by going offline; returns how many.

        Needs what loading did, where there is a buffer a CPU (before Linux 5.8); nothing is done
        elsewhere.  Raises ``OSError`` where the kernel refuses; nothing that was there is lost.
        """
        lost = self._per_cpu("counters", COUNTERS.index("submit"))
        lossy = [cpu for cpu, count in enumerate(lost) if count > self._submit_lost[cpu]]
        self._submit_lost = lost
        return self._ring.mend(lossy)

    def _per_cpu(self, name: str, key: int) -> tuple[int, ...]:
        layout = f"{self._cpus}Q"
        raw = libbpf.map_lookup(self.maps[name], key, struct.calcsize(layout))
        return struct.unpack(layout, raw)

    def _per_cpu_totals(self, name: str, entries: int) -> list[int]:
        return [sum(self._per_cpu(name, key)) for key in range(entries)]

    def counters(self) -> dict[str, int]:
        """Totals by name (``catalogue.counters.COUNTERS``) since the programs were loaded."""
        return dict(zip(COUNTERS, self._per_cpu_totals("counters", len(COUNTERS))))

    def grace(self) -> tuple[int, ...]:
        """Frees by the time since their eviction; bucket i: below 2**i microseconds."""
        return tuple(self._per_cpu_totals("grace", GRACE_BUCKETS))

    def misses(self) -> dict[str, int]:
        """Runs of each program the kernel skipped because the program was already running."""
        return {
            name: int(libbpf.prog_info(fd).recursion_misses) for name, fd in self.programs.items()
        }

    def misses_by_role(self) -> dict[str, int]:
        """The same by role; a program that two roles share counts for both."""
        return self._by_role(self.misses())

    def _by_role(self, misses: dict[str, int]) -> dict[str, int]:
        return {
            hook.role: sum(misses.get(function, 0) for function in hook.functions)
            for hook in self.loaded.hooks
            if hook.has_rung
        }

    def state(self, fill: TableFill) -> KernelState:
        """All that a snapshot shows of the kernel side; ``fill`` is the last ``scan``."""
        counters, misses = self.counters(), self.misses()
        ours = {"recursion": sum(misses.values()), "queue": self.dropped}
        age_ns = time.monotonic_ns() - fill.oldest_ns if fill.oldest_ns else 0
        return KernelState(
            hooks=self.loaded.hooks,
            unchecked=self._unchecked,
            misses=self._by_role(misses),
            events={name: counters[name] for name in EVENTS},
            losses={**{name: counters[name] for name in LOSSES if name in counters}, **ours},
            grace_log2=self.grace(),
            grace_sum_ns=counters["grace_ns"],
            trapped_frees=counters["slab_free"],
            table_slots=self.table_slots,
            table=fill,
            horizon_seconds=age_ns / 1e9,
            memory_bytes=self.memory(),
        )

    def run_ns(self) -> int:
        """CPU time of the programs, counted only while kernel.bpf_stats_enabled is on."""
        return sum(int(libbpf.prog_info(fd).run_time_ns) for fd in self.programs.values())

    def configure(self, canary_tgid: int, call_sites: tuple[int, ...]) -> None:
        """Tell the programs who the canary is and from where frees may come (at most 4 places)."""
        settings = Settings(
            canary_tgid=canary_tgid,
            alloc_since=self.since["alloc"],
            any_free_since=self.since["any_free"],
            unlink_since=self.since["unlink"],
            evict_since=self.since["evict"],
            text_start=self.text[0],
            text_end=self.text[1],
        )
        for index, site in enumerate(call_sites[:4]):
            settings.call_sites[index] = site
        libbpf.map_update(self.maps["settings"], 0, bytes(settings))

    def scan(self) -> TableFill:
        """Look at every slot of the table: some thousand lookups, so not in a scrape."""
        dying = dead = oldest = 0
        bucket = Bucket()
        for raw in libbpf.iterate_array(self.maps["table"], self._buckets, ctypes.sizeof(Bucket)):
            # A free way is all that most buckets have: look at the keys before anything else.
            if not any(struct.unpack_from("4Q", raw)):
                continue
            ctypes.memmove(ctypes.byref(bucket), bytes(raw), ctypes.sizeof(Bucket))
            for way in range(WAYS):
                if not bucket.object[way]:
                    continue
                if bucket.object[way] & OBJECT_DEAD:
                    dead += 1
                    ns = bucket.life[way].freed.ns
                    oldest = min(oldest or ns, ns)
                else:
                    dying += 1
        return TableFill(dying, dead, oldest)

    def frames(self, key: int) -> tuple[int, ...]:
        """A stack by ``actor.stack``; () where it has made room for another."""
        if "stacks" not in self.maps:
            return ()
        layout = f"{FIRST_STACK_DEPTH}Q"
        try:
            raw = libbpf.map_lookup(self.maps["stacks"], key - 1, struct.calcsize(layout))
        except OSError:
            return ()
        return tuple(address for address in struct.unpack(layout, raw) if address)

    def memory(self) -> int:
        """Bytes the kernel has charged for our maps and programs (fdinfo's memlock).

        Where it cannot be asked now (no file descriptor is left): what it was before.
        """
        total = 0
        with contextlib.suppress(OSError):
            for fd in self._fds:
                with open(f"/proc/self/fdinfo/{fd}") as info:
                    found = re.search(r"^memlock:\s*(\d+)", info.read(), re.MULTILINE)
                total += int(found.group(1)) if found else 0
            self._memory = total
        return self._memory

    def close(self) -> None:
        """Detach everything."""
        self._ring.close()
        self.links.detach()
        for fd in self._fds:
            os.close(fd)
        self._fds = []


def load(pending: Pending) -> Session:
    """Wait for the child and take over its fds."""
    return Session(*pending.collect(Loaded))
