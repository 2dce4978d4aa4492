"""What is counted, one row each: by the probes in the order of the rows, or by user space.

``enum counter`` of probes/contract.h is generated from here.
"""

from __future__ import annotations

import dataclasses
import enum

__all__ = ["COUNTERS", "EVENTS", "LOSSES", "ROWS", "STEPS", "Counter", "Shown"]


class Shown(enum.Enum):
    """Where a counter is exported."""

    EVENT = "event"  #: ebpfwatch_lifecycle_events_total
    LOSS = "loss"  #: ebpfwatch_lost_events_total
    OTHER = "other"  #: a metric of its own, or none


@dataclasses.dataclass(frozen=True)
class Counter:
    """One row.

    ``name`` is the metric's label; ``kernel`` the name in ``enum counter`` without its prefix, ""
    where user space counts.  ``step``: one run of a program for one step of an inode's life, which
    is what the governor counts as work.
    """

    name: str
    kernel: str
    shown: Shown
    means: str
    step: bool = False


_E, _L, _O = Shown.EVENT, Shown.LOSS, Shown.OTHER

ROWS: tuple[Counter, ...] = (
    Counter("alloc", "ALLOC", _E, "allocations seen of an address the table knew", step=True),
    Counter("unlink", "UNLINK", _E, "unlinks entered", step=True),
    Counter("evict", "EVICT", _E, "inodes evicted", step=True),
    Counter("evict_in_reclaim", "EVICT_IN_RECLAIM", _E, "inodes evicted inside shrink_slab"),
    Counter("destroy", "DESTROY", _E, "inodes queued for RCU", step=True),
    Counter("free", "FREE", _E, "evicted inodes freed", step=True),
    Counter(
        "free_in_reclaim",
        "FREE_IN_RECLAIM",
        _E,
        "freed inodes whose eviction was inside shrink_slab",
    ),
    Counter(
        "free_unmatched",
        "FREE_UNMATCHED",
        _E,
        "dead inodes freed whose eviction the table did not know",
        step=True,
    ),
    Counter(
        "free_aborted",
        "FREE_ABORTED",
        _E,
        "inodes freed that never lived (a lost iget race, a failed allocation)",
        step=True,
    ),
    Counter("shrink_start", "SHRINK_START", _E, "shrink_slab calls entered"),
    Counter("shrink_end", "SHRINK_END", _E, "shrink_slab calls left"),
    Counter("submit", "SUBMIT_LOST", _L, "events the ring buffer had no room for"),
    Counter(
        "free_missed",
        "FREE_MISSED",
        _L,
        "addresses allocated again whose free was never seen",
    ),
    Counter(
        "alloc_missed",
        "ALLOC_MISSED",
        _L,
        "inodes that died without their allocation having been seen, though its hook was there",
    ),
    Counter(
        "forgotten_dying",
        "FORGOTTEN_DYING",
        _L,
        "dying inodes overwritten in a full table",
    ),
    Counter(
        "forgotten_dead",
        "FORGOTTEN_DEAD",
        _L,
        "dead inodes overwritten in a full table: the detection horizon",
    ),
    Counter(
        "reclaim_context",
        "RECLAIM_CONTEXT_LOST",
        _L,
        "reclaim contexts overwritten by another task",
    ),
    Counter(
        "torn",
        "TORN",
        _L,
        "evictions not entered because other CPUs were faster in a full bucket",
    ),
    Counter("grace_ns", "GRACE_NS", _O, "sum of the time from evict to free"),
    Counter("verdict", "VERDICT", _O, "verdicts reported"),
    Counter("call_lost", "CALL_LOST", _O, "only in unlinks.c: calls whose start was not kept"),
    Counter("slab_free", "SLAB_FREE", _O, "of any cache, where seeing one costs a trap"),
    Counter(
        "rcu_other_cpu",
        "RCU_OTHER_CPU",
        _E,
        "inodes that RCU freed on another CPU than they were queued on",
    ),
    Counter("dentry", "DENTRY", _E, "dentries killed (or freed), of every filesystem"),
    Counter("put", "PUT", _E, "references of inodes given back, while that hook is armed"),
    Counter("close", "CLOSE", _E, "files closed, while that hook is armed"),
    # Counted by user space:
    Counter(
        "recursion",
        "",
        _L,
        "hook runs the kernel skipped because the same program was already running",
    ),
    Counter("decode", "", _L, "events user space could not decode"),
    Counter("kernel_log", "", _L, "kernel log records overwritten before they were read"),
    Counter("queue", "", _L, "events user space dropped because its queue was full"),
    Counter("rate", "", _L, "findings not written because of the rate limit"),
)

#: Names of what the probes count, in the order of ``enum counter``.
COUNTERS: tuple[str, ...] = tuple(row.name for row in ROWS if row.kernel)

#: What the probes count as handled, by the metric label ``event``.
EVENTS: dict[str, str] = {row.name: row.means for row in ROWS if row.shown is Shown.EVENT}

#: What may be lost, by the metric label ``kind``.
LOSSES: dict[str, str] = {row.name: row.means for row in ROWS if row.shown is Shown.LOSS}

#: Names of what costs one step of a program each.
STEPS: tuple[str, ...] = tuple(row.name for row in ROWS if row.step)
