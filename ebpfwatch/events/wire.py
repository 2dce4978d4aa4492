"""Records of the probes as events: the structures of ``catalogue.layout`` and the decoder."""

from __future__ import annotations

import ctypes
import dataclasses
import struct
from typing import Any, Callable, Union

from ebpfwatch.catalogue.layout import (
    CONSTANTS,
    STRUCTS,
    Broken,
    Flag,
    LifeFlag,
    Member,
    NoteFlag,
    RecordKind,
    State,
)
from ebpfwatch.catalogue.roles import Hook
from ebpfwatch.catalogue.verdicts import Verdict, numbered

__all__ = [
    "LAYOUTS",
    "Bucket",
    "DecodeError",
    "Settings",
    "StepEvent",
    "UnlinkEvent",
    "VerdictEvent",
    "VerdictRecord",
    "decode",
    "device",
    "selftest_record",
]


class DecodeError(ValueError):
    """A record that is not what the contract says."""


_SIMPLE: dict[str, Any] = {
    "u8": ctypes.c_uint8,
    "u16": ctypes.c_uint16,
    "u32": ctypes.c_uint32,
    "u64": ctypes.c_uint64,
    "s32": ctypes.c_int32,
    "char": ctypes.c_char,
    "bytes": ctypes.c_uint8,  # not c_char: that would end at the first NUL
}
_SIZES = {name: value for name, value, _ in CONSTANTS}


def _layouts() -> dict[str, type[ctypes.Structure]]:
    """A ctypes structure for each struct, in the order of the table: inner ones stand first."""
    made: dict[str, type[ctypes.Structure]] = {}

    def kind(member: Member) -> Any:
        one = _SIMPLE.get(member.kind) or made[member.kind]
        if not member.count:
            return one
        return one * (_SIZES[member.count] if member.count in _SIZES else int(member.count))

    for row in STRUCTS:
        fields = [(member.name, kind(member)) for member in row.members]
        made[row.name] = type(row.name, (ctypes.Structure,), {"_fields_": fields})
    return made


#: By the struct's name in C.
LAYOUTS = _layouts()

Header: Any = LAYOUTS["header"]
ActorStruct: Any = LAYOUTS["actor"]
Life: Any = LAYOUTS["life"]
Bucket: Any = LAYOUTS["bucket"]
Settings: Any = LAYOUTS["settings"]
StepRecord: Any = LAYOUTS["step_record"]
VerdictRecord: Any = LAYOUTS["verdict_record"]
UnlinkRecord: Any = LAYOUTS["unlink_record"]


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
    verdict: Verdict
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
    broken: Broken = Broken(0)
    related: int = 0
    found: int = 0
    writers: int = 0
    filesystem: str = "ext4"


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
        verdict=Verdict.DOUBLE_FREE.number,
        hook=Hook.ANY_FREE.number,
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


def _who(actor: Any) -> Who:
    comm = text(bytes(actor.comm))
    return Who(
        actor.ns, actor.pid, actor.tgid, actor.cpu, comm, int(actor.caller), int(actor.stack)
    )


def _step(record: Any) -> StepEvent:
    return StepEvent(
        ns=record.header.ns,
        hook=Hook.numbered(record.hook),
        leaving=bool(record.leaving),
        object=record.object,
        ino=record.ino,
        generation=record.generation,
        dev=record.dev,
        who=_who(record.actor),
    )


def _life(life: Any) -> LifeSeen:
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


def _verdict(record: Any) -> VerdictEvent:
    flags = Flag(record.flags)
    depth = min(record.stack_bytes // 8, len(record.stack))
    return VerdictEvent(
        ns=record.header.ns,
        cpu=record.header.cpu,
        verdict=numbered(record.verdict),
        hook=Hook.numbered(record.hook),
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
        unlink_in_flight=bool(record.note.flags & NoteFlag.IN_FLIGHT),
        name=text(bytes(record.note.name)),
        stack=tuple(record.stack[:depth]),
        directory_ino=record.note.parent_ino,
        parents=_parents(bytes(record.parents)) if flags & Flag.PARENTS_VALID else (),
        broken=Broken(record.broken),
        related=record.related,
        found=record.found,
        writers=record.writers,
        filesystem=text(bytes(record.filesystem)) or "ext4",
    )


def _parents(raw: bytes) -> tuple[str, ...]:
    """The names up to the first empty one."""
    names = raw.split(b"\0")
    return tuple(text(name) for name in names[: names.index(b"")])


def _unlink(record: Any) -> UnlinkEvent:
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


_DECODERS: dict[int, tuple[Any, Callable[[Any], Event]]] = {
    RecordKind.STEP: (StepRecord, _step),
    RecordKind.VERDICT: (VerdictRecord, _verdict),
    RecordKind.UNLINK: (UnlinkRecord, _unlink),
}
