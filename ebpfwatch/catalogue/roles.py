"""The roles: the moments of an object's life that a hook must see, one row each.

How a role can be filled on a kernel is ``ladder``'s.  The number crosses the border to the probes
(``enum hook`` of probes/contract.h, which is generated from here).
"""

from __future__ import annotations

import dataclasses
import enum

from ebpfwatch.catalogue.rows import take_fields

__all__ = ["ARMED", "BY_CANARY", "Hook", "Proof"]


class Proof(enum.Enum):
    """What can prove that an attached hook really fires."""

    CANARY = "canary"  #: a file of our own that is created and deleted
    RECLAIM = "reclaim"  #: the kernel's own count of scanned slabs (/proc/vmstat)
    COUNT = "count"  #: its own count of runs, while files are deleted
    NOTHING = "nothing"  #: nothing yet: such a role stays unproven


@dataclasses.dataclass(frozen=True)
class _Row:
    """What is said of one role."""

    number: int
    #: Why it matters, for `ebpfwatch check`.
    watches: str
    #: A role that nothing proves is unproven: the default is the careful answer.
    proof: Proof = Proof.NOTHING
    #: What is lost when the governor takes the hook off; "" = it may not.
    loss: str = ""
    #: The governor takes the lowest number first: what costs most.
    goes: int = 0
    #: Loaded, and attached only while there is a reason for it (``daemon.arming``).
    armed: bool = False
    #: Part of the watcher; False: only of `ebpfwatch unlinks`.
    watcher: bool = True


class Hook(enum.Enum):
    """The value is the name that the configuration, the metrics and the log use."""

    _value_: str
    number: int
    watches: str
    proof: Proof
    loss: str
    goes: int
    armed: bool
    watcher: bool

    def __new__(cls, name: str, row: _Row | None = None) -> Hook:
        """A member: its name is its value, its row's fields are its attributes.

        Every member has a row; without one, ``Hook(name)`` is the look-up by name.
        """
        assert row is not None
        member = object.__new__(cls)
        member._value_ = name
        take_fields(member, row)
        return member

    ALLOC = (
        "alloc",
        _Row(
            0,
            "an address handed out again is a new life; unseen, reuse looks like a double free",
            Proof.CANARY,
            loss="the object alone tells a new life",
            goes=3,
        ),
    )
    UNLINK = (
        "unlink",
        _Row(
            1,
            "who deleted the file, by which name",
            Proof.CANARY,
            loss="names, unlinks in flight and concurrent unlinks are no longer known",
            goes=4,
        ),
    )
    EVICT = (
        "evict",
        _Row(2, "the death of an inode: without it no verdict at all", Proof.CANARY),
    )
    DESTROY = (
        "destroy",
        _Row(3, "queued for RCU: warns a grace period before the damage", Proof.CANARY),
    )
    RCU_FREE = ("rcu_free", _Row(4, "the free by ext4's own callback", Proof.CANARY))
    ANY_FREE = (
        "any_free",
        _Row(
            5,
            "every free of the cache: finds frees by foreign code",
            Proof.CANARY,
            loss="frees by foreign code are not seen",
            goes=1,
        ),
    )
    RECLAIM = ("reclaim", _Row(6, "whether an inode died in reclaim", Proof.RECLAIM))
    UNLINK_PATH = (
        "unlink_path",
        _Row(7, "the path as the system call was given it", watcher=False),
    )
    DENTRY = (
        "dentry",
        _Row(
            8,
            "the death of a name: finds a directory that dies with children, or twice",
            Proof.COUNT,
            loss="dentries that are killed twice or in use are no longer seen",
            goes=2,
        ),
    )
    HOTPLUG = (
        "hotplug",
        _Row(9, "CPUs that come and go: RCU then runs callbacks elsewhere, legally"),
    )
    PUT = (
        "put",
        _Row(
            10,
            "a reference given back that nobody had",
            armed=True,
        ),
    )
    CLOSE = ("close", _Row(11, "a file closed after its dentry died", armed=True))

    def __lt__(self, other: Hook) -> bool:
        """In the order of an object's life."""
        return self.number < other.number

    @classmethod
    def numbered(cls, number: int) -> Hook:
        """The role of this number; raises ``ValueError`` for none."""
        for hook in cls:
            if hook.number == number:
                return hook
        raise ValueError(f"{number} is no hook")


#: Names of the roles that are attached only while there is a reason for it.
ARMED = frozenset(hook.value for hook in Hook if hook.armed)

#: Names of the roles that a canary proves.
BY_CANARY = frozenset(hook.value for hook in Hook if hook.proof is Proof.CANARY)
