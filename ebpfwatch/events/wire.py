"""The other half of probes/contract.h: layouts, numbers and the decoder.

A test compiles the header with the host's ``cc`` and compares every size and offset with the
``ctypes`` structures here.
"""

from __future__ import annotations

import ctypes
import dataclasses
import enum
import struct
from typing import Any, Callable, Union

__all__ = [
    "COUNTERS",
    "FIRST_STACK_DEPTH",
    "GRACE_BUCKETS",
    "OBJECT_BITS",
    "OBJECT_DEAD",
    "OBJECT_QUEUED",
    "WAYS",
    "DecodeError",
    "Bucket",
    "Flag",
    "Hook",
    "KernelVerdict",
    "LifeFlag",
    "Settings",
    "State",
    "StepEvent",
    "UnlinkEvent",
    "VerdictEvent",
    "decode",
    "device",
    "selftest_record",
]


class DecodeError(ValueError):
    """A record that is not what the contract says."""


class Hook(enum.IntEnum):
    """enum hook."""

    ALLOC = 0
    UNLINK = 1
    EVICT = 2
    DESTROY = 3
    RCU_FREE = 4
    ANY_FREE = 5
    RECLAIM = 6
    UNLINK_PATH = 7


class RecordKind(enum.IntEnum):
    """enum record_kind."""

    STEP = 1
    VERDICT = 2
    UNLINK = 3


class State(enum.IntEnum):
    """enum state: absent means alive."""

    ABSENT = 0
    EVICTING = 1
    QUEUED = 2
    FREED = 3


class KernelVerdict(enum.IntEnum):
    """enum verdict."""

    NONE = 0
    DOUBLE_DESTROY = 1
    DOUBLE_EVICT = 2
    DOUBLE_FREE = 3
    FREE_WHILE_ALIVE = 4
    FOREIGN_FREE = 5
    IDENTITY_CHANGED = 6
    FREED_IN_RECLAIM = 7
    CONCURRENT_UNLINK = 8


class LifeFlag(enum.IntFlag):
    """LIFE_*."""

    RECLAIM = 1
    UNLINKED = 2
    IN_FLIGHT = 4
    CANARY = 8
    NO_EVICT = 16
    SLAB_FREE_DUE = 32


class Flag(enum.IntFlag):
    """verdict_record.flags."""

    WITNESS_READ = 1
    WITNESS_CLEAR = 2
    WITNESS_PUBLISHED = 4
    WITNESS_IDENTITY = 8
    SEAL_BROKEN = 16
    NOTE_VALID = 32
    LIFE_VALID = 64
    PARENTS_VALID = 128
    PARENTS_WHOLE = 256
    WITNESS_NO_INODE = 512


#: enum counter, in order; the names are those of ``status.COUNTERS`` and ``status.LOSSES``, but for
#: ``call_lost``, which is of `ebpfwatch unlinks`, and ``slab_free``, no step of an inode's.
COUNTERS = (
    "alloc",
    "unlink",
    "evict",
    "evict_in_reclaim",
    "destroy",
    "free",
    "free_in_reclaim",
    "free_unmatched",
    "free_aborted",
    "shrink_start",
    "shrink_end",
    "submit",
    "free_missed",
    "forgotten_dying",
    "forgotten_dead",
    "reclaim_context",
    "torn",
    "grace_ns",
    "verdict",
    "call_lost",
    "slab_free",
)

GRACE_BUCKETS = 32
FIRST_STACK_DEPTH = 24
WAYS = 4
OBJECT_DEAD = 1  #: lowest bit of a bucket's key: the object was freed
OBJECT_QUEUED = 2  #: the next one: it was queued for RCU
OBJECT_BITS = OBJECT_DEAD | OBJECT_QUEUED  #: all that is no address in a key

_u16, _u32, _u64, _s32 = ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int32


class Header(ctypes.Structure):
    """struct header."""

    _fields_ = [("kind", _u16), ("size", _u16), ("cpu", _u32), ("ns", _u64)]


class ActorStruct(ctypes.Structure):
    """struct actor."""

    _fields_ = [
        ("ns", _u64),
        ("caller", _u64),
        ("pid", _u32),
        ("tgid", _u32),
        ("cpu", _u32),
        ("stack", _u32),
        ("comm", ctypes.c_char * 16),
    ]


class Life(ctypes.Structure):
    """struct life."""

    _fields_ = [
        ("seal", _u64),
        ("ino", _u64),
        ("generation", _u32),
        ("dev", _u32),
        ("state", _u32),
        ("flags", _u32),
        ("nlink", _u32),
        ("frees", _u32),
        ("evicted", ActorStruct),
        ("freed", ActorStruct),
        ("destroyed", ActorStruct),
    ]


class Note(ctypes.Structure):
    """struct note."""

    _fields_ = [
        ("inode", _u64),
        ("parent_ino", _u64),
        ("flags", _u32),
        ("result", _s32),
        ("actor", ActorStruct),
        ("directory", _u64),
        ("name", ctypes.c_char * 64),
    ]


class Bucket(ctypes.Structure):
    """struct bucket."""

    _fields_ = [("object", _u64 * WAYS), ("life", Life * WAYS)]


class Task(ctypes.Structure):
    """struct task."""

    _fields_ = [("reclaim_pid", _u32), ("unlink_pid", _u32), ("inode", _u64)]


class TaskName(ctypes.Structure):
    """struct task_name."""

    _fields_ = [("ns", _u64), ("pid", _u32), ("reserved", _u32), ("comm", ctypes.c_char * 16)]


class Settings(ctypes.Structure):
    """struct settings."""

    _fields_ = [
        ("call_sites", _u64 * 4),
        ("canary_tgid", _u32),
        ("reserved", _u32),
        ("alloc_since", _u64),
        ("strict_since", _u64),
        ("unlink_since", _u64),
    ]


class StepRecord(ctypes.Structure):
    """struct step_record."""

    _fields_ = [
        ("header", Header),
        ("object", _u64),
        ("ino", _u64),
        ("generation", _u32),
        ("dev", _u32),
        ("hook", _u32),
        ("leaving", _u32),
        ("actor", ActorStruct),
    ]


class VerdictRecord(ctypes.Structure):
    """struct verdict_record."""

    _fields_ = [
        ("header", Header),
        ("verdict", _u32),
        ("hook", _u32),
        ("flags", _u32),
        ("stack_bytes", _u32),
        ("object", _u64),
        ("call_site", _u64),
        ("ino_now", _u64),
        ("generation_now", _u32),
        ("dev_now", _u32),
        ("state_now", _u64),
        ("count_now", _u32),
        ("reclaim_pid", _u32),
        ("life", Life),
        ("note", Note),
        ("actor", ActorStruct),
        ("stack", _u64 * 32),
        # not c_char: that would end at the first NUL
        ("parents", ctypes.c_uint8 * 256),
    ]


class UnlinkRecord(ctypes.Structure):
    """struct unlink_record."""

    _fields_ = [
        ("header", Header),
        ("ino", _u64),
        ("dev", _u32),
        ("result", _s32),
        ("dfd", _s32),
        ("flags", _u32),
        ("path_bytes", _u32),
        ("reserved", _u32),
        ("actor", ActorStruct),
        ("path", ctypes.c_char * 256),
        ("name", ctypes.c_char * 64),
    ]


@dataclasses.dataclass(frozen=True)
class Who:
    """An actor: ``ns`` is CLOCK_MONOTONIC, 0 if the step was not seen.

    ``caller`` is the code that called the hooked function and ``stack`` the entry of the map
    ``stacks`` plus one; 0 where they were not taken.
    """

    ns: int
    pid: int
    tgid: int
    cpu: int
    comm: str
    caller: int = 0
    stack: int = 0

    def __bool__(self) -> bool:
        return self.ns != 0


@dataclasses.dataclass(frozen=True)
class StepEvent:
    """One step of the canary's own inode."""

    ns: int
    hook: Hook
    leaving: bool
    object: int
    ino: int
    generation: int
    dev: int
    who: Who


@dataclasses.dataclass(frozen=True)
class LifeSeen:
    """The table's entry of the object as it was before the step."""

    ino: int
    generation: int
    dev: int
    state: State
    flags: LifeFlag
    nlink: int
    frees: int
    evicted: Who
    destroyed: Who
    freed: Who


@dataclasses.dataclass(frozen=True)
class VerdictEvent:
    """What the kernel side flagged, with the evidence of that moment.

    ``life`` is None when the table did not know the object; ``unlinked`` is false and ``name``
    empty when no unlink of this inode is remembered.  ``dev`` is the kernel's dev_t; see
    ``device``.  ``parents`` are the directories above the name, innermost first, as far as they
    were still in memory; ``directory_ino`` is the first of them, 0 if not known.
    """

    ns: int
    cpu: int
    verdict: KernelVerdict
    hook: Hook
    flags: Flag
    object: int
    call_site: int
    ino: int
    generation: int
    dev: int
    state: int
    count: int
    reclaim_pid: int
    life: LifeSeen | None
    who: Who
    unlinked: Who
    unlink_in_flight: bool
    name: str
    stack: tuple[int, ...]
    directory_ino: int = 0
    parents: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class UnlinkEvent:
    """One unlink or unlinkat call, at its return; ``ino`` 0 if it reached no ext4 inode."""

    ns: int
    who: Who
    ino: int
    dev: int
    result: int
    dfd: int
    path: str
    name: str


Event = Union[StepEvent, VerdictEvent, UnlinkEvent]


def device(dev: int) -> tuple[int, int]:
    """(major, minor) of the kernel's dev_t (MAJOR and MINOR of linux/kdev_t.h)."""
    return dev >> 20, dev & 0xFFFFF


def text(raw: bytes) -> str:
    """A kernel string: up to NUL; bytes that are no UTF-8 stay visible as \\udcXX escapes."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def decode(data: bytes) -> Event:
    """One record; raises ``DecodeError`` naming what is wrong with it."""
    if len(data) < ctypes.sizeof(Header):
        raise DecodeError(f"a record of {len(data)} bytes is shorter than its header")
    kind, size = struct.unpack_from("<HH", data)
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise DecodeError(f"a record of unknown kind {kind}")
    layout, build = decoder
    # A perf buffer pads records; a ring buffer does not.
    if size != ctypes.sizeof(layout) or len(data) < size:
        raise DecodeError(
            f"a record of kind {kind} has {len(data)} bytes and says {size},"
            f" the contract says {ctypes.sizeof(layout)}"
        )
    try:
        return build(layout.from_buffer_copy(data))
    except ValueError as error:
        raise DecodeError(f"a record of kind {kind}: {error}") from None


def selftest_record(object_: int, ino: int, generation: int, ns: int) -> bytes:
    """The record of a double free that never was, for the self-test of the sinks."""
    record = VerdictRecord(
        header=Header(RecordKind.VERDICT, ctypes.sizeof(VerdictRecord), 0, ns),
        verdict=KernelVerdict.DOUBLE_FREE,
        hook=Hook.ANY_FREE,
        flags=Flag.WITNESS_READ | Flag.WITNESS_CLEAR | Flag.WITNESS_IDENTITY | Flag.LIFE_VALID,
        object=object_,
        ino_now=ino,
        generation_now=generation,
    )
    who = ActorStruct(ns=ns - 1000, pid=1, tgid=1, comm=b"ebpfwatch")
    record.life = Life(ino=ino, generation=generation, state=State.FREED, frees=1)
    record.life.evicted = record.life.freed = who
    record.actor = ActorStruct(ns=ns, pid=1, tgid=1, comm=b"ebpfwatch")
    return bytes(record)


def _who(actor: ActorStruct) -> Who:
    comm = text(bytes(actor.comm))
    return Who(
        actor.ns, actor.pid, actor.tgid, actor.cpu, comm, int(actor.caller), int(actor.stack)
    )


def _step(record: StepRecord) -> StepEvent:
    return StepEvent(
        ns=record.header.ns,
        hook=Hook(record.hook),
        leaving=bool(record.leaving),
        object=record.object,
        ino=record.ino,
        generation=record.generation,
        dev=record.dev,
        who=_who(record.actor),
    )


def _life(life: Life) -> LifeSeen:
    return LifeSeen(
        ino=life.ino,
        generation=life.generation,
        dev=life.dev,
        state=State(life.state),
        flags=LifeFlag(life.flags),
        nlink=life.nlink,
        frees=life.frees,
        evicted=_who(life.evicted),
        destroyed=_who(life.destroyed),
        freed=_who(life.freed),
    )


def _verdict(record: VerdictRecord) -> VerdictEvent:
    flags = Flag(record.flags)
    depth = min(record.stack_bytes // 8, len(record.stack))
    return VerdictEvent(
        ns=record.header.ns,
        cpu=record.header.cpu,
        verdict=KernelVerdict(record.verdict),
        hook=Hook(record.hook),
        flags=flags,
        object=record.object,
        call_site=record.call_site,
        ino=record.ino_now,
        generation=record.generation_now,
        dev=record.dev_now,
        state=record.state_now,
        count=record.count_now,
        reclaim_pid=record.reclaim_pid,
        life=_life(record.life) if flags & Flag.LIFE_VALID else None,
        who=_who(record.actor),
        unlinked=_who(record.note.actor),
        unlink_in_flight=bool(record.note.flags & 1),
        name=text(bytes(record.note.name)),
        stack=tuple(record.stack[:depth]),
        directory_ino=record.note.parent_ino,
        parents=_parents(bytes(record.parents)) if flags & Flag.PARENTS_VALID else (),
    )


def _parents(raw: bytes) -> tuple[str, ...]:
    """The names up to the first empty one."""
    names = raw.split(b"\0")
    return tuple(text(name) for name in names[: names.index(b"")])


def _unlink(record: UnlinkRecord) -> UnlinkEvent:
    return UnlinkEvent(
        ns=record.header.ns,
        who=_who(record.actor),
        ino=record.ino,
        dev=record.dev,
        result=record.result,
        dfd=record.dfd,
        path=text(bytes(record.path)),
        name=text(bytes(record.name)),
    )


_DECODERS: dict[int, tuple[type[ctypes.Structure], Callable[[Any], Event]]] = {
    RecordKind.STEP: (StepRecord, _step),
    RecordKind.VERDICT: (VerdictRecord, _verdict),
    RecordKind.UNLINK: (UnlinkRecord, _unlink),
}
