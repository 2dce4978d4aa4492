"""The border between the probes and user space: every struct, number and flag that crosses it.

The one place where these stand: probes/contract.h is generated from here (``header``), and
events/wire.py makes its structures from ``STRUCTS``.  A test compiles the header with cc and
compares every size and offset.

Invariant: members of fixed width, no padding that is not named, no pointer.
"""

from __future__ import annotations

import dataclasses
import enum

__all__ = [
    "BITS",
    "CONSTANTS",
    "FIRST_STACK_DEPTH",
    "FLAG_WORDS",
    "GRACE_BUCKETS",
    "OBJECT_BITS",
    "OBJECT_DEAD",
    "OBJECT_QUEUED",
    "OURS",
    "PEEK_BYTES",
    "STRUCTS",
    "WAYS",
    "Broken",
    "Flag",
    "LifeFlag",
    "MOMENTS",
    "MOMENT_BYTES",
    "Member",
    "Moment",
    "NoteFlag",
    "RecordKind",
    "State",
    "Struct",
]

OURS = 8
GRACE_BUCKETS = 32
WAYS = 4
FIRST_STACK_DEPTH = 24
MOMENTS = 4
MOMENT_BYTES = 1536
PEEK_BYTES = 512


class Moment(enum.IntEnum):
    """When probes/specimen.h keeps an inode's memory."""

    UNLINKED = 0
    DIRECTORY = 1
    EVICTED = 2
    FREED = 3


#: Sizes, by their name in C; what stands behind the name is its comment.
CONSTANTS: tuple[tuple[str, int, str], ...] = (
    ("GRACE_BUCKETS", GRACE_BUCKETS, "frees by the time since their eviction, in powers of two"),
    ("WAYS", WAYS, "objects in a bucket"),
    ("COMM_LEN", 16, "TASK_COMM_LEN of linux/sched.h"),
    ("NAME_LEN", 64, "bytes that are kept of a name, NUL included"),
    ("FILESYSTEM_LEN", 16, "bytes that are kept of a filesystem's type"),
    ("INLINE_NAME", 32, "so much of a short name lies in the dentry (DNAME_INLINE_LEN, 4.19: 32)"),
    ("PATH_LEN", 256, "bytes that are kept of a path"),
    ("PARENTS_MAX", 8, "directories above a name"),
    ("PARENTS_LEN", 256, "bytes of their names"),
    ("STACK_DEPTH", 32, "frames of a verdict's stack"),
    ("OURS", OURS, "files of our own that probes/learn.c waits for"),
    ("MOMENTS", MOMENTS, "moments that probes/specimen.h keeps:"),
    ("MOMENT_UNLINKED", Moment.UNLINKED, "the inode, as ext4_unlink() is entered"),
    ("MOMENT_DIRECTORY", Moment.DIRECTORY, "its directory's inode, at the same time"),
    ("MOMENT_EVICTED", Moment.EVICTED, "the inode, as ext4_evict_inode() is entered"),
    ("MOMENT_FREED", Moment.FREED, "the inode, as its memory is freed"),
    ("MOMENT_BYTES", MOMENT_BYTES, "so much of it: more than a struct inode has"),
    ("PEEK_BYTES", PEEK_BYTES, "bytes that are read at once where the loader wants them"),
    ("FIRST_STACK_DEPTH", FIRST_STACK_DEPTH, "frames of an earlier step's stack"),
)

OBJECT_DEAD = 1
OBJECT_QUEUED = 2
OBJECT_BITS = OBJECT_DEAD | OBJECT_QUEUED

#: In the lowest bits of a bucket's key, for objects are aligned.
BITS: tuple[tuple[str, int, str], ...] = (
    ("OBJECT_DEAD", OBJECT_DEAD, "it was freed"),
    ("OBJECT_QUEUED", OBJECT_QUEUED, "it was queued for RCU"),
    ("OBJECT_BITS", OBJECT_BITS, "all that is no address"),
)


class State(enum.IntEnum):
    """An object's state; absent means alive: only the dying and the dead are in the table."""

    ABSENT = 0
    EVICTING = 1
    QUEUED = 2
    FREED = 3


class RecordKind(enum.IntEnum):
    """What a record in the ring is."""

    words: str

    def __new__(cls, number: int, words: str) -> RecordKind:
        """A member: ``words`` is its comment in C."""
        member = int.__new__(cls, number)
        member._value_ = number
        member.words = words
        return member

    STEP = 1, "one step of the canary's own inode"
    VERDICT = 2, "something that should not happen"
    UNLINK = 3, "one unlink system call, for `ebpfwatch unlinks`"


class LifeFlag(enum.IntFlag):
    """life.flags: LIFE_*."""

    RECLAIM = 1
    UNLINKED = 2
    IN_FLIGHT = 4
    CANARY = 8
    NO_EVICT = 16
    SLAB_FREE_DUE = 32


class NoteFlag(enum.IntFlag):
    """note.flags: NOTE_*."""

    IN_FLIGHT = 1
    CANARY = 2
    SPENT = 4


class Flag(enum.IntFlag):
    """verdict_record.flags: what the object itself said at that moment, and what is valid."""

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
    OBJECT_DENTRY = 1024
    NAME_NOW = 2048
    RELATED_PROVEN = 4096
    LIFE_FORMER = 8192


class Broken(enum.IntFlag):
    """verdict_record.broken: BROKEN_*: the rules that the object contradicts."""

    ALIAS = 1
    COUNT = 2
    WRITERS = 4
    READERS = 8
    MAPPED = 16
    DIRECTORY_LOCK = 32
    VICTIM_LOCK = 64
    NO_LINK = 128
    STATE = 256
    LISTED = 512
    DEAD = 1024
    CHILDREN = 2048
    QUEUED = 4096
    PARENT = 8192


#: What each flag means; its comment in C.
FLAG_WORDS: dict[type[enum.IntFlag], dict[int, str]] = {
    LifeFlag: {
        LifeFlag.RECLAIM: "evicted inside shrink_slab",
        LifeFlag.UNLINKED: "an unlink of this inode was seen",
        LifeFlag.IN_FLIGHT: "... and had not returned when it was evicted",
        LifeFlag.CANARY: "our own file: every step is reported",
        LifeFlag.NO_EVICT: "in the table without its eviction having been seen",
        LifeFlag.SLAB_FREE_DUE: "the RCU callback ran; the slab free that follows is its own",
    },
    NoteFlag: {
        NoteFlag.IN_FLIGHT: "ext4_unlink has not returned",
        NoteFlag.CANARY: "our own file",
        NoteFlag.SPENT: "that life was evicted: the next one at this address is not meant",
    },
    Flag: {
        Flag.WITNESS_READ: "the fields below could be read",
        Flag.WITNESS_CLEAR: "I_FREEING | I_CLEAR: this life was evicted",
        Flag.WITNESS_PUBLISHED: "on its superblock's list, which points back: alive",
        Flag.WITNESS_IDENTITY: "ino_now and generation_now could be read",
        Flag.SEAL_BROKEN: "two CPUs wrote the entry at once",
        Flag.NOTE_VALID: "`note` is the unlink of this very inode",
        Flag.LIFE_VALID: "`life` is this object's entry",
        Flag.PARENTS_VALID: "the directory is still in memory: `parents` are its names",
        Flag.PARENTS_WHOLE: "... up to the root of the filesystem",
        Flag.WITNESS_NO_INODE: "where the link to that list was there is something else now",
        Flag.OBJECT_DENTRY: "`object` is a dentry; ino_now is its inode's, 0 if it has none",
        Flag.NAME_NOW: "note.name and `parents` were read from a dentry at this moment",
        Flag.RELATED_PROVEN: "`related` points back at the object",
        Flag.LIFE_FORMER: "`life` is the former life of that address, which ended as it should",
    },
    Broken: {
        Broken.ALIAS: "a dentry still names the inode; of a dentry: it is on its inode's list",
        Broken.COUNT: "the number of references is not what it must be here",
        Broken.WRITERS: "open for writing, or denied to writers",
        Broken.READERS: "open for reading",
        Broken.MAPPED: "mapped into memory",
        Broken.DIRECTORY_LOCK: "the lock of directory `related` is not ours: `found` owns it",
        Broken.VICTIM_LOCK: "the same of the inode's own lock",
        Broken.NO_LINK: "no link is left",
        Broken.STATE: "`found` is an i_state that no dead inode has",
        Broken.LISTED: "on its superblock's list",
        Broken.DEAD: "it was dead before",
        Broken.CHILDREN: "`related` is a child of it",
        Broken.QUEUED: "`found` is the function that RCU will call for it",
        Broken.PARENT: "the name is not in directory `related`",
    },
}


@dataclasses.dataclass(frozen=True)
class Member:
    """One member of a struct.

    ``kind`` is "u8" to "u64", "s32", "char", or the name of a struct that stands before; ``count``
    is the length of an array, a number or a name of ``CONSTANTS``; "" = no array.
    """

    name: str
    kind: str
    comment: str = ""
    count: str = ""


@dataclasses.dataclass(frozen=True)
class Struct:
    """One struct; ``comment`` stands above it in C."""

    name: str
    members: tuple[Member, ...]
    comment: str = ""


_M = Member

STRUCTS: tuple[Struct, ...] = (
    Struct(
        "header",
        (
            _M("kind", "u16"),
            _M("size", "u16"),
            _M("cpu", "u32"),
            _M("ns", "u64", "CLOCK_MONOTONIC"),
        ),
    ),
    Struct(
        "actor",
        (
            _M("ns", "u64"),
            _M("caller", "u64", "the code that called the hooked function; 0 = not known"),
            _M("pid", "u32"),
            _M("tgid", "u32"),
            _M("cpu", "u32"),
            _M("stack", "u32", "key in `stacks` plus one; 0 = no stack was taken"),
            _M("comm", "char", count="COMM_LEN"),
        ),
        "Who did a step: the task that was current. ns 0 means the step was not seen.",
    ),
    Struct(
        "life",
        (
            _M("seal", "u64", "check sum over what eviction wrote"),
            _M("ino", "u64"),
            _M("generation", "u32"),
            _M("dev", "u32", "the kernel's dev_t: major << 20 | minor"),
            _M("state", "u32"),
            _M("flags", "u32"),
            _M("nlink", "u32"),
            _M("frees", "u32"),
            _M("evicted", "actor"),
            _M("freed", "actor"),
            _M("destroyed", "actor"),
        ),
        "One dying or dead object.",
    ),
    Struct(
        "note",
        (
            _M("seal", "u64", "check sum over what the unlink wrote"),
            _M("inode", "u64"),
            _M("parent_ino", "u64"),
            _M("flags", "u32"),
            _M("result", "s32"),
            _M("actor", "actor"),
            _M("directory", "u64", "the dentry above; it may be gone when it is needed"),
            _M("name", "char", count="NAME_LEN"),
        ),
        "One unlink, remembered by the inode's address.",
    ),
    Struct(
        "bucket",
        (
            _M("object", "u64", "0 = free way; else with its OBJECT_* bits", "WAYS"),
            _M("life", "life", count="WAYS"),
        ),
        "WAYS objects whose addresses share a hash. Keys first: a miss touches one cache line.",
    ),
    Struct(
        "task",
        (
            _M("reclaim_pid", "u32", "inside shrink_slab"),
            _M("unlink_pid", "u32", "inside ext4_unlink, of this inode:"),
            _M("inode", "u64"),
            _M("reclaim_depth", "u32", "what reclaims may be made to reclaim inside"),
            _M("reserved", "u32"),
        ),
        "What a task is in the middle of; the pids are 0 when nobody is.",
    ),
    Struct(
        "task_name",
        (
            _M("ns", "u64"),
            _M("pid", "u32"),
            _M("reserved", "u32"),
            _M("comm", "char", count="COMM_LEN"),
        ),
        "The name of the task that runs on a CPU, as of a tick of the clock.",
    ),
    Struct(
        "settings",
        (
            _M("call_sites", "u64", "where kmem_cache_free may be called from; 0 = none", "4"),
            _M("canary_tgid", "u32"),
            _M("reserved", "u32"),
            _M("alloc_since", "u64", "attached without a gap since then; all ones = it is off"),
            _M("any_free_since", "u64", "the same, where it is not the free itself"),
            _M("unlink_since", "u64", "as alloc_since"),
            _M("evict_since", "u64", "since when no eviction was missed; 0 = not known"),
            _M("text_start", "u64", "the kernel's own code: _stext; 0 = not known"),
            _M("text_end", "u64", "_etext"),
        ),
        "What user space tells the programs. Times are CLOCK_MONOTONIC.",
    ),
    Struct(
        "step_record",
        (
            _M("header", "header"),
            _M("object", "u64"),
            _M("ino", "u64"),
            _M("generation", "u32"),
            _M("dev", "u32"),
            _M("hook", "u32"),
            _M("leaving", "u32", "1 = the function returns (unlink)"),
            _M("actor", "actor"),
        ),
    ),
    Struct(
        "verdict_record",
        (
            _M("header", "header"),
            _M("verdict", "u32"),
            _M("hook", "u32"),
            _M("flags", "u32"),
            _M("stack_bytes", "u32"),
            _M("object", "u64"),
            _M("call_site", "u64"),
            _M("ino_now", "u64"),
            _M("generation_now", "u32"),
            _M("dev_now", "u32"),
            _M("state_now", "u64", "inode.i_state"),
            _M("count_now", "s32", "inode.i_count, or the count of a dentry"),
            _M("reclaim_pid", "u32"),
            _M("broken", "u32", "BROKEN_*"),
            _M("writers", "s32", "inode.i_writecount"),
            _M("related", "u64", "the other object of a broken rule"),
            _M("found", "u64", "the value that broke it"),
            _M("filesystem", "char", "its type; empty = ext4", "FILESYSTEM_LEN"),
            _M("life", "life", "the entry as it was before this step"),
            _M("note", "note"),
            _M("actor", "actor"),
            _M("stack", "u64", count="STACK_DEPTH"),
            # u8 in ctypes terms: a char array would end at the first NUL.
            _M("parents", "bytes", "names, innermost first, each with its NUL", "PARENTS_LEN"),
        ),
    ),
    Struct(
        "unlink_record",
        (
            _M("header", "header"),
            _M("ino", "u64", "0 when no ext4 inode was reached"),
            _M("dev", "u32"),
            _M("result", "s32"),
            _M("dfd", "s32"),
            _M("flags", "u32", "unlinkat's flags"),
            _M("path_bytes", "u32"),
            _M("reserved", "u32"),
            _M("actor", "actor"),
            _M("path", "char", count="PATH_LEN"),
            _M("name", "char", count="NAME_LEN"),
        ),
    ),
    Struct(
        "learned",
        (
            _M("cache", "u64", "ext4's struct kmem_cache; 0 = not learned yet"),
            _M("call_site", "u64"),
            _M("object", "u64"),
            _M("dead_state", "u64", "i_state of an inode that was evicted"),
            _M("vfs_inode", "u64", "where the inode lies in its object"),
        ),
        "What probes/learn.c finds out from a file of our own.",
    ),
    Struct(
        "testimony",
        (
            _M("inode", "u64"),
            _M("ino", "u64"),
            _M("generation", "u32"),
            _M("nlink", "u32"),
            _M("dev", "u32"),
            _M("state", "u32"),
            _M("count", "u32"),
            _M("listed", "u32", "its link to the superblock's list leads back"),
        ),
        "What such a file's inode says, while it lives and when it is evicted.",
    ),
    Struct(
        "met",
        (
            _M("inode", "u64"),
            _M("directory", "u64", "its inode"),
            _M("dentry", "u64"),
            _M("task", "u64"),
            _M("file", "u64", "the last that was synced"),
            _M("cache", "u64", "of the object that the inode lay in"),
            _M("distance", "u64", "from that object to the inode"),
        ),
        "Where a file of the loader's own lies (probes/specimen.h).",
    ),
    Struct(
        "moment",
        (_M("address", "u64", "0 = it has not come"), _M("bytes", "bytes", count="MOMENT_BYTES")),
    ),
    Struct(
        "peeked",
        (
            _M("address", "u64"),
            _M("failed", "u64", "1 = nothing can be read there"),
            _M("bytes", "bytes", count="PEEK_BYTES"),
        ),
    ),
)
