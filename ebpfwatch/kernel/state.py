"""The kernel side at one moment: what was counted, what was lost, what the table holds."""

from __future__ import annotations

import dataclasses

from ebpfwatch.kernel.hook import LoadedHook

__all__ = ["KernelState", "TableFill"]


@dataclasses.dataclass(frozen=True)
class TableFill:
    """A scan of the table: how many dying and dead objects, and when the oldest died (ns, 0 =
    none).
    """

    dying: int = 0
    dead: int = 0
    oldest_ns: int = 0


@dataclasses.dataclass(frozen=True)
class KernelState:
    """Totals since the programs were loaded.

    ``misses`` are runs that the kernel skipped, by role.  ``events`` and ``losses`` are keyed as
    ``EVENTS`` and ``LOSSES`` of ``catalogue.counters``, as far as kernel and ring know of them.
    ``grace_log2`` counts frees by the time from evict to free: bucket i holds durations below 2**i
    microseconds (and at least 2**(i-1)); ``grace_sum_ns`` is their sum.  ``trapped_frees`` counts
    frees from any slab cache, where seeing one costs a kprobe's trap.  ``horizon_seconds`` is the
    age of the oldest dead inode the table still remembers; younger ones may be forgotten where they
    shared a bucket.  ``memory_bytes`` is what our maps and programs have charged.  ``unchecked``
    are the rules of the VFS that are not checked here, each with the reason.
    """

    hooks: tuple[LoadedHook, ...] = ()
    unchecked: dict[str, str] = dataclasses.field(default_factory=dict)
    misses: dict[str, int] = dataclasses.field(default_factory=dict)
    events: dict[str, int] = dataclasses.field(default_factory=dict)
    losses: dict[str, int] = dataclasses.field(default_factory=dict)
    grace_log2: tuple[int, ...] = ()
    grace_sum_ns: int = 0
    trapped_frees: int = 0
    table_slots: int = 0
    table: TableFill = TableFill()
    horizon_seconds: float = 0.0
    memory_bytes: int = 0
