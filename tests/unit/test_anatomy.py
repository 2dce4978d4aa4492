"""Offsets are found in memory that was made up, and those that are wrong are noticed."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping

import pytest

from ebpfwatch.loader import anatomy
from ebpfwatch.loader.anatomy import Found, Specimen, State
from ebpfwatch.loader.members import MEMBERS, OPTIONAL, member
from ebpfwatch.loader.verify import STAND_IN_OFFSETS

INODE, DENTRY, SIBLING, DIRECTORY, ABOVE, SUPER, TYPE, TYPE_NAME, NAME, NEXT, FILE, TASK, TREE = (
    0xFFFF888000000000 + 0x10000 * number for number in range(1, 14)
)
#: Linux 4.19 on arm64; and what a newer kernel has instead of the list of children.
OLD = {**STAND_IN_OFFSETS, "OFF_I_READCOUNT": 348}
NEW = {**{k: v for k, v in OLD.items() if k not in ("OFF_D_SUBDIRS", "OFF_D_CHILD")},
       "OFF_D_CHILDREN": 160, "OFF_D_SIB": 144}  # fmt: skip
LAYOUTS = {"a list of children": OLD, "a hash list of children": NEW}

_FREEING, _CLEAR = 0x20, 0x40


class Memory:
    """Objects by address; what is not written is noise, so that chance may lead nobody."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._objects: dict[int, bytearray] = {}

    def object(self, address: int, size: int = 512) -> bytearray:
        """The memory there: odd numbers, which are no counts of ours and no addresses."""
        if address not in self._objects:
            noise = [self._random.randrange(1 << 20, 1 << 30) | 1 for _ in range(size // 4)]
            self._objects[address] = bytearray(struct.pack(f"<{len(noise)}I", *noise))
        return self._objects[address]

    def put(self, address: int, offset: int, layout: str, *values: int) -> None:
        """Into the object at that address."""
        struct.pack_into("<" + layout, self.object(address, 1536), offset, *values)

    def read(self, address: int, size: int) -> bytes:
        """b"" where no object is."""
        for start, memory in self._objects.items():
            if start <= address < start + len(memory):
                return bytes(memory[address - start : address - start + size])
        return b""


def specimen(at: Mapping[str, int], seed: int, has_owner: bool = True) -> Specimen:
    """A file of ours in a kernel whose members lie there."""
    memory = Memory(seed)
    ino, generation, dev = 1000 + seed, 0x12340001 + seed, 254 << 20 | 3

    def inode(nlink: int, references: int, writers: int, readers: int, mapped: bool) -> State:
        for define, layout, value in (
            ("OFF_I_INO", "Q", ino),
            ("OFF_I_GENERATION", "I", generation),
            ("OFF_I_NLINK", "I", nlink),
            ("OFF_I_COUNT", "I", references),
            ("OFF_I_WRITECOUNT", "i", writers),
            ("OFF_I_READCOUNT", "i", readers),
            ("OFF_I_SB", "Q", SUPER),
            ("OFF_I_STATE", "I", 7),
            ("OFF_I_RWSEM_OWNER", "Q", 0),
            ("OFF_I_DENTRY", "Q", DENTRY + at["OFF_D_U"]),
        ):
            memory.put(INODE, at[define], layout, value)
        memory.put(INODE, at["OFF_I_MMAP"], "QQ", *(2 * [TREE if mapped else 0]))
        memory.put(INODE, at["OFF_I_SB_LIST"], "QQ", NEXT, SUPER + 1024)
        return State(memory.read(INODE, 1536), nlink, references, writers, readers, mapped)

    states = (
        inode(1, 1, 1, 0, False),
        inode(2, 2, 1, 0, False),
        inode(1, 1, 1, 0, False),
        inode(0, 1, 3, 4, False),
        inode(0, 1, 3, 4, True),
        inode(0, 1, 3, 4, False),
    )
    below, beside = (
        ("OFF_D_SUBDIRS", "OFF_D_CHILD")
        if "OFF_D_SUBDIRS" in at
        else ("OFF_D_CHILDREN", "OFF_D_SIB")
    )
    for dentry, parent, its in ((DENTRY, ABOVE, INODE), (ABOVE, ABOVE, DIRECTORY)):
        memory.put(dentry, at["OFF_D_INODE"], "Q", its)
        memory.put(dentry, at["OFF_D_PARENT"], "Q", parent)
        memory.put(dentry, at["OFF_D_SB"], "Q", SUPER)
    memory.put(DENTRY, at["OFF_D_NAME"], "Q", NAME)
    memory.put(DENTRY, at["OFF_D_U"], "QQ", 0, INODE + at["OFF_I_DENTRY"])
    memory.put(DENTRY, at[below], "Q", DENTRY + at[below] if "OFF_D_SUBDIRS" in at else 0)
    memory.put(DENTRY, at["OFF_D_U"] + 16 + at["OFF_D_SB"], "Q", SUPER)  # the dentry behind it
    memory.put(ABOVE, at[below], "Q", SIBLING + at[beside])
    memory.put(SUPER, at["OFF_S_DEV"], "I", dev)
    memory.put(SUPER, at["OFF_S_TYPE"], "Q", TYPE)
    memory.put(TYPE, at["OFF_FS_NAME"], "Q", TYPE_NAME)
    memory.object(TYPE_NAME)[:5] = b"ext4\0"
    memory.object(NAME)[:5] = b"name\0"
    memory.put(NEXT, 8, "Q", INODE + at["OFF_I_SB_LIST"])
    memory.put(FILE, at["OFF_F_DENTRY"], "Q", ABOVE)
    counted = []
    for opened in (7, 5):
        memory.put(DENTRY, at["OFF_D_COUNT"], "i", opened)
        counted.append((memory.read(DENTRY, 512), opened))
    locked = Memory(seed + 100)
    for address in (INODE, DIRECTORY):
        locked.put(address, at["OFF_I_RWSEM_OWNER"], "Q", TASK | 2)
        locked.put(address, at["OFF_I_SB"], "Q", SUPER)
    return Specimen(
        ino=ino,
        generation=generation,
        dev=dev,
        name=b"name",
        inode=INODE,
        dentry=DENTRY,
        directory=DIRECTORY,
        file=FILE,
        task=TASK,
        siblings=(SIBLING, DENTRY),
        first=states[0].memory,
        states=states,
        counted=tuple(counted),
        unlinked=locked.read(INODE, 1536),
        locked=locked.read(DIRECTORY, 1536),
        released=states[-1].memory,
        has_owner=has_owner,
        read=memory.read,
    )


def told(at: Mapping[str, int], seed: int) -> Found:
    """What the life and the death of one file tell."""
    one = specimen(at, seed)
    evicted, freed = bytearray(one.first), bytearray(one.first)
    struct.pack_into("<I", evicted, at["OFF_I_STATE"], 7 | _FREEING)
    struct.pack_into("<I", freed, at["OFF_I_STATE"], _FREEING | _CLEAR)
    lives = [state.memory for state in one.states]
    return {
        **anatomy.alive(one),
        **anatomy.dead(lives, bytes(evicted), bytes(freed), [at["OFF_CACHE_NAME"], 120]),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_offset_is_found(layout: str) -> None:
    """Each is in one place only, whatever else lies in the objects."""
    at = LAYOUTS[layout]
    found, unclear = anatomy.settle(told(at, seed) for seed in range(3))
    assert (found, unclear) == (dict(at), "")


def test_a_file_shows_every_offset_there_is() -> None:
    """But the size of a cache's objects, which the kernel tells."""
    shown = told(OLD, 1).keys() | told(NEW, 1).keys()
    assert shown == {*MEMBERS, *OPTIONAL} - {"OFF_CACHE_OBJECT_SIZE"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_right_offsets_are_borne_out_and_a_wrong_one_is_named(layout: str) -> None:
    """By one file; only the list of all inodes needs more than that."""
    at = LAYOUTS[layout]
    found = anatomy.alive(specimen(at, 5))
    assert anatomy.wrong(at, found) == set()
    for define in at.keys() - anatomy._NOT_ALIVE:
        assert anatomy.wrong({**at, define: at[define] + 4}, found) == {define}
        assert anatomy.wrong(at, {**found, define: frozenset()}) == {define}
        assert member(define).startswith("struct ")


def test_what_is_in_two_places_is_not_guessed() -> None:
    """One that a kernel may lack is left out; without another nothing can be said."""
    clear = told(OLD, 1)
    owner = {**clear, "OFF_I_RWSEM_OWNER": frozenset({8, 192})}
    found, unclear = anatomy.settle([owner])
    assert "OFF_I_RWSEM_OWNER" not in found and not unclear
    for places in (frozenset[int](), frozenset({48, 56})):
        assert anatomy.settle([{**clear, "OFF_D_INODE": places}])[1] == "OFF_D_INODE"


def test_the_lock_of_a_realtime_kernel_is_not_looked_at() -> None:
    """Its owner has other flags."""
    assert "OFF_I_RWSEM_OWNER" not in anatomy.alive(specimen(OLD, 1, has_owner=False))


def test_a_lock_that_we_still_hold_is_another() -> None:
    """Whatever names our task at other times, too, does not tell who holds the lock."""
    one = specimen(OLD, 1)
    kept = one._replace(released=one.unlinked)
    assert anatomy.alive(kept)["OFF_I_RWSEM_OWNER"] == frozenset()
