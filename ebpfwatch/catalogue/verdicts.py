"""The verdicts: what the probes can say of an object, one row each, with all that others ask of it.

The number crosses the border to the probes (``enum verdict`` of probes/contract.h, which is
generated from here).  A new verdict is a new row; docs/adding.md lists what else it needs.
"""

from __future__ import annotations

import dataclasses
import enum

from ebpfwatch.catalogue.rows import take_fields

__all__ = ["CRITICAL", "Kind", "Sentence", "Verdict", "numbered"]


class Kind(enum.Enum):
    """Where a verdict stands in the chain that ends in a crash."""

    CAUSE = "cause"  #: a rule of the VFS was broken: the mistake, or its first consequence
    EFFECT = "effect"  #: an object is damaged by a mistake that happened before
    CONTEXT = "context"  #: may be legal; worth knowing beside another verdict


@dataclasses.dataclass(frozen=True)
class Sentence:
    """The words for people.

    ``happened``: "ext4 inode 12 on 8:1 ..." goes on with it.  ``explained``: what it means, for the
    README and the manual.  ``subject`` and ``meaning``: for the journal's catalog.  ``step``: the
    wrong call, as "its own code made the ..." goes on; "" where nobody can be accused of one, and
    then ``nobody`` says why.
    """

    happened: str
    explained: str
    subject: str
    meaning: str
    step: str = ""
    nobody: str = ""


@dataclasses.dataclass(frozen=True)
class _Row:
    """What is said of one verdict."""

    number: int
    kind: Kind
    #: Kernel memory is damaged, or will be within a grace period: critical when it is confirmed.
    damage: bool
    #: Sets of roles: the verdict may be false if all roles of one set missed an event. Not asked
    #: where the object itself proves it; () if it always does.
    forged_by: tuple[tuple[str, ...], ...]
    #: The journal's MESSAGE_ID. Never change one: alerts and catalogs refer to it.
    message_id: str
    words: Sentence
    #: The object had been evicted before: only then can a life that was not seen to begin forge it.
    of_the_dead: bool = False
    #: The damage is still to come, a grace period later.
    before_damage: bool = False


class Verdict(enum.Enum):
    """The value is the name that is stored, exported and searched for."""

    _value_: str
    number: int
    kind: Kind
    damage: bool
    forged_by: tuple[tuple[str, ...], ...]
    message_id: str
    words: Sentence
    of_the_dead: bool
    before_damage: bool

    def __new__(cls, name: str, row: _Row | None = None) -> Verdict:
        """A member: its name is its value, its row's fields are its attributes.

        Every member has a row; without one, ``Verdict(name)`` is the look-up by name.
        """
        assert row is not None
        member = object.__new__(cls)
        member._value_ = name
        take_fields(member, row)
        return member

    DOUBLE_DESTROY = (
        "double_destroy",
        _Row(
            1,
            Kind.EFFECT,
            damage=True,
            forged_by=(("alloc", "evict"),),
            message_id="d5ba74e96bb54d2ca0b203b5ff512272",
            of_the_dead=True,
            before_damage=True,
            words=Sentence(
                "queued for RCU a second time",
                "queued for RCU a second time: the free that follows will be the second one",
                "An ext4 inode object was queued for RCU a second time",
                "The first callback will free it, the second will free it again a grace period"
                " later.\nThis is the warning before the damage: the machine may crash within"
                " milliseconds.",
                step="second queueing for RCU",
            ),
        ),
    )
    DOUBLE_EVICT = (
        "double_evict",
        _Row(
            2,
            Kind.EFFECT,
            damage=True,
            forged_by=(("alloc", "rcu_free", "any_free"),),
            message_id="71e34d5bba0742d183993a7780f750f7",
            of_the_dead=True,
            before_damage=True,
            words=Sentence(
                "evicted a second time",
                "evicted a second time: the free that follows will be the second one",
                "An ext4 inode was evicted a second time",
                "The object was dying already. A second free will follow.",
                step="second eviction",
            ),
        ),
    )
    DOUBLE_FREE = (
        "double_free",
        _Row(
            3,
            Kind.EFFECT,
            damage=True,
            forged_by=(("alloc", "evict"),),
            message_id="ae26928ca75042a2b7eae05444ac0e26",
            of_the_dead=True,
            words=Sentence(
                "freed a second time",
                "freed again, and not allocated in between",
                "An ext4 inode object was freed a second time",
                "The slab's free list is damaged now; the machine may crash at any moment, in a"
                " task that has\nnothing to do with it.",
                step="second free",
            ),
        ),
    )
    FREE_WHILE_ALIVE = (
        "free_while_alive",
        _Row(
            4,
            Kind.EFFECT,
            damage=True,
            forged_by=(),
            message_id="6d0c35ffb6f54722a90840cfc401dfd3",
            words=Sentence(
                "freed while alive: its life was never evicted",
                "freed although its present life was never evicted; the slab allocator cannot see"
                " this",
                "An ext4 inode object was freed while its inode was alive",
                "Its life was never evicted: this free belongs to the address's former inode. The"
                " slab allocator\nsees nothing wrong; the memory will be handed out again while the"
                " inode is in use.",
                step="free of the living inode",
            ),
        ),
    )
    FOREIGN_FREE = (
        "foreign_free",
        _Row(
            5,
            Kind.EFFECT,
            damage=True,
            forged_by=(),
            message_id="9ea671d1dd2e45629f2cd9efb0c568ea",
            words=Sentence(
                "freed by foreign code, not by ext4's RCU callback",
                "freed by code that is not ext4's RCU callback",
                "An ext4 inode object was freed by code that is not ext4's",
                "The call site in the report names the code that did it.",
                step="free past ext4's RCU callback",
            ),
        ),
    )
    IDENTITY_CHANGED = (
        "identity_changed",
        _Row(
            6,
            Kind.EFFECT,
            # A dead inode's number and generation do not change (fs/ext4/super.c: nothing writes
            # them between eviction and free), so its memory was overwritten or handed out again.
            damage=True,
            forged_by=(("alloc", "evict"),),
            message_id="82f874eea54c4a5b99dafb43f928b38a",
            of_the_dead=True,
            words=Sentence(
                "another inode at its free than at its eviction",
                "another inode at its free than at its eviction: the memory was overwritten, or"
                " handed out again",
                "An ext4 inode object was another inode at its free than at its eviction",
                "Somebody reused or overwrote the object between the two.",
                nobody="whoever overwrote or reused the object between eviction and free left no"
                " trace of it",
            ),
        ),
    )
    FREED_IN_RECLAIM = (
        "freed_in_reclaim",
        _Row(
            7,
            Kind.CONTEXT,
            damage=False,
            forged_by=(("unlink",), ("reclaim",)),
            message_id="27a9f8d0d6214187931700e4e64e0b1d",
            words=Sentence(
                "evicted by reclaim while its deletion was under way",
                "evicted by reclaim while its deletion was under way: a candidate",
                "An ext4 inode was evicted by memory reclaim while its deletion was under way",
                "A candidate, not a proof: look for a double free of the same inode near it.",
                nobody="reclaim may do this legally: nobody is accused",
            ),
        ),
    )
    CONCURRENT_UNLINK = (
        "concurrent_unlink",
        _Row(
            8,
            Kind.CONTEXT,
            damage=False,
            forged_by=(("unlink",),),
            message_id="816b754decd64fcbb6b04dc0342012f5",
            words=Sentence(
                "unlinked by two tasks at once",
                "two tasks in ext4_unlink for one inode: context",
                "Two tasks deleted the same ext4 inode at once",
                "The VFS does not allow this: some module calls the filesystem behind its back.",
                step="second unlink",
            ),
        ),
    )

    EVICTED_IN_USE = (
        "evicted_in_use",
        _Row(
            9,
            Kind.CAUSE,
            damage=True,
            forged_by=(),
            message_id="e3d703df2d4b4aaa8cc413add887a6bb",
            words=Sentence(
                "evicted while it is in use",
                "evicted although a name, an open file or a mapping still leads to it: one"
                " iput() or dput() too many",
                "An ext4 inode was evicted while it is still in use",
                "Somebody gave back a reference too many. Whoever holds the inode will work with"
                " memory that is\nfreed within a grace period.",
                step="put of the last reference",
            ),
        ),
    )
    UNLOCKED_UNLINK = (
        "unlocked_unlink",
        _Row(
            10,
            Kind.CAUSE,
            damage=True,
            forged_by=(),
            message_id="358ce36fa4d04499a7af497b49edffef",
            words=Sentence(
                "deleted against the rules of the VFS",
                "deleted without the lock of the directory or of the file, with no link left, or"
                " from a directory that it is not in",
                "An ext4 inode was deleted without the locks that a deletion needs",
                "Some code calls the filesystem behind the VFS's back: two deletions may run at"
                " once, and an\ninode be freed twice.",
                step="unlink",
            ),
        ),
    )
    WRITTEN_AFTER_FREE = (
        "written_after_free",
        _Row(
            11,
            Kind.CAUSE,
            damage=True,
            forged_by=(("alloc", "evict"),),
            message_id="1a30df51e84b425590ae354916a2b6d7",
            words=Sentence(
                "written to after its free",
                "its i_state was changed between its free and the next use of its memory",
                "The memory of an ext4 inode was written to after it was freed",
                "Somebody still works with an inode that is gone. This is seen when the memory is"
                " used again:\nthe write was some time before.",
                nobody="whoever wrote to it did so between the free and now, and left no trace",
            ),
        ),
    )
    ALLOCATED_WHILE_ALIVE = (
        "allocated_while_alive",
        _Row(
            12,
            Kind.CAUSE,
            damage=True,
            forged_by=(),
            message_id="32213ab446bc4041b3686f4fbee470b0",
            words=Sentence(
                "handed out by the slab allocator while another inode lives there",
                "its memory was handed out again while it is on its superblock's list of inodes",
                "The slab allocator handed out the memory of a living inode",
                "It was freed by a way that no hook sees, or the slab's free list is damaged. Two"
                " inodes will use\none memory.",
                nobody="the slab allocator handed out what it was told is free: whoever told it"
                " so, or damaged its list, is on no stack of this moment",
            ),
        ),
    )
    DENTRY_KILLED_TWICE = (
        "dentry_killed_twice",
        _Row(
            13,
            Kind.CAUSE,
            damage=True,
            forged_by=(),
            message_id="ff02f9abdbad416184c58573f148e3c6",
            words=Sentence(
                "killed a second time",
                "a dentry that was dead is killed again: RCU will have it twice, and its lists of"
                " callbacks cross",
                "A dentry was killed a second time",
                "Its reference count had been wrong for some time: one dput() too many. RCU runs"
                " callbacks twice\nthat stand behind it: inodes that have nothing to do with it are"
                " freed twice.",
                nobody="who kills it is whoever gave back the last reference, often reclaim: the"
                " mistake was a dput() too many before, and left no stack",
            ),
        ),
    )
    DENTRY_KILLED_IN_USE = (
        "dentry_killed_in_use",
        _Row(
            14,
            Kind.CAUSE,
            damage=True,
            forged_by=(),
            message_id="a02053415e704159b1b8ecc9a16799b0",
            words=Sentence(
                "killed while it is in use",
                "a directory's dentry dies while it has children, or a dentry while its inode still"
                " lists it: one dput() too many",
                "A dentry was killed while it is still in use",
                "Each child holds a reference of its parent, so somebody gave back one too many."
                " When the children\ndie, each of them kills this dentry again.",
                nobody="who kills it is whoever gave back the last reference, often reclaim: the"
                " mistake was a dput() too many before, and left no stack",
            ),
        ),
    )
    PUT_WITHOUT_REFERENCE = (
        "put_without_reference",
        _Row(
            15,
            Kind.CAUSE,
            damage=True,
            forged_by=(),
            message_id="2e161a75882c4219819704dcd5bf6994",
            words=Sentence(
                "given back without a reference",
                "iput() of an inode that has no reference left but its dentry's, or that is gone",
                "A reference of an inode was given back that nobody had",
                "Either who does so now had none, or somebody before gave it back in his place.",
                step="put",
            ),
        ),
    )
    CLOSED_AFTER_DEATH = (
        "closed_after_death",
        _Row(
            16,
            Kind.CAUSE,
            damage=True,
            forged_by=(),
            message_id="d2301e38bd7d4121ae56349a3416830c",
            words=Sentence(
                "gone while a file that it belongs to was open",
                "an open file is closed, and its dentry has died before: one dput() too many",
                "A file was closed after its dentry had died",
                "Somebody gave back a reference of the dentry that the open file held.",
                nobody="who closes the file did nothing wrong: the mistake was a dput() too many"
                " before, and left no stack",
            ),
        ),
    )

    RCU_LISTS_CROSSED = (
        "rcu_lists_crossed",
        _Row(
            17,
            Kind.CAUSE,
            damage=True,
            forged_by=(("destroy",),),
            message_id="01b7e15bbe3642bd9a8d2313616e86f8",
            words=Sentence(
                "freed by RCU on another CPU than it was queued on, like others at that moment",
                "RCU runs callbacks on a CPU that did not queue them: its lists are crossed,"
                " because something was queued twice",
                "RCU runs callbacks on a CPU that did not queue them",
                "Something, a dentry perhaps, was given to call_rcu() twice. Callbacks that stand"
                " behind it are run\ntwice or never: look at the findings about dentries.",
                nobody="the inode is a bystander: what was queued twice is another object, and"
                " whoever did it is on no stack of this moment",
            ),
        ),
    )


#: Verdicts that mean damaged memory: the one answer for journal, alerts, page and actions.
CRITICAL = frozenset(verdict for verdict in Verdict if verdict.damage)

_NUMBERED = {verdict.number: verdict for verdict in Verdict}


def numbered(number: int) -> Verdict:
    """The verdict of this number; raises ``ValueError`` for none."""
    try:
        return _NUMBERED[number]
    except KeyError:
        raise ValueError(f"{number} is no verdict") from None
