"""The rules of the VFS that an object contradicts, in words. Pure.

What each rule is, and where the kernel's source says so: docs/contracts.md.
"""

from __future__ import annotations

from ebpfwatch.catalogue.layout import Broken, Flag
from ebpfwatch.events.wire import VerdictEvent

__all__ = ["broken_rules", "subject"]


def subject(event: VerdictEvent, major: int, minor: int) -> str:
    """What a finding is about: "ext4 inode 12 on 8:1", "directory dentry 'dir' (...) on 8:1"."""
    where = f"{event.filesystem} inode {event.ino}"
    if not event.flags & Flag.OBJECT_DENTRY:
        return f"{where} on {major}:{minor}"
    what = "directory dentry" if event.broken & Broken.CHILDREN else "dentry"
    name = f" {event.name!r}" if event.name else ""
    inode = where if event.ino else f"{event.filesystem}, no inode"
    return f"{what}{name} ({inode}) on {major}:{minor}"


def broken_rules(event: VerdictEvent) -> list[str]:
    """One line for each rule; the values that broke it are in them."""
    dentry = bool(event.flags & Flag.OBJECT_DENTRY)
    words = {
        Broken.ALIAS: (
            "it is still on its inode's list of names"
            if dentry
            else f"a dentry still names it: {event.name!r}"
            if event.flags & Flag.RELATED_PROVEN and event.name
            else f"its list of names is not empty: {event.related:#x}"
        ),
        Broken.COUNT: f"its reference count is {event.count}",
        Broken.WRITERS: (
            f"it is open for writing {event.writers} times"
            if event.writers > 0
            else "writing to it is denied, as for a program that runs"
        ),
        Broken.READERS: "it is open for reading",
        Broken.MAPPED: "it is mapped into memory",
        Broken.DIRECTORY_LOCK: _lock("its directory", event.found),
        Broken.VICTIM_LOCK: _lock("the file itself", event.found),
        Broken.NO_LINK: "it has no link left: it was deleted before",
        Broken.STATE: f"its i_state is {event.found:#x}, which no dead inode has",
        Broken.LISTED: "it is on its superblock's list of inodes",
        Broken.DEAD: "it was dead before",
        Broken.CHILDREN: (
            "a child of it is still there"
            + (", and says so itself" if event.flags & Flag.RELATED_PROVEN else "")
        ),
        Broken.QUEUED: f"RCU has it already: it will call {event.found:#x} for it",
        Broken.PARENT: "its name is in another directory than the one that it is deleted from",
    }
    return [text for rule, text in words.items() if event.broken & rule]


def _lock(whose: str, owner: int) -> str:
    """Whom the lock belongs to; bit 0 means readers, bits 1 and 2 whoever waits."""
    if not owner & ~7:
        return f"nobody holds the lock of {whose}"
    how = "readers hold" if owner & 1 else "another task holds"
    return f"{how} the lock of {whose}"
