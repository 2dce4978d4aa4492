"""The ladder of hooks: for each role of an object's life, the rungs from best to last.

Data only.  A rung is taken if every one of its attachments can really be attached: the loader
tries each with an empty program before it compiles.  Symbol candidates match with compiler
suffixes (``.isra.0``; not those of a piece, ``loader/running.py``).  The order is by what it costs
and what it tells; `make test-vm SCENARIOS=price` counts it (docs/architecture.md).
"""

from __future__ import annotations

import dataclasses

__all__ = [
    "LADDER",
    "NONE",
    "REQUIRED",
    "SHARED_FREE",
    "UNITS",
    "Attachment",
    "Rung",
    "Unit",
    "Wish",
    "wishes",
]

NONE = "none"  #: a wish for no hook at all


@dataclasses.dataclass(frozen=True)
class Attachment:
    """One BPF program on one place: ``function`` is its name in probes/.

    An ``optional`` one may be missing (arm64 has no unlink system call).  ``unless`` is an offset
    of probes/: where the kernel has that member, the program is loaded and not attached.
    """

    target: str
    function: str
    at_return: bool = False
    optional: bool = False
    unless: str = ""


@dataclasses.dataclass(frozen=True)
class Rung:
    """A way to fill a role.

    ``kind`` is "raw_tracepoint", "fentry", "kprobe" or "tracepoint"; ``defines`` select the code in
    probes/.  ``cache_argument`` names the raw tracepoint that must carry a ``struct kmem_cache *``,
    and the define that gets its index; ``cache_name`` the define for a kernel where it carries the
    cache's name instead (a pointer, as good as the cache's own).
    """

    kind: str
    attachments: tuple[Attachment, ...]
    defines: tuple[str, ...]
    cache_argument: tuple[str, str] = ("", "")
    cache_name: str = ""
    note: str = ""

    @property
    def name(self) -> str:
        """For people: kind and first target."""
        return f"{self.kind} {self.attachments[0].target}"


@dataclasses.dataclass(frozen=True)
class Wish:
    """One word of ``hooks.rungs``: the kind a role shall take ("none": no hook), and where."""

    kind: str
    target: str = ""

    def grants(self, rung: Rung) -> bool:
        """Whether this rung is what was wished."""
        targets = [attachment.target for attachment in rung.attachments]
        return self.kind == rung.kind and self.target in ("", *targets)

    def __str__(self) -> str:
        return f"{self.kind}:{self.target}" if self.target else self.kind


def wishes(text: str) -> dict[str, Wish]:
    """``ROLE=KIND[:TARGET]``, any number of them, as in "evict=kprobe destroy=none".

    Raises ``ValueError`` saying which word is wrong.
    """
    found: dict[str, Wish] = {}
    for word in text.replace(",", " ").split():
        role, _, wanted = word.partition("=")
        kind, _, target = wanted.partition(":")
        wish = Wish(kind, target)
        if role not in LADDER:
            raise ValueError(f"names no role in {word!r}: {', '.join(LADDER)}")
        if kind != NONE and not any(wish.grants(rung) for rung in LADDER[role]):
            rungs = ", ".join(f"{r.kind}:{r.attachments[0].target}" for r in LADDER[role])
            raise ValueError(f"names no rung in {word!r}: {rungs}, {NONE}")
        found[role] = wish
    return found


def _fentry(target: str, function: str, *defines: str) -> Rung:
    return Rung("fentry", (Attachment(target, function),), defines)


def _kprobe(target: str, function: str, *defines: str, note: str = "") -> Rung:
    return Rung("kprobe", (Attachment(target, function),), defines, note=note)


#: A fentry program leaves preemption on, and is skipped where another task is inside it.
_ALLOC_FENTRY = ("HAVE_ALLOC", "ALLOC_FENTRY", "ALLOC_MAY_MISS")

LADDER: dict[str, tuple[Rung, ...]] = {
    "alloc": (
        _fentry("inode_init_always_gfp", "inode_init_always", *_ALLOC_FENTRY),
        _fentry("inode_init_always", "inode_init_always", *_ALLOC_FENTRY),
        _kprobe("inode_init_always_gfp", "inode_init_always", "HAVE_ALLOC", "ALLOC_KPROBE"),
        _kprobe("inode_init_always", "inode_init_always", "HAVE_ALLOC", "ALLOC_KPROBE"),
        Rung(
            "raw_tracepoint",
            (Attachment("kmem_cache_alloc", "kmem_cache_alloc"),),
            ("HAVE_ALLOC", "ALLOC_RAW_TRACEPOINT"),
            cache_argument=("kmem_cache_alloc", "ALLOC_CACHE_ARG"),
            note="runs on every slab allocation",
        ),
    ),
    "unlink": (
        Rung(
            "raw_tracepoint",
            (
                Attachment("ext4_unlink_enter", "ext4_unlink_enter"),
                # Where the lock tells whether an unlink is under way, its return need not be seen.
                Attachment("ext4_unlink_exit", "ext4_unlink_exit", unless="OFF_I_RWSEM_OWNER"),
            ),
            ("UNLINK_RAW_TRACEPOINT",),
        ),
    ),
    "evict": (
        Rung(
            "raw_tracepoint",
            (Attachment("ext4_evict_inode", "ext4_evict_inode"),),
            ("EVICT_RAW_TRACEPOINT",),
        ),
        _kprobe("ext4_evict_inode", "ext4_evict_inode", "EVICT_KPROBE"),
    ),
    "destroy": (
        _fentry("ext4_destroy_inode", "ext4_destroy_inode", "DESTROY_FENTRY"),
        _kprobe("ext4_destroy_inode", "ext4_destroy_inode", "DESTROY_KPROBE"),
        _kprobe(
            "destroy_inode",
            "ext4_destroy_inode",
            "DESTROY_KPROBE",
            note="runs for every filesystem, and not for who calls ext4's own function",
        ),
    ),
    "rcu_free": (
        _fentry("ext4_free_in_core_inode", "ext4_free_in_core_inode", "RCU_FREE_FENTRY"),
        _kprobe("ext4_free_in_core_inode", "ext4_free_in_core_inode", "RCU_FREE_KPROBE"),
        _kprobe(
            "ext4_i_callback", "ext4_free_in_core_inode", "RCU_FREE_KPROBE", "RCU_FREE_FROM_HEAD"
        ),
    ),
    "any_free": (
        Rung(
            "raw_tracepoint",
            (Attachment("kmem_cache_free", "kmem_cache_free"),),
            ("ANY_FREE_RAW_TRACEPOINT",),
            cache_argument=("kmem_cache_free", "FREE_CACHE_ARG"),
            cache_name="FREE_CACHE_BY_NAME",
            note="runs on every slab free",
        ),
        _kprobe("kmem_cache_free", "kmem_cache_free", "ANY_FREE_KPROBE"),
    ),
    "reclaim": (
        Rung(
            "raw_tracepoint",
            (
                Attachment("mm_shrink_slab_start", "mm_shrink_slab_start"),
                Attachment("mm_shrink_slab_end", "mm_shrink_slab_end"),
            ),
            ("RECLAIM_RAW_TRACEPOINT",),
        ),
        Rung(
            "kprobe",
            (
                Attachment("shrink_slab", "shrink_slab"),
                Attachment("shrink_slab", "shrink_slab_return", at_return=True),
            ),
            ("RECLAIM_KPROBE",),
        ),
    ),
    "dentry": (
        _fentry("__dentry_kill", "dentry_kill", "DENTRY_FENTRY"),
        _kprobe("__dentry_kill", "dentry_kill", "DENTRY_KPROBE"),
        _fentry("dentry_free", "dentry_kill", "DENTRY_FENTRY", "DENTRY_AT_FREE"),
        _kprobe("dentry_free", "dentry_kill", "DENTRY_KPROBE", "DENTRY_AT_FREE"),
    ),
    "hotplug": (
        Rung(
            "raw_tracepoint",
            (Attachment("cpuhp_enter", "cpuhp_enter"),),
            ("HOTPLUG_RAW_TRACEPOINT",),
        ),
    ),
    "put": (
        _fentry("iput", "iput", "PUT_FENTRY"),
        _kprobe("iput", "iput", "PUT_KPROBE"),
    ),
    "close": (
        _fentry("__fput", "fput", "CLOSE_FENTRY"),
        _kprobe("__fput", "fput", "CLOSE_KPROBE"),
    ),
}

#: Without these nothing can be said at all.
REQUIRED = ("evict",)

#: The define for ``rcu_free`` without a rung of its own: the hook of any_free sees the free, too.
SHARED_FREE = "FREE_FROM_SLAB"


@dataclasses.dataclass(frozen=True)
class Unit:
    """One compilation unit: its ladder, the roles it cannot do without, and its maps.

    ``unattached`` programs are loaded for BPF_PROG_TEST_RUN only; ``learns``: needs what
    probes/learn.c finds out.
    """

    ladder: dict[str, tuple[Rung, ...]]
    required: tuple[str, ...]
    maps: tuple[str, ...]
    unattached: tuple[str, ...] = ()
    learns: bool = False


def _syscalls() -> tuple[Attachment, ...]:
    return tuple(
        Attachment(f"syscalls:sys_{when}_{call}", f"sys_{when}_{call}", optional=call == "unlink")
        for call in ("unlinkat", "unlink")
        for when in ("enter", "exit")
    )


UNITS: dict[str, Unit] = {
    "ebpfwatch.c": Unit(
        LADDER,
        REQUIRED,
        (
            "table",
            "notes",
            "tasks",
            "settings",
            "counters",
            "grace",
            "records",
            "verdict_scratch",
            "selftest_page",
            "selftest_address",
        ),
        unattached=("find_selftest_page",),
        learns=True,
    ),
    "unlinks.c": Unit(
        {
            "unlink": (
                Rung("raw_tracepoint", (Attachment("ext4_unlink_enter", "ext4_unlink_enter"),), ()),
            ),
            "unlink_path": (Rung("tracepoint", _syscalls(), ()),),
        },
        ("unlink", "unlink_path"),
        ("wanted", "counters", "records"),
    ),
}
