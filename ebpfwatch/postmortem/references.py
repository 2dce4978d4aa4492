"""What the VFS's counts must be at least, and where they are not. Pure.

A reference is counted before it can be used and given back after it was last used, so an object's
count is never smaller than the references that can be found (fs/dcache.c, fs/inode.c).  One that is
smaller was put once too often: that is proof, whatever else holds it.  One that is larger is held
by something that was not looked at, which is no mistake.  An object whose lock is held is being
changed at this moment and is not judged.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = [
    "Anomaly",
    "Holder",
    "Inode",
    "Name",
    "OpenFile",
    "Result",
    "judge",
]

#: lockref_mark_dead() (lib/lockref.c) sets -128; a put of a dead dentry may take one more.
_DEAD = -64
_MOST_HOLDERS = 6


class Name(NamedTuple):
    """A dentry: one name in one directory.

    ``listed``: the kernel's flags say that it is on the list of unused ones.  ``linked``: it is on
    a list of children.  A dentry that __d_alloc() has just taken from the slab has the parent of
    its former life for some instructions, and is on none.
    """

    address: int
    references: int
    locked: bool
    parent: int
    inode: int
    superblock: int
    name: int
    listed: bool
    linked: bool

    @property
    def dead(self) -> bool:
        """Killed, waiting for the end of an RCU grace period."""
        return self.references < _DEAD


class Inode(NamedTuple):
    """An inode on its superblock's list; ``superblock`` is the list's, ``own`` what it says."""

    address: int
    references: int
    locked: bool
    cleared: bool
    dying: bool
    superblock: int
    own: int
    number: int
    watched: bool
    directory: bool
    links: int


class OpenFile(NamedTuple):
    """A ``struct file``; ``sure`` if a process leads to it, not only the slab's account."""

    address: int
    references: int
    name: int
    uses: int  # descriptors and mappings that lead to it
    sure: bool


class Holder(NamedTuple):
    """One reference of a name: by what, and whose."""

    kind: str
    who: str = ""


@dataclasses.dataclass(frozen=True)
class Anomaly:
    """What cannot be: ``kind`` is for programs, ``says`` for people.

    ``missing``: how many references too few there are, 0 where it is not about a number.
    """

    kind: str
    object: int
    what: str
    says: str
    name: int = 0
    superblock: int = 0
    number: int = 0
    has: int | None = None
    counted: int | None = None
    holders: Sequence[str] = ()

    @property
    def missing(self) -> int:
        """References too few."""
        if self.has is None or self.counted is None:
            return 0
        return max(self.counted - self.has, 0)


@dataclasses.dataclass
class Result:
    """Anomalies, the worst first; ``more`` are names with more references than were found."""

    anomalies: list[Anomaly]
    more: list[tuple[Name, int, int]]
    changing: int


def judge(
    names: Iterable[Name],
    inodes: Iterable[Inode],
    files: Iterable[OpenFile],
    holders: Mapping[int, Sequence[Holder]],
    allocated: Callable[[int], bool | None],
    pinned: Callable[[int], bool] = lambda superblock: False,
    whose: Callable[[int], str] = lambda file: "",
) -> Result:
    """Compare each count with what was found.

    ``allocated`` is the slab allocator's account of an address; ``pinned``: a superblock whose
    names hold a reference of themselves, because they are on no disk; ``whose``: who has a file
    open.
    """
    by_address = {name.address: name for name in names}
    living = [name for name in by_address.values() if not name.dead]
    found = _Found(by_address, living, list(files), holders, whose)
    result = Result([], [], 0)
    for name in by_address.values():
        if name.locked:
            result.changing += 1
        else:
            result.anomalies += _dead(name, found) if name.dead else _alive(name, found, allocated)
            more = name.references - found.counted(name.address, True) - _pin(name, pinned)
            if not name.dead and more > 0:
                result.more.append((name, name.references, more))
    aliases = collections.Counter(name.inode for name in living if name.inode)
    for inode in inodes:
        if inode.locked:
            result.changing += 1
        else:
            result.anomalies += _inode(inode, aliases[inode.address], found, allocated)
    result.anomalies += _freed_parents(living, found, allocated)
    for file in found.files:
        result.anomalies += _file(file, found, allocated)
    result.anomalies.sort(key=lambda one: (-one.missing, one.kind, one.object))
    result.more.sort(key=lambda one: -one[2])
    return result


def _pin(name: Name, pinned: Callable[[int], bool]) -> int:
    return int(bool(name.inode) and name.parent != name.address and pinned(name.superblock))


class _Found:
    """The references that lead to each name."""

    def __init__(
        self,
        names: Mapping[int, Name],
        living: Sequence[Name],
        files: list[OpenFile],
        holders: Mapping[int, Sequence[Holder]],
        whose: Callable[[int], str],
    ) -> None:
        self.names, self.files, self.holders, self.whose = names, files, holders, whose
        self.children = collections.Counter(
            name.parent for name in living if name.linked and name.parent != name.address
        )
        self.unlinked = collections.Counter(
            name.parent for name in living if not name.linked and name.parent != name.address
        )
        self.sure = collections.Counter(file.name for file in files if file.sure)
        self.all = collections.Counter(file.name for file in files)
        self.by_inode: dict[int, int] = {name.inode: name.address for name in living if name.inode}

    def counted(self, address: int, with_unsure: bool = False) -> int:
        """How many references of this name there are at least."""
        files = self.all if with_unsure else self.sure
        held = self.holders.get(address, ())
        return (
            self.children[address]
            + (self.unlinked[address] if with_unsure else 0)
            + files[address]
            + len([one for one in held if with_unsure or not one.kind.startswith("perhaps ")])
        )

    def tell(self, address: int) -> list[str]:
        """Who holds them, in words."""
        said = []
        if self.children[address]:
            said.append(_many(self.children[address], "child", "children"))
        if self.all[address]:
            who = [self.whose(file.address) for file in self.files if file.name == address]
            said.append(_many(self.all[address], "open file", "open files") + _some(who))
        kinds = collections.Counter(one.kind for one in self.holders.get(address, ()))
        for kind, count in kinds.items():
            who = [one.who for one in self.holders[address] if one.kind == kind]
            said.append(f"{count} as {kind}{_some(who)}")
        return said


def _some(who: Sequence[str]) -> str:
    """The first of them in brackets; without those of whom nothing is known."""
    known = list(dict.fromkeys(filter(None, who)))
    more = ", ..." if len(known) > _MOST_HOLDERS else ""
    return f" ({', '.join(known[:_MOST_HOLDERS])}{more})" if known else ""


def _many(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"


def _short(has: int, counted: int, found: str) -> str:
    too_often = f"it was put {_many(counted - has, 'time', 'times')} too often"
    if not counted:
        return f"has {has} references, and nothing was found that uses it: {too_often}"
    return f"has {_many(has, 'reference', 'references')}, and {found}: {too_often}"


def _what(name: Name, found: _Found) -> str:
    root = name.parent == name.address and found.holders.get(name.address)
    return "directory" if root or found.children[name.address] else "name"


def _alive(name: Name, found: _Found, allocated: Callable[[int], bool | None]) -> Iterable[Anomaly]:
    counted = found.counted(name.address)
    what = _what(name, found)
    about: dict[str, Any] = {"name": name.address, "superblock": name.superblock}
    if name.references < counted:
        yield Anomaly(
            "name_too_few",
            name.address,
            what,
            _short(name.references, counted, f"{counted} that lead to it were found"),
            has=name.references,
            counted=counted,
            holders=found.tell(name.address),
            **about,
        )
    if name.inode and allocated(name.inode) is False:
        yield Anomaly(
            "inode_freed",
            name.address,
            "name",
            f"leads to an inode ({name.inode:#x}) whose memory is free",
            **about,
        )


def _freed_parents(
    living: Iterable[Name], found: _Found, allocated: Callable[[int], bool | None]
) -> Iterable[Anomaly]:
    children: dict[int, list[Name]] = {}
    for name in living:
        if name.parent not in found.names and name.linked and not name.locked:
            children.setdefault(name.parent, []).append(name)
    for parent, names in children.items():
        if allocated(parent) is False:
            yield Anomaly(
                "parent_freed",
                parent,
                "directory",
                f"has died, its memory is free, and {_many(len(names), 'name', 'names')} in it"
                f" {'is' if len(names) == 1 else 'are'} alive",
                name=names[0].address,
                superblock=names[0].superblock,
                has=0,
                counted=len(names),
                holders=[_many(len(names), "child", "children")],
            )


def _dead(name: Name, found: _Found) -> Iterable[Anomaly]:
    about: dict[str, Any] = {"name": name.address, "superblock": name.superblock}
    children = found.children[name.address]
    if children:
        yield Anomaly(
            "dead_with_children",
            name.address,
            "directory",
            f"is dead, and {_many(children, 'name', 'names')} in it"
            f" {'is' if children == 1 else 'are'} alive: each of them kills it again when it goes",
            has=0,
            counted=children,
            holders=found.tell(name.address),
            **about,
        )
    elif found.counted(name.address):
        yield Anomaly(
            "dead_in_use",
            name.address,
            "name",
            "is dead, and is still used",
            has=0,
            counted=found.counted(name.address),
            holders=found.tell(name.address),
            **about,
        )
    if name.listed:
        yield Anomaly(
            "dead_on_list",
            name.address,
            "name",
            "is dead, and on the list of unused names: reclaim will kill it again",
            **about,
        )


def _inode(
    inode: Inode,
    aliases: int,
    found: _Found,
    allocated: Callable[[int], bool | None],
) -> Iterable[Anomaly]:
    what = "inode of a directory" if inode.directory else "inode"
    about: dict[str, Any] = {
        "name": found.by_inode.get(inode.address, 0),
        "superblock": inode.superblock,
        "number": inode.number,
    }
    if allocated(inode.address) is False:
        yield Anomaly(
            "inode_freed_on_list",
            inode.address,
            what,
            "is on its file system's list of inodes, and its memory is free: whoever goes along"
            " that list uses freed memory",
            **about,
        )
        return
    if inode.own != inode.superblock:
        yield Anomaly(
            "inode_foreign",
            inode.address,
            what,
            f"is on one file system's list of inodes and says that it is of another"
            f" ({inode.own:#x}): its memory was used for something else",
            **about,
        )
        return
    if inode.cleared:
        yield Anomaly(
            "inode_cleared_on_list",
            inode.address,
            what,
            "is dead (I_CLEAR), and on its file system's list of inodes",
            **about,
        )
    if inode.references < aliases:
        yield Anomaly(
            "inode_too_few",
            inode.address,
            what,
            _short(
                inode.references, aliases, f"{_many(aliases, 'name leads', 'names lead')} to it"
            ),
            has=inode.references,
            counted=aliases,
            holders=[_many(aliases, "name", "names")],
            **about,
        )


def _file(
    file: OpenFile, found: _Found, allocated: Callable[[int], bool | None]
) -> Iterable[Anomaly]:
    name = found.names.get(file.name)
    about: dict[str, Any] = {"name": file.name, "superblock": name.superblock if name else 0}
    if file.sure and file.references < file.uses:
        yield Anomaly(
            "file_too_few",
            file.address,
            "open file",
            f"has {_many(file.references, 'reference', 'references')}, and {file.uses}"
            " descriptors and mappings lead to it: it was closed too often",
            has=file.references,
            counted=file.uses,
            **about,
        )
    if file.sure and name is None and allocated(file.name) is False:
        yield Anomaly(
            "file_of_freed_name",
            file.address,
            "open file",
            f"is open on a name ({file.name:#x}) whose memory is free",
            **about,
        )
