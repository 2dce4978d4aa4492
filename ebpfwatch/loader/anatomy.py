"""Where members lie in the kernel's objects, told by the objects of a file that we made. Pure.

What we put into the file is known: its number, generation, links, names, how often it is open, and
how.  So each offset that somebody told us (BTF, headers) can be held against its memory, and one
that nobody told can be found: it is the one place whose content follows what we do.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Callable, NamedTuple

from ebpfwatch.loader.members import OPTIONAL

__all__ = ["Found", "Specimen", "State", "alive", "dead", "settle", "wrong"]

Found = dict[str, frozenset[int]]  #: by define: every place where it may lie

#: So far into a dentry, a superblock or a file is looked: more than they are long, or than the
#: members that are wanted lie inside.
_NEAR = 512
_TYPE_BYTES = 64  # of struct file_system_type: its name is the first member
_SB_BYTES = 4096  # any place inside the superblock
_WORD, _INT = 8, 4

#: Of these the first place is the right one, or as good: a cache's name is in its kobject, too, and
#: behind a file lie others, of the same directory perhaps.
_FIRST = frozenset({"OFF_CACHE_NAME", "OFF_F_DENTRY"})


#: A living file does not show these; ``learn`` proves them.  Where an inode stands in the list of
#: its superblock only the newest shows, and another may have been born since.
_NOT_ALIVE = frozenset({"OFF_I_SB_LIST", "OFF_I_STATE", "OFF_CACHE_NAME", "OFF_CACHE_OBJECT_SIZE"})


class State(NamedTuple):
    """The inode's memory at a moment, and what we had done to the file by then.

    ``references`` is its count, one for each dentry; ``writers`` and ``readers`` how often it is
    open.
    """

    memory: bytes
    nlink: int
    references: int
    writers: int
    readers: int
    mapped: bool = False


class Specimen(NamedTuple):
    """A file that lives: what we know of it, and its memory.

    ``dev`` is the kernel's number.  The addresses are those of its ``inode``, its ``dentry``, the
    inode of its ``directory``, an open ``file`` of that directory, and of our ``task``.
    ``siblings`` are dentries of ours in that directory.  ``counted`` is the dentry's memory, and
    how often it was open then; ``first`` is the inode's right after its birth.  ``unlinked`` and
    ``locked`` are inode and directory as ext4_unlink() was entered, ``released`` the inode later.
    ``read`` gives memory that is still there, b"" where there is none.
    """

    ino: int
    generation: int
    dev: int
    name: bytes
    inode: int
    dentry: int
    directory: int
    file: int
    task: int
    siblings: tuple[int, ...]
    first: bytes
    states: tuple[State, ...]
    counted: tuple[tuple[bytes, int], ...]
    unlinked: bytes
    locked: bytes
    released: bytes
    has_owner: bool
    read: Callable[[int, int], bytes]


def _words(memory: bytes) -> Iterator[tuple[int, int]]:
    for offset in range(0, len(memory) - _WORD + 1, _WORD):
        yield offset, struct.unpack_from("<Q", memory, offset)[0]


def _word(memory: bytes, offset: int) -> int:
    if offset < 0 or offset + _WORD > len(memory):
        return 0
    return int(struct.unpack_from("<Q", memory, offset)[0])


def _pointers(memory: bytes) -> Iterator[tuple[int, int]]:
    """Words that may be addresses of the kernel's."""
    return ((offset, word) for offset, word in _words(memory) if word >> 48 == 0xFFFF)


def _holding(memory: bytes, value: int) -> frozenset[int]:
    return frozenset(offset for offset, word in _words(memory) if word == value)


def _ints(memory: bytes, value: int) -> frozenset[int]:
    found = range(0, len(memory) - _INT + 1, _INT)
    wanted = value & 0xFFFFFFFF
    return frozenset(o for o in found if struct.unpack_from("<I", memory, o)[0] == wanted)


def _in_all(sets: Iterable[frozenset[int]]) -> frozenset[int]:
    every = list(sets)
    return frozenset.intersection(*every) if every else frozenset()


def alive(one: Specimen) -> Found:
    """Every place where each member may lie, as far as a living file tells."""
    memory = one.states[-1].memory
    lists = _aliases(one, memory)
    # d_u is the last member of struct dentry (linux/dcache.h); behind it lies another dentry.
    end = max(lists["OFF_D_U"], default=_NEAR) + 16
    dentry = one.counted[-1][0][:end]
    found: Found = {
        "OFF_I_INO": _holding(memory, one.ino),
        "OFF_I_GENERATION": _ints(memory, one.generation),
        "OFF_D_INODE": _holding(dentry, one.inode),
        "OFF_D_COUNT": _in_all(_ints(bytes_[:end], opened) for bytes_, opened in one.counted),
        "OFF_D_NAME": frozenset(
            offset
            for offset, word in _pointers(dentry)
            if one.read(word, _NEAR).startswith(one.name + b"\0")
        ),
    }
    for define, what in (
        ("OFF_I_NLINK", "nlink"),
        ("OFF_I_COUNT", "references"),
        ("OFF_I_WRITECOUNT", "writers"),
        ("OFF_I_READCOUNT", "readers"),
    ):
        found[define] = _in_all(_ints(state.memory, getattr(state, what)) for state in one.states)
    found["OFF_I_MMAP"] = _in_all(_mappings(state) for state in one.states)
    found.update(lists)
    found.update(_above(one, dentry, found["OFF_D_INODE"]))
    found.update(_superblock(one, memory, dentry))
    if one.has_owner:
        found["OFF_I_RWSEM_OWNER"] = _owned(one)
    return found


def _mappings(state: State) -> frozenset[int]:
    """The tree of mappings, and its leftmost one (struct rb_root_cached): of one mapping, the same;
    of none, nothing.
    """
    pairs = (
        (offset, word, _word(state.memory, offset + 8)) for offset, word in _words(state.memory)
    )
    if state.mapped:
        return frozenset(o for o, word, next_ in pairs if word == next_ and word >> 48 == 0xFFFF)
    return frozenset(offset for offset, word, next_ in pairs if not word and not next_)


def _aliases(one: Specimen, memory: bytes) -> Found:
    """The list of the inode's names leads into its dentry, which leads back."""
    places: dict[int, int] = {}
    for offset, word in _words(memory):
        inside = word - one.dentry
        if 0 <= inside < _NEAR - 16 and _word(one.counted[-1][0], inside + 8) == one.inode + offset:
            places[offset] = inside
    lists = frozenset(places)
    # i_dentry shares its word with i_rcu (a union in struct inode, linux/fs.h).
    return {"OFF_I_DENTRY": lists, "OFF_I_RCU": lists, "OFF_D_U": frozenset(places.values())}


def _above(one: Specimen, dentry: bytes, inodes: Collection[int]) -> Found:
    """The dentry of the directory, and the list of its children."""
    parents = {
        offset: word
        for offset, word in _pointers(dentry)
        if any(_word(one.read(word, _NEAR), inode) == one.directory for inode in inodes)
    }
    found: Found = {"OFF_D_PARENT": frozenset(parents)}
    for above in set(parents.values()):
        found.update(_children(one, dentry, one.read(above, _NEAR)[: len(dentry)]))
        found["OFF_F_DENTRY"] = _holding(one.read(one.file, _NEAR), above)
    return found


def _children(one: Specimen, own: bytes, above: bytes) -> Found:
    """A directory's list begins with its newest child; a file's own is empty: a list_head points at
    itself, a hlist_head (since Linux 6.8) is NULL.
    """
    names = {True: ("OFF_D_SUBDIRS", "OFF_D_CHILD"), False: ("OFF_D_CHILDREN", "OFF_D_SIB")}
    found: dict[str, set[int]] = {}
    for offset, word in _pointers(above):
        for child in one.siblings:
            beside, empty = word - child, _word(own, offset)
            if 0 <= beside < len(own) and empty in (0, one.dentry + offset):
                below, sibling = names[bool(empty)]
                found.setdefault(below, set()).add(offset)
                found.setdefault(sibling, set()).add(beside)
    return {define: frozenset(places) for define, places in found.items()}


def _superblock(one: Specimen, memory: bytes, dentry: bytes) -> Found:
    """Both inode and dentry point to it, and the directory, too; it has the device, and the type
    with its name.
    """
    of_dentry: dict[int, set[int]] = {}
    for offset, word in _pointers(dentry):
        of_dentry.setdefault(word, set()).add(offset)
    found: dict[str, set[int]] = {}

    def add(define: str, place: int) -> None:
        found.setdefault(define, set()).add(place)

    for offset, word in _pointers(memory):
        block = one.read(word, _NEAR) if word in of_dentry else b""
        devices = _ints(block[: _NEAR // 2], one.dev)
        if not devices or _word(one.locked, offset) != word:
            continue
        add("OFF_I_SB", offset)
        for place in of_dentry[word]:
            add("OFF_D_SB", place)
        for device in devices:
            add("OFF_S_DEV", device)
        for place, type_ in _pointers(block):
            for inside, name in _pointers(one.read(type_, _NEAR)[:_TYPE_BYTES]):
                if one.read(name, _NEAR).startswith(b"ext4\0"):
                    add("OFF_S_TYPE", place)
                    add("OFF_FS_NAME", inside)
        for place in _newest(one, word):
            add("OFF_I_SB_LIST", place)
    return {define: frozenset(places) for define, places in found.items()}


def _newest(one: Specimen, super_: int) -> Iterator[int]:
    """The list of all inodes of the superblock begins with the one that was born last: before it is
    the list's head, inside the superblock (inode_sb_list_add() in fs/inode.c).
    """
    for offset, next_ in _pointers(one.first):
        before = _word(one.first, offset + 8)
        if 0 <= before - super_ < _SB_BYTES and _word(one.read(next_, 16), 8) == one.inode + offset:
            yield offset


def _owned(one: Specimen) -> frozenset[int]:
    """Whose lock it is, without the flags in its lowest bits: ours in both inodes while we unlink,
    and later not.
    """
    return frozenset(
        offset
        for offset, word in _words(one.unlinked)
        if word & ~7 == one.task
        and _word(one.locked, offset) & ~7 == one.task
        and _word(one.released, offset) & ~7 != one.task
    )


def dead(lives: Iterable[bytes], evicted: bytes, freed: bytes, names: Iterable[int]) -> Found:
    """What only the end of the file tells: i_state; ``names`` is where its cache has its name.

    A dead inode has I_FREEING | I_CLEAR, one that is evicted of the two only I_FREEING, a living
    one none (fs/inode.c: evict(), clear_inode()).
    """
    every, places = list(lives), set()
    for offset in range(0, min(len(freed), len(evicted)) - _INT + 1, _INT):
        (end,) = struct.unpack_from("<I", freed, offset)
        (last,) = struct.unpack_from("<I", evicted, offset)
        before = [struct.unpack_from("<I", life, offset)[0] for life in every]
        if _bits(end) == 2 and _bits(last & end) == 1 and not any(one & end for one in before):
            places.add(offset)
    return {"OFF_I_STATE": frozenset(places), "OFF_CACHE_NAME": frozenset(names)}


def _bits(word: int) -> int:
    return bin(word).count("1")


def wrong(offsets: Mapping[str, int], found: Found) -> frozenset[str]:
    """The offsets that a living file's memory does not bear out."""
    asked = offsets.keys() - _NOT_ALIVE
    return frozenset(define for define in asked if offsets[define] not in found.get(define, ()))


def settle(several: Iterable[Found]) -> tuple[dict[str, int], str]:
    """The offsets, each the only place that all the files have in common; and the first that is in
    no place, or in several, "" if all are clear.

    What a kernel may lack is left out where it is not clear.
    """
    every = list(several)
    offsets, unclear = {}, ""
    for define in sorted({define for one in every for define in one}):
        places = _in_all(one.get(define, frozenset()) for one in every)
        if len(places) == 1 or (places and define in _FIRST):
            offsets[define] = min(places)
        elif define not in OPTIONAL:
            unclear = unclear or define
    return offsets, unclear
