"""The loaded programs and a model of them in plain Python, driven through the same histories.

Several inodes lie in one page of map memory and share a table of one bucket, so that addresses are
reused and ways are taken from each other; the programs are loaded but attached to nothing, so
every counter must be the model's, exactly.  Steps may be lost: then the object's memory changes and
the hook does not run, as when the kernel skips it.

The model also keeps the truth: what really happened to each inode, whoever saw it.
"""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import os
import random
import struct
import threading
from typing import TypeVar

from ebpfwatch.catalogue.counters import COUNTERS
from ebpfwatch.catalogue.layout import Flag, LifeFlag, State
from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.events.wire import (
    LAYOUTS,
    StepEvent,
    StepRecord,
    VerdictEvent,
    VerdictRecord,
    decode,
)
from ebpfwatch.kernel.libbpf import map_lookup, map_update, raw_tracepoint_test_run
from ebpfwatch.kernel.playback import PAGE_BYTES, FakeInode
from ebpfwatch.kernel.session import Session
from tests.live.harness import load_session

__all__ = ["Action", "Arena", "Model", "dry_session", "history"]

WAYS = 4
RING_BYTES = 4096
TASK_SLOTS = 1024
UNKNOWN_CALLER = 0xFFFFFFFFC0DE0000
_SUPER, _DENTRY, _LISTED, _NAME = 3584, 3712, 3808, 4000
#: What the programs read of an inode; those that a kernel lacks are left out.
_FIELDS = (
    *("INO", "GENERATION", "NLINK", "STATE", "COUNT", "SB", "SB_LIST"),
    *("DENTRY", "WRITECOUNT", "READCOUNT", "MMAP", "RWSEM_OWNER"),
)

#: (what, which inode, lost?): lost steps happen, but the hook does not run.
Action = tuple[str, int, bool]

#: What a history is made of, and how often; FREE twice as often as it is legal, so crimes happen.
WEIGHTS = {
    "alloc": 8,
    "publish": 6,
    "rename": 1,
    "unlink_enter": 3,
    "unlink_exit": 3,
    "evict": 8,
    "free": 9,
    "unknown_caller": 1,
    "shrink_start": 1,
    "shrink_end": 1,
    "drain": 3,
    "canary": 1,
}


def history(rng: random.Random, length: int, inodes: int, lost: float = 0.0) -> list[Action]:
    """So many random actions; ``lost`` is the share of hook runs that do not take place."""
    names, weights = list(WEIGHTS), list(WEIGHTS.values())
    return [
        (what, rng.randrange(inodes), rng.random() < lost)
        for what in rng.choices(names, weights, k=length)
    ]


def dry_session(mount: os.PathLike[str], **changes: object) -> Session:
    """Loaded, attached nowhere; one bucket, one note, a ring of one page."""
    sizes = {"table_slots": WAYS, "note_slots": 1, "ring_bytes": RING_BYTES}
    return load_session(mount, attach=False, **{**sizes, **changes})  # type: ignore[arg-type]


@dataclasses.dataclass
class Entry:
    """One way of the table, as the model knows it."""

    index: int
    state: State
    flags: LifeFlag
    ino: int
    generation: int
    nlink: int = 0
    frees: int = 0


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a record must say; ``step`` names a canary's step instead of a verdict."""

    size: int
    verdict: Verdict | None = None
    index: int = 0
    flags: Flag = Flag(0)
    life: Entry | None = None
    crime: bool = False
    lost: frozenset[str] = frozenset()
    former: tuple[Entry, ...] = ()


class Arena:
    """The page with its inodes, and the programs."""

    def __init__(self, session: Session) -> None:
        self.session = session
        at = session.loaded.offsets
        offsets = [at[f"OFF_I_{name}"] for name in _FIELDS if f"OFF_I_{name}" in at]
        self._low = at["OFF_VFS_INODE"] + min(offsets)
        stride = (max(offsets) - min(offsets) + 8 + 15) // 16 * 16
        raw_tracepoint_test_run(session.programs["find_selftest_page"])
        address = map_lookup(session.maps["selftest_address"], 0, 8)
        self._task = struct.unpack("<Q", map_lookup(session.maps["selftest_address"], 1, 8))[0]
        self._page_at = int(struct.unpack("<Q", address)[0])
        self._page = bytearray(PAGE_BYTES)
        self._stride = stride
        self.inodes = [FakeInode(published=False) for _ in range(_SUPER // stride)]
        self._put("Q", _DENTRY + at["OFF_D_NAME"], self._page_at + _NAME)

    def object(self, index: int) -> int:
        """The address of this inode's object; only its fields need to be in the page."""
        return self._page_at - self._low + index * self._stride

    def inode_address(self, index: int) -> int:
        """The address of the inode in it."""
        return self.object(index) + self.session.loaded.offsets["OFF_VFS_INODE"]

    def _put(self, layout: str, offset: int, value: int) -> None:
        struct.pack_into("<" + layout, self._page, offset, value)

    def write(self, index: int) -> None:
        """Put one inode's present state into memory, and the dentry at it."""
        at, inode = self.session.loaded.offsets, self.inodes[index]
        base = self.inode_address(index) - self._page_at
        head = self.inode_address(index) + at["OFF_I_SB_LIST"]
        listed = self._page_at + _LISTED + 16 * index if inode.published else head
        self._put("Q", _LISTED + 16 * index + 8, head)
        self._put("Q", base + at["OFF_I_SB_LIST"], listed if inode.constructed else 0)
        self._put("Q", base + at["OFF_I_INO"], inode.ino)
        self._put("I", base + at["OFF_I_GENERATION"], inode.generation)
        self._put("I", base + at["OFF_I_NLINK"], inode.nlink)
        self._put("I", base + at["OFF_I_STATE"], inode.state)
        self._put("I", base + at["OFF_I_COUNT"], inode.count)
        self._put("Q", base + at["OFF_I_SB"], self._page_at + _SUPER)
        self._put("Q", _DENTRY + at["OFF_D_INODE"], self.inode_address(index))
        if "OFF_I_RWSEM_OWNER" in at:
            self._put("Q", base + at["OFF_I_RWSEM_OWNER"], self._task)
        map_update(self.session.maps["selftest_page"], 0, bytes(self._page))

    def run(self, what: str, index: int) -> None:
        """The program of this action, on this inode."""
        learned, programs = self.session.loaded.learned, self.session.programs
        dentry = self._page_at + _DENTRY
        site = UNKNOWN_CALLER if what == "unknown_caller" else learned.call_site
        name, arguments = {
            "alloc": ("kmem_cache_alloc", (site, self.object(index), learned.cache)),
            "unlink_enter": ("ext4_unlink_enter", (self.inode_address(index), dentry)),
            "unlink_exit": ("ext4_unlink_exit", (dentry, 0)),
            "evict": ("ext4_evict_inode", (self.inode_address(index),)),
            "free": ("kmem_cache_free", (site, self.object(index), learned.cache)),
            "unknown_caller": ("kmem_cache_free", (site, self.object(index), learned.cache)),
            "shrink_start": ("mm_shrink_slab_start", ()),
            "shrink_end": ("mm_shrink_slab_end", ()),
        }[what]
        raw_tracepoint_test_run(programs[name], *arguments)

    def records(self) -> list[StepEvent | VerdictEvent]:
        """What has come through the ring."""
        self.session.consume()
        events = [decode(record) for record in self.session.records]
        self.session.records.clear()
        return events  # type: ignore[return-value]


_M = TypeVar("_M", bound="Model")


class Model:
    """Plays actions on the arena and on itself; ``check`` compares all there is to compare."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.counters = collections.Counter(dict.fromkeys(COUNTERS, 0))
        self.ways: list[Entry | None] = [None] * WAYS
        self.left: list[Entry | None] = [None] * WAYS  # by lives whose address was allocated again
        self.note: int | None = None  # which inode
        self.spent = False  # the life that the note is of was evicted
        self.unlinking: int | None = None
        self.note_flags = LifeFlag(0)
        self.reclaiming = 0  # how deep
        self.canary = False
        self.expected: list[Expected] = []
        self.ring = 0
        self.lost: dict[str, set[int]] = collections.defaultdict(set)  # role: inodes
        self.truth = ["dead"] * len(arena.inodes)  # dead, unborn, alive, dying
        self.renamed = [False] * len(arena.inodes)
        self.guilty = [False] * len(arena.inodes)  # something happened to this life
        self.played = self.crimes = self.unseen = 0

    @classmethod
    def fresh(cls: type[_M], arena: Arena) -> _M:
        """A model of the arena as it is left by former histories, all of its inodes unborn."""
        arena.session.configure(0, (arena.session.loaded.learned.call_site,))
        for index in range(len(arena.inodes)):
            arena.inodes[index] = FakeInode(published=False, ino=index, generation=1, nlink=1)
            arena.write(index)
            arena.run("alloc", index)
        arena.write(0)
        slot = threading.get_native_id() % TASK_SLOTS
        map_update(arena.session.maps["tasks"], slot, bytes(LAYOUTS["task"]()))
        arena.run("unlink_enter", 0)
        arena.run("unlink_exit", 0)
        arena.records()
        table = arena.session.maps["table"]
        map_update(table, 0, bytes(ctypes.sizeof(LAYOUTS["bucket"])))
        model = cls(arena)
        model.counters.update(arena.session.counters())
        model.counters.pop("grace_ns")
        model.note = 0
        model.truth = ["unborn"] * len(arena.inodes)
        return model

    # -- the table

    def _way_of(self, index: int) -> int | None:
        for way, entry in enumerate(self.ways):
            if entry is not None and entry.index == index:
                return way
        return None

    def _entry_of(self, index: int) -> Entry | None:
        way = self._way_of(index)
        return None if way is None else self.ways[way]

    def _claim(self, entry: Entry) -> None:
        address = self.arena.object(entry.index)
        first = (address >> 4) * 0x9E3779B97F4A7C15 % 2**64 >> 62
        order = [(first + number) % WAYS for number in range(WAYS)]
        free = [way for way in order if self.ways[way] is None]
        dead = [way for way in order if getattr(self.ways[way], "state", None) is State.FREED]
        way = (free or dead or order)[0]
        old = self.ways[way]
        if old is not None:
            dying = old.state is not State.FREED
            self.counters["forgotten_dying" if dying else "forgotten_dead"] += 1
        self.ways[way], self.left[way] = entry, None

    # -- records

    def _submit(self, record: Expected) -> None:
        needed = (record.size + 8 + 7) // 8 * 8
        if self.ring + needed > RING_BYTES - 1:
            self.counters["submit"] += 1
            return
        self.ring += needed
        self.expected.append(record)

    def _step(self) -> None:
        self._submit(Expected(ctypes.sizeof(StepRecord)))

    def _verdict(self, verdict: Verdict, index: int, flags: Flag, life: Entry | None) -> None:
        self.counters["verdict"] += 1
        if life is not None:
            flags |= Flag.LIFE_VALID
        ours = not self.spent if life is None else life.flags & LifeFlag.UNLINKED
        if self.note == index and ours:
            flags |= Flag.NOTE_VALID
        former: tuple[Entry, ...] = ()
        if life is None and verdict is Verdict.FREE_WHILE_ALIVE:
            left = [entry for entry in self.left if entry is not None and entry.index == index]
            former = tuple(entry for entry in left if LifeFlag.NO_EVICT not in entry.flags)
        if former:
            flags |= Flag.LIFE_VALID | Flag.LIFE_FORMER
        before = dataclasses.replace(life) if life is not None else None
        lost = frozenset(role for role, inodes in self.lost.items() if index in inodes)
        size = ctypes.sizeof(VerdictRecord)
        crime = self.guilty[index]
        self._submit(Expected(size, verdict, index, flags, before, crime, lost, former))

    def _witness(self, index: int) -> Flag:
        inode = self.arena.inodes[index]
        dead = self.arena.session.loaded.learned.dead_state
        flags = Flag.WITNESS_READ
        if inode.state & dead == dead:
            flags |= Flag.WITNESS_CLEAR
        if inode.published and inode.constructed:
            flags |= Flag.WITNESS_PUBLISHED
        return flags

    # -- actions

    def play(self, action: Action) -> None:
        """One action, on both."""
        what, index, lost = action
        if what == "drain":
            self.check()
            return
        if what == "canary":
            self.canary = not self.canary
            site = self.arena.session.loaded.learned.call_site
            self.arena.session.configure(os.getpid() if self.canary else 0, (site,))
            return
        crime = self._happen(what, index)
        self.guilty[index] |= crime
        if what in ("publish", "rename"):
            return
        role = {"unknown_caller": "any_free", "free": "any_free"}.get(what, what)
        if lost and role in ("alloc", "evict", "any_free"):
            self.lost[role].add(index)
            self._settle(what, index)
            return
        self.played += 1
        before = self.counters["verdict"]
        self.arena.run(what, index)
        getattr(self, f"_{what}")(index)
        self.crimes += crime
        self.unseen += crime and self.counters["verdict"] == before
        self._settle(what, index)
        if what == "alloc":  # a life that is seen to begin: what was lost before is past
            for inodes in self.lost.values():
                inodes.discard(index)

    def _happen(self, what: str, index: int) -> bool:
        """The object's memory, and the truth; whether this is a crime."""
        inode, was = self.arena.inodes[index], self.truth[index]
        crime = False
        if what == "alloc":
            inode.state, inode.count, inode.published = 0, 1, False
            inode.constructed = inode.ino % 3 != 0
            inode.ino, inode.generation = inode.ino % 5 + 1, inode.generation % 3 + 1
            inode.nlink = inode.ino % 2
            self.truth[index], self.renamed[index], self.guilty[index] = "unborn", False, False
        elif what == "publish":
            if was == "unborn":
                inode.published = inode.constructed = True
                self.truth[index] = "alive"
        elif what == "unlink_enter":
            inode.nlink = max(1, inode.nlink)  # else there is no name to delete
        elif what == "rename":
            inode.generation += 1
            self.renamed[index] = True
        elif what == "evict":
            crime = was in ("dying", "dead")
            inode.count, inode.published = 0, False
            self.truth[index], self.renamed[index] = "dying", False
        elif what in ("free", "unknown_caller"):
            other = was == "dying" and self.renamed[index]
            crime = was in ("dead", "alive") or what == "unknown_caller" or other
            self.truth[index] = "dead"
        self.arena.write(index)
        return crime

    def _settle(self, what: str, index: int) -> None:
        """What the kernel writes after the hook: clear_inode() when it is evicted."""
        if what == "evict":
            self.arena.inodes[index].state = self.arena.session.loaded.learned.dead_state
            self.arena.write(index)

    def _alloc(self, index: int) -> None:
        way = self._way_of(index)
        if way is not None:
            entry = self.ways[way]
            assert entry is not None
            self.ways[way], self.left[way] = None, entry
            self.counters["alloc"] += 1
            self.counters["free_missed"] += entry.state is not State.FREED
        if self.canary:
            self._step()

    def _unlink_enter(self, index: int) -> None:
        self.counters["unlink"] += 1
        self.note, self.spent, self.unlinking = index, False, index
        self.note_flags = LifeFlag.IN_FLIGHT | (LifeFlag.CANARY if self.canary else LifeFlag(0))
        if self.canary:
            self._step()

    def _unlink_exit(self, index: int) -> None:
        if self.unlinking is not None:  # a task leaves what it has entered
            index, self.unlinking = self.unlinking, None
        if self.note != index:
            return
        self.note_flags &= ~LifeFlag.IN_FLIGHT
        if self.note_flags & LifeFlag.CANARY:
            self._step()

    def _shrink_start(self, index: int) -> None:
        self.counters["shrink_start"] += 1
        self.reclaiming += 1

    def _shrink_end(self, index: int) -> None:
        self.counters["shrink_end"] += 1
        self.reclaiming = max(0, self.reclaiming - 1)

    def _evict(self, index: int) -> None:
        inode, entry = self.arena.inodes[index], self._entry_of(index)
        self.counters["evict"] += 1
        flags, seen, verdict = LifeFlag(0), Flag.WITNESS_IDENTITY, None
        noted = self.note == index and not self.spent
        if noted:
            flags |= LifeFlag.UNLINKED | self.note_flags
        if self.reclaiming:
            flags |= LifeFlag.RECLAIM
            self.counters["evict_in_reclaim"] += 1
            if flags & LifeFlag.IN_FLIGHT or not inode.nlink:
                verdict = Verdict.FREED_IN_RECLAIM
        elif self.canary and not inode.nlink:
            flags |= LifeFlag.CANARY
        if entry is not None:
            seen |= self._witness(index)
            verdict = Verdict.DOUBLE_EVICT
        if verdict is not None:
            again = verdict is Verdict.DOUBLE_EVICT
            self._verdict(verdict, index, seen, entry if again else None)
        self.spent |= noted
        new = Entry(index, State.EVICTING, flags, inode.ino, inode.generation, inode.nlink)
        way = self._way_of(index)
        if way is None:
            self._claim(new)
        else:
            self.ways[way] = new
        if flags & LifeFlag.CANARY:
            self._step()

    def _unknown_caller(self, index: int) -> None:
        self._free(index, unknown_caller=True)

    def _free(self, index: int, unknown_caller: bool = False) -> None:
        inode, entry = self.arena.inodes[index], self._entry_of(index)
        seen, verdict, dying = Flag.WITNESS_IDENTITY, None, False
        if entry is None:
            seen |= self._witness(index)
            if seen & Flag.WITNESS_PUBLISHED:
                verdict = Verdict.FREE_WHILE_ALIVE
            else:
                self.counters["free_aborted" if inode.count == 1 else "free_unmatched"] += 1
        elif entry.state is State.FREED:
            seen |= self._witness(index)
            alive = seen & Flag.WITNESS_PUBLISHED
            verdict = Verdict.FREE_WHILE_ALIVE if alive else Verdict.DOUBLE_FREE
        else:
            dying = True
            if (entry.ino, entry.generation) != (inode.ino, inode.generation):
                alive = self._witness(index) & Flag.WITNESS_PUBLISHED
                changed = Verdict.IDENTITY_CHANGED
                verdict = Verdict.FREE_WHILE_ALIVE if alive else changed
        if unknown_caller and verdict is None:
            verdict = Verdict.FOREIGN_FREE
        if verdict is not None:
            self._verdict(verdict, index, seen | self._witness(index), entry)
        if entry is None:
            entry = Entry(index, State.FREED, LifeFlag.NO_EVICT, inode.ino, inode.generation)
            self._claim(entry)
        if entry.flags & LifeFlag.CANARY:
            self._step()
        entry.frees += 1
        entry.state = State.FREED
        if dying:
            self.counters["free"] += 1
            self.counters["free_in_reclaim"] += bool(entry.flags & LifeFlag.RECLAIM)

    # -- comparing

    def check(self) -> list[tuple[Expected, VerdictEvent]]:
        """Compare counters, table and records; the verdicts with what was expected of them."""
        events = self.arena.records()
        self.ring = 0
        expected, self.expected = self.expected, []
        counted = self.arena.session.counters()
        counted.pop("grace_ns")
        assert counted == {name: self.counters[name] for name in counted}
        fill = self.arena.session.scan()
        dying = sum(1 for e in self.ways if e is not None and e.state is not State.FREED)
        assert (fill.dying, fill.dead) == (dying, len([e for e in self.ways if e]) - dying)
        assert len(events) == len(expected)
        pairs = []
        for event, wanted in zip(events, expected):
            if isinstance(event, StepEvent):
                assert wanted.verdict is None
                continue
            self._compare(event, wanted)
            pairs.append((wanted, event))
        self.judged(pairs)
        return pairs

    def judged(self, pairs: list[tuple[Expected, VerdictEvent]]) -> None:
        """What a test wants to know of the verdicts besides."""

    def _compare(self, event: VerdictEvent, wanted: Expected) -> None:
        assert event.verdict is wanted.verdict
        assert event.object == self.arena.object(wanted.index)
        assert event.flags == wanted.flags, (event.flags, wanted.flags)
        life = wanted.life
        assert (event.life is None) == (life is None and not wanted.former)
        if event.life is not None and wanted.former:
            former = [(entry.ino, entry.generation) for entry in wanted.former]
            assert (event.life.ino, event.life.generation) in former
        if life is not None and event.life is not None:
            seen = event.life
            assert (seen.state, seen.flags, seen.ino, seen.generation, seen.nlink, seen.frees) == (
                life.state,
                life.flags,
                life.ino,
                life.generation,
                life.nlink,
                life.frees,
            )
