"""The table and the last verdicts as bytes of a dump: what was dying, and what happened last. Pure.

A dump is taken while CPUs write, so nothing here trusts what it reads.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Iterable, Iterator

from ebpfwatch.catalogue.layout import OBJECT_BITS, OBJECT_DEAD, OBJECT_QUEUED, WAYS, LifeFlag
from ebpfwatch.events.wire import (
    Bucket,
    DecodeError,
    VerdictEvent,
    VerdictRecord,
    decode,
    device,
    text,
)

__all__ = ["Entry", "Transition", "entries", "transitions", "verdicts"]


@dataclasses.dataclass(frozen=True)
class Transition:
    """One step of one object (CLOCK_MONOTONIC ns)."""

    ns: int
    object: int
    ino: int
    dev: tuple[int, int]
    what: str
    cpu: int
    pid: int
    comm: str
    caller: int


@dataclasses.dataclass(frozen=True)
class Entry:
    """One object of the table; ``state`` is "evicting", "queued" or "freed"."""

    object: int
    state: str
    ino: int
    generation: int
    dev: tuple[int, int]
    in_reclaim: bool
    steps: tuple[Transition, ...]

    @property
    def dying(self) -> bool:
        """Not yet freed."""
        return self.state != "freed"


def entries(table: bytes) -> Iterator[Entry]:
    """The objects in the value of the map ``table``; half a bucket at the end is left out."""
    size = ctypes.sizeof(Bucket)
    for offset in range(0, len(table) - size + 1, size):
        keys = memoryview(table)[offset : offset + 8 * WAYS]
        if not any(keys):
            continue
        bucket = Bucket.from_buffer_copy(table, offset)
        for way in range(WAYS):
            if bucket.object[way]:
                yield _entry(bucket.object[way], bucket.life[way])


def _entry(key: int, life: ctypes.Structure) -> Entry:
    state = "freed" if key & OBJECT_DEAD else "queued" if key & OBJECT_QUEUED else "evicting"
    where = "evicted inside shrink_slab" if life.flags & LifeFlag.RECLAIM else "evicted"
    object_, dev = key & ~OBJECT_BITS, device(life.dev)
    named = ((where, life.evicted), ("queued for RCU", life.destroyed), ("freed", life.freed))
    steps = tuple(
        Transition(
            actor.ns,
            object_,
            life.ino,
            dev,
            what,
            actor.cpu,
            actor.pid,
            text(bytes(actor.comm)),
            actor.caller,
        )
        for what, actor in named
        if actor.ns
    )
    reclaim = bool(life.flags & LifeFlag.RECLAIM)
    return Entry(object_, state, life.ino, life.generation, dev, reclaim, steps)


def transitions(found: Iterable[Entry], most: int) -> list[Transition]:
    """The last steps of all objects, in the order of time."""
    steps = sorted((step for entry in found for step in entry.steps), key=lambda step: step.ns)
    return steps[-most:] if most > 0 else []


def verdicts(scratch: Iterable[bytes]) -> list[VerdictEvent]:
    """The last verdict of each hook and CPU (the map ``verdict_scratch``), in the order of time."""
    size = ctypes.sizeof(VerdictRecord)
    found = []
    for record in scratch:
        try:
            event = decode(record[:size])
        except DecodeError:
            continue  # never written
        if isinstance(event, VerdictEvent):
            found.append(event)
    return sorted(found, key=lambda event: event.ns)
