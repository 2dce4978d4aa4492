"""What one kernel report says about an ext4 inode freed twice: how much, and why.

Pure: a report goes in, an assessment comes out.  Every rule names its reason in words.
"""

from __future__ import annotations

import dataclasses
import enum

from ebpfwatch.kernellog.known import Relation
from ebpfwatch.kernellog.report import Module, Report

__all__ = ["Assessment", "Weight", "assess", "in_reclaim", "in_softirq"]


class Weight(enum.IntEnum):
    """How much a report says; the log's verdict is that of its heaviest report."""

    OTHER = 1  #: something else
    UNDECIDED = 2  #: memory corruption that may have come from anywhere
    SUSPECTED = 3  #: the inode's or dentry's life is damaged; no second free is shown
    PROVEN = 4  #: the second free of an inode object itself


@dataclasses.dataclass(frozen=True)
class Assessment:
    """The weight of a report and the reason in one sentence."""

    weight: Weight
    why: str


#: RCU callbacks (and what they call) that free the memory of an inode.
_INODE_FREE = {"ext4_i_callback", "ext4_free_in_core_inode", "i_callback", "ext4_destroy_inode"}
#: Functions of the slab that take an object back.
_SLAB_FREE = {
    "kmem_cache_free",
    "__kmem_cache_free",
    "kmem_cache_free_bulk",
    "cache_from_obj",
    "slab_free",
    "__slab_free",
    "do_slab_free",
    "set_freepointer",
    "free_to_partial_list",
    "___cache_free",
}
_SLAB_ALLOC = {
    "kmem_cache_alloc",
    "kmem_cache_alloc_lru",
    "kmem_cache_alloc_noprof",
    "kmem_cache_alloc_lru_noprof",
    "kmem_cache_alloc_trace",
    "___slab_alloc",
    "__slab_alloc",
    "slab_alloc_node",
    "__kmalloc",
    "__kmalloc_noprof",
    "get_freepointer",
    "deactivate_slab",
}
_INODE_LIFE = {
    "evict",
    "iput",
    "iput_final",
    "destroy_inode",
    "clear_inode",
    "ext4_evict_inode",
    "ext4_clear_inode",
    "inode_lru_isolate",
    "prune_icache_sb",
    "dispose_list",
    "__dentry_kill",
    "dentry_kill",
    "dentry_free",
    "dentry_unlink_inode",
    "shrink_dentry_list",
    "shrink_lock_dentry",
    "dentry_lru_isolate",
    "prune_dcache_sb",
    "d_delete",
    "dput",
}
_RCU = {
    "rcu_do_batch",
    "rcu_process_callbacks",
    "rcu_core",
    "rcu_core_si",
    "__rcu_process_callbacks",
}
_SOFTIRQ = {"__do_softirq", "do_softirq", "handle_softirqs", "run_ksoftirqd"}
#: They call what somebody gave them: a callback that jumps to the slab leaves only these.
_DISPATCH = {"process_one_work", "worker_thread", "kthread", "call_timer_fn", "expire_timers"}
_RECLAIM = {"shrink_slab", "do_shrink_slab", "super_cache_scan"}
_CACHES = {"ext4_inode_cache": "an ext4 inode", "dentry": "a dentry"}


def assess(report: Report) -> Assessment:
    """The first rule that applies."""
    for rule in (_slab_says, _inode_callback, _precursor, _slab_damage, _life, _corruption):
        found = rule(report)
        if found is not None:
            return found
    return Assessment(
        Weight.OTHER, f"{report.known.says}; nothing in it touches the life of an inode"
    )


def in_reclaim(report: Report) -> bool:
    """Whether its stack goes through the slab shrinkers."""
    return not _RECLAIM.isdisjoint(report.symbols)


def in_softirq(report: Report) -> bool:
    """Whether it happened in a softirq, so that the current task is a bystander."""
    return not _SOFTIRQ.isdisjoint(report.symbols)


def _slab_says(report: Report) -> Assessment | None:
    """SLUB, KASAN and KFENCE name the cache: that decides."""
    if report.kind not in ("already_free", "slab_corruption", "kasan", "kfence", "wrong_cache"):
        return None
    if not report.cache:
        return None
    second = report.kind == "already_free" or any(
        word in report.headline.lower() for word in ("double-free", "invalid-free", "invalid free")
    )
    if report.cache == "ext4_inode_cache" or report.kind == "wrong_cache" and _frees_inode(report):
        if second or report.kind == "wrong_cache":
            return Assessment(
                Weight.PROVEN, f"the kernel itself says so of {report.cache}: {report.headline}"
            )
        return Assessment(Weight.SUSPECTED, "an ext4 inode was touched after its free")
    if _frees_inode(report):
        return Assessment(
            Weight.PROVEN,
            f"ext4's callback freed an object that lies in the cache {report.cache} now",
        )
    if report.cache in _CACHES:
        return Assessment(Weight.SUSPECTED, f"{_CACHES[report.cache]} was freed or used wrongly")
    return Assessment(
        Weight.OTHER, f"the object is of the cache {report.cache}: another object's error"
    )


def _frees_inode(report: Report) -> bool:
    """The stack's innermost functions are the slab's, called by ext4's free of an inode."""
    symbols = report.symbols
    for index, symbol in enumerate(symbols[:12]):
        if symbol in _INODE_FREE:
            return any(name in _SLAB_FREE for name in symbols[:index])
    return bool(report.caller and report.caller.symbol in _INODE_FREE) and _at_slab_free(report)


def _at_slab_free(report: Report) -> bool:
    return bool(report.at and report.at.symbol.split(".")[0] in _SLAB_FREE)


def _inode_callback(report: Report) -> Assessment | None:
    if report.kind in ("soft_lockup", "rcu_stall", "hung_task") or not _frees_inode(report):
        return None
    return Assessment(
        Weight.PROVEN,
        "the slab could not take back the memory of an inode that ext4's own RCU callback freed:"
        " it was not there to be freed any more",
    )


def _precursor(report: Report) -> Assessment | None:
    if report.known.relation is not Relation.PRECURSOR:
        return None
    if report.kind in ("already_free", "wrong_cache"):
        return Assessment(Weight.UNDECIDED, f"{report.known.says}; which one is not said")
    return Assessment(Weight.SUSPECTED, report.known.says)


def _slab_damage(report: Report) -> Assessment | None:
    """A crash inside the allocator: whoever comes next is the one that falls."""
    symbols = report.symbols
    if report.kind not in ("oops", "kernel_bug", "slab_corruption", "warning"):
        return None
    if not symbols:
        if report.kind == "slab_corruption":
            return Assessment(Weight.UNDECIDED, f"{report.known.says}; no stack came with it")
        return None
    if symbols[0] in _SLAB_ALLOC:
        return Assessment(
            Weight.UNDECIDED,
            "the slab's free list was broken before; who allocates next falls into it, and is a"
            " victim",
        )
    if report.kind == "slab_corruption" or symbols[0] in _SLAB_FREE:
        return _freed_by(report, symbols)
    return None


def _freed_by(report: Report, symbols: list[str]) -> Assessment:
    callers = [s for s in symbols if s not in _SLAB_FREE and s not in ("kfree", "__free_slab")]
    if not callers or callers[0] in _RCU or callers[0] in _SOFTIRQ:
        return Assessment(
            Weight.SUSPECTED,
            "an RCU callback freed an object that the slab could not take; the callback's name is"
            " not on the stack (it jumped to kmem_cache_free), so it may be ext4's",
        )
    if callers[0] in _DISPATCH:
        named = report.work or "a function that is not on the stack"
        return Assessment(
            Weight.UNDECIDED,
            f"it was {named} that freed the object, by a jump to the slab; the log does not say"
            " whether that was an inode",
        )
    module = next((f.module for f in report.frames if f.symbol.split(".")[0] == callers[0]), "")
    named = f"{callers[0]} [{module}]" if module else callers[0]
    if module and report.modules.get(module, Module("")).foreign and "kfree" not in symbols:
        return Assessment(
            Weight.UNDECIDED,
            f"it was {named}, out of tree, that freed the object; the log does not say whether it"
            " was one of its own or an inode",
        )
    return Assessment(
        Weight.OTHER, f"it was {named} that freed the object: not an inode but an object of its own"
    )


def _life(report: Report) -> Assessment | None:
    """A crash in the code that ends inodes and dentries."""
    if report.kind not in ("oops", "kernel_bug", "list_corruption", "kasan", "kfence", "refcount"):
        return None
    near = [symbol for symbol in report.symbols[:4] if symbol in _INODE_LIFE]
    if not near:
        return None
    return Assessment(
        Weight.SUSPECTED,
        f"it happened in {near[0]}, where inodes and dentries end their life: one was not what its"
        " lists said",
    )


def _corruption(report: Report) -> Assessment | None:
    if report.known.relation is not Relation.DAMAGE or report.kind in ("kasan", "kfence"):
        return None
    if report.kind == "refcount":
        return Assessment(Weight.OTHER, f"{report.known.says}; not an inode's")
    return Assessment(
        Weight.UNDECIDED,
        f"{report.known.says}; a second free does that to innocent code later, and so do others",
    )
