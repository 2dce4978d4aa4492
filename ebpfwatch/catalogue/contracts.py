"""The rules of the VFS that are checked (contracts), one row each; docs/contracts.md has the same
rows, with the source of each rule.
"""

from __future__ import annotations

import dataclasses

from ebpfwatch.catalogue.layout import Broken
from ebpfwatch.catalogue.roles import Hook
from ebpfwatch.catalogue.verdicts import Verdict

__all__ = ["RULES", "Rule"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule; ``words`` say what holds while it is kept.

    It is checked where all of ``roles`` have a rung, and ``broken`` is what a finding says of it
    (0: the verdict alone).  ``needs`` are offsets of which the kernel must have one, and ``lacks``
    why it may have none.  ``at``: only where the first role's rung hooks this function.
    ``instead``: stands in where a better rule cannot be checked.  ``new``: only from Linux 5.8 on,
    whose verifier follows enough instructions.
    """

    words: str
    verdict: Verdict
    broken: Broken
    roles: tuple[Hook, ...]
    needs: tuple[str, ...] = ()
    lacks: str = ""
    at: str = ""
    instead: bool = False
    new: bool = False


_EVICT, _UNLINK, _ALLOC, _DENTRY = (Hook.EVICT,), (Hook.UNLINK,), (Hook.ALLOC,), (Hook.DENTRY,)
_IN_USE, _UNLOCKED = Verdict.EVICTED_IN_USE, Verdict.UNLOCKED_UNLINK

RULES: tuple[Rule, ...] = (
    Rule("no dentry names an inode that is evicted", _IN_USE, Broken.ALIAS, _EVICT),
    Rule("nobody has a reference of it", _IN_USE, Broken.COUNT, _EVICT),
    Rule("it is not open for writing", _IN_USE, Broken.WRITERS, _EVICT),
    Rule(
        "it is not open for reading",
        _IN_USE,
        Broken.READERS,
        _EVICT,
        needs=("OFF_I_READCOUNT",),
        lacks="this kernel does not count who reads (CONFIG_IMA, later CONFIG_FILE_LOCKING)",
    ),
    Rule("it is not mapped", _IN_USE, Broken.MAPPED, _EVICT),
    Rule(
        "who unlinks holds the locks of the directory and of the file",
        _UNLOCKED,
        Broken.DIRECTORY_LOCK | Broken.VICTIM_LOCK,
        _UNLINK,
        needs=("OFF_I_RWSEM_OWNER",),
        lacks="this kernel's lock does not tell its owner (PREEMPT_RT; before Linux 5.3 without"
        " CONFIG_RWSEM_SPIN_ON_OWNER)",
    ),
    Rule("what is unlinked has a link", _UNLOCKED, Broken.NO_LINK, _UNLINK),
    Rule("its name is in the directory", _UNLOCKED, Broken.PARENT, _UNLINK),
    Rule(
        "memory that becomes an inode is on no superblock's list",
        Verdict.ALLOCATED_WHILE_ALIVE,
        Broken.LISTED,
        _ALLOC,
    ),
    Rule("freed memory stays as it was", Verdict.WRITTEN_AFTER_FREE, Broken.STATE, _ALLOC),
    Rule(
        "an inode that is freed was evicted within the last minute",
        Verdict.DOUBLE_FREE,
        Broken(0),
        (Hook.RCU_FREE,),
        new=True,
    ),
    Rule(
        "a dentry that is killed is not dead",
        Verdict.DENTRY_KILLED_TWICE,
        Broken.DEAD,
        _DENTRY,
        at="__dentry_kill",
    ),
    Rule(
        "a dentry that is killed has no children",
        Verdict.DENTRY_KILLED_IN_USE,
        Broken.CHILDREN,
        _DENTRY,
        needs=("OFF_D_SUBDIRS", "OFF_D_CHILDREN"),
        lacks="where this kernel lists them is not clear",
    ),
    Rule(
        "a dentry that is freed is not queued for RCU",
        Verdict.DENTRY_KILLED_TWICE,
        Broken.QUEUED,
        _DENTRY,
        at="dentry_free",
        instead=True,
    ),
    Rule(
        "a dentry that is freed is on no inode's list",
        Verdict.DENTRY_KILLED_IN_USE,
        Broken.ALIAS,
        _DENTRY,
        at="dentry_free",
        instead=True,
    ),
    Rule(
        "who gives an inode back has a reference",
        Verdict.PUT_WITHOUT_REFERENCE,
        Broken.COUNT | Broken.DEAD,
        (Hook.PUT,),
    ),
    Rule(
        "the last reference that is given back is not a dentry's",
        Verdict.PUT_WITHOUT_REFERENCE,
        Broken.ALIAS | Broken.COUNT,
        (Hook.PUT,),
    ),
    Rule(
        "an open file's dentry is alive",
        Verdict.CLOSED_AFTER_DEATH,
        Broken.COUNT | Broken.DEAD,
        (Hook.CLOSE,),
    ),
    Rule(
        "RCU runs a callback on the CPU that queued it",
        Verdict.RCU_LISTS_CROSSED,
        Broken(0),
        (Hook.RCU_FREE, Hook.DESTROY, Hook.HOTPLUG),
        new=True,
    ),
)
