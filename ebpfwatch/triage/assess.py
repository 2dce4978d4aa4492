"""What one kernel report says about an ext4 inode freed twice: how much, of what object, and why.

Pure: a report goes in, an assessment comes out.  Every rule names its reason in words, and says
only what the report holds.
"""

from __future__ import annotations

import dataclasses
import enum
import re

from ebpfwatch.kernellog.known import Relation
from ebpfwatch.kernellog.report import Frame, Module, Report
from ebpfwatch.triage import functions
from ebpfwatch.triage.registers import poison

__all__ = ["ASIDE", "Assessment", "Weight", "assess", "in_reclaim", "in_softirq", "own_symbols"]


class Weight(enum.IntEnum):
    """How much a report says; the log's verdict is that of its heaviest report."""

    OTHER = 1  #: something else
    UNDECIDED = 2  #: memory corruption that may have come from anywhere
    SUSPECTED = 3  #: the inode's or dentry's life is damaged; no second free is shown
    PROVEN = 4  #: the second free of an inode object itself


@dataclasses.dataclass(frozen=True)
class Assessment:
    """The weight of a report and the reason in one sentence.

    ``thing`` is what was damaged ("an inode of fuse", "a dentry"), "" where that is not known.
    ``event`` is what happened, for the first line, where the general words for its weight say less
    than the log.
    """

    weight: Weight
    why: str
    thing: str = ""
    event: str = ""


EXT4_CACHE = "ext4_inode_cache"
AN_INODE = "an inode of ext4"
_NEAR = 4  # frames: further out a function only called what called what crashed
_STALLS = ("soft_lockup", "rcu_stall", "hung_task")
#: Reports that say nothing about memory being damaged.
ASIDE = (*_STALLS, "oom", "page_allocation_failure")


def assess(report: Report) -> Assessment:
    """The first rule that applies."""
    rules = (_aside, _twice_in_rcu, _slab_says, _inode_callback, _precursor, _slab_damage)
    for rule in (*rules, _rcu_lists, _poison, _life, _corruption):
        found = rule(report)
        if found is not None:
            return found
    return _other(report)


def own_symbols(report: Report) -> list[str]:
    """The functions of its own stack, innermost first, without those that printed the report."""
    symbols = report.symbols
    begin = 0
    for index, symbol in enumerate(symbols[:16]):
        if functions.NOISE.fullmatch(symbol):
            begin = index + 1
        elif index - begin >= 2:
            break
    return symbols[begin:] or symbols


def in_reclaim(report: Report) -> bool:
    """Whether its stack goes through the slab shrinkers."""
    return not functions.RECLAIM.isdisjoint(report.symbols)


def in_softirq(report: Report) -> bool:
    """Whether it happened in a softirq, so that the current task is a bystander."""
    return not functions.SOFTIRQ.isdisjoint(report.symbols)


def _inode_of(filesystem: str) -> str:
    return f"an inode of {filesystem}" if filesystem else "an inode"


def _thing_of(cache: str) -> str:
    """What lies in a slab cache, as far as it concerns us."""
    if cache == "dentry":
        return "a dentry"
    filesystem = functions.filesystem_of_cache(cache)
    return _inode_of(filesystem) if filesystem else ""


def _aside(report: Report) -> Assessment | None:
    """Stalls and shortage of memory: the stack says where, not that anything is damaged."""
    if report.kind not in ASIDE:
        return None
    where = f" in {' < '.join(own_symbols(report)[:2])}" if report.symbols else ""
    if report.kind in _STALLS:
        why = f"{report.known.says}{where}; that does not say that memory is damaged"
        return Assessment(Weight.OTHER, why)
    return Assessment(Weight.OTHER, f"{report.known.says}; that does not say that it is damaged")


def _twice_in_rcu(report: Report) -> Assessment | None:
    if report.kind != "rcu_head_twice":
        return None
    headlines = " ".join([report.headline, *report.more])
    found = re.search(r"Double-freed CB [^-]*->\s*([A-Za-z_]\w*)", headlines)
    callback = found[1] if found else ""
    symbols = set(report.symbols)
    stack = "the stack is that of the second one who freed it" if symbols else ""
    said = f"{callback or 'the object'} was handed to RCU while it waited there already"
    said = f"{said}; {stack}" if stack else said
    ext4 = {"ext4_destroy_inode", "ext4_evict_inode", *functions.EXT4_FREE}
    if callback in functions.EXT4_FREE or not callback and symbols & ext4:
        return Assessment(Weight.PROVEN, f"an ext4 inode was destroyed twice: {said}", AN_INODE)
    if callback.startswith("__d_free") or not callback and "dentry_free" in symbols:
        return Assessment(Weight.SUSPECTED, f"a dentry was freed twice: {said}", "a dentry")
    if callback in functions.INODE_FREE or not callback and "destroy_inode" in symbols:
        filesystem = _filesystem_on(report)
        weight = Weight.PROVEN if filesystem == "ext4" else Weight.SUSPECTED
        thing = _inode_of(filesystem)
        return Assessment(weight, f"{thing} was destroyed twice: {said}", thing)
    if not callback:
        return Assessment(Weight.UNDECIDED, f"{said}; what object it was is not said")
    return Assessment(Weight.OTHER, f"{said}: an object of its own, no inode and no dentry")


def _filesystem_on(report: Report) -> str:
    """The filesystem whose function is nearest on its stack; "" for none."""
    names = (functions.filesystem(symbol) for symbol in own_symbols(report))
    return next((name for name in names if name), "")


def _slab_says(report: Report) -> Assessment | None:
    """SLUB, KASAN and KFENCE name the cache: that decides."""
    if report.kind not in ("already_free", "slab_corruption", "kasan", "kfence", "wrong_cache"):
        return None
    if not report.cache:
        return None
    if report.kind == "wrong_cache":
        return _wrong_cache(report)
    headline = report.headline.lower()
    second = report.kind == "already_free" or any(
        words in headline for words in ("double-free", "invalid-free", "invalid free")
    )
    beyond = any(words in headline for words in ("out-of-bounds", "redzone", "padding"))
    thing = _thing_of(report.cache)
    if second and _free_of(report) == "ext4":
        if report.cache != EXT4_CACHE:
            why = f"ext4's callback freed an object that lies in the cache {report.cache} now"
            return Assessment(Weight.PROVEN, why, AN_INODE)
    if not thing:
        why = f"the object is of the cache {report.cache}: another object's error"
        return Assessment(Weight.OTHER, why, f"an object of {report.cache}")
    if beyond:
        why = f"memory beside {thing} was touched, beyond the end of an object: no free is shown"
        return Assessment(Weight.UNDECIDED, why, f"memory beside {thing}")
    if second:
        weight = Weight.PROVEN if report.cache == EXT4_CACHE else Weight.SUSPECTED
        return Assessment(
            weight, f"the kernel itself says so of {report.cache}: {report.headline}", thing
        )
    if report.kind == "slab_corruption" and "poison" not in headline:
        why = f"the slab of {report.cache} was found damaged: {report.headline}"
        return Assessment(Weight.SUSPECTED, why, thing)
    return Assessment(Weight.SUSPECTED, f"{thing} was touched after its free", thing)


def _wrong_cache(report: Report) -> Assessment:
    """``cache`` is the object's own, ``wrong_cache`` the one that it was freed into."""
    own, into = report.cache, report.wrong_cache
    if own == EXT4_CACHE and into:
        why = (
            f"memory that is {AN_INODE} was freed as an object of {into}: whoever freed it held a"
            " pointer to what lay there before"
        )
        return Assessment(Weight.PROVEN, why, AN_INODE)
    if into == EXT4_CACHE or _free_of(report) == "ext4":
        why = (
            f"the kernel itself says so of {EXT4_CACHE}: {report.headline}; where the inode was"
            f" lies an object of {own} now"
        )
        return Assessment(Weight.PROVEN, why, AN_INODE)
    thing = _thing_of(own) or _thing_of(into)
    if thing:
        return Assessment(
            Weight.SUSPECTED, f"{thing} was freed by a stale pointer: {report.headline}", thing
        )
    why = f"an object of {own} was freed as one of {into or 'another cache'}: no inode, no dentry"
    return Assessment(Weight.OTHER, why, f"an object of {own}")


def _free_of(report: Report) -> str:
    """Whose inode the stack was freeing: "ext4", another filesystem, "?" for one that the stack
    does not name, "" if it was no free of an inode.

    The innermost functions are the slab's, and what called them is a filesystem's callback.
    """
    symbols = own_symbols(report)
    for index, symbol in enumerate(symbols[:12]):
        ends = symbol in functions.EXT4_FREE or symbol in functions.INODE_FREE
        named = functions.filesystem(symbol)
        if (ends or named) and any(name in functions.SLAB_FREE for name in symbols[:index]):
            return "ext4" if symbol in functions.EXT4_FREE else named or "?"
        if symbol not in functions.SLAB_FREE:
            break
    caller = report.caller.symbol.split(".")[0] if report.caller else ""
    if report.at and report.at.symbol.split(".")[0] in functions.SLAB_FREE:
        if caller in functions.EXT4_FREE:
            return "ext4"
        if caller in functions.INODE_FREE:
            return "?"
        return functions.filesystem(caller)
    return ""


def _inode_callback(report: Report) -> Assessment | None:
    filesystem = _free_of(report)
    if not filesystem:
        return None
    if filesystem != "ext4":
        thing = _inode_of("" if filesystem == "?" else filesystem)
        why = (
            f"the slab could not take back the memory of {thing} that an RCU callback freed: it was"
            " not there to be freed any more. No ext4 function is on the stack"
        )
        return Assessment(Weight.SUSPECTED, why, thing)
    if report.kind == "head_lost" and not report.fatal:
        why = (
            "registers and stack are those of ext4's RCU callback in the slab's free; the lines"
            " that say whether it was a fault or only a lockup are not in the log"
        )
        return Assessment(Weight.SUSPECTED, why, AN_INODE)
    return Assessment(
        Weight.PROVEN,
        "the slab could not take back the memory of an inode that ext4's own RCU callback freed:"
        " it was not there to be freed any more",
        AN_INODE,
    )


def _precursor(report: Report) -> Assessment | None:
    if report.known.relation is not Relation.PRECURSOR:
        return None
    if report.kind in ("already_free", "wrong_cache"):
        return Assessment(Weight.UNDECIDED, f"{report.known.says}; which one is not said")
    if report.kind == "inode_state":
        filesystem = _filesystem_on(report)
        whose = f"; it was {_inode_of(filesystem)}" if filesystem else ""
        said = f"{report.known.says}{whose}"
        return Assessment(Weight.SUSPECTED, said, _inode_of(filesystem))
    filesystem = _filesystem_on(report)
    thing = f"a dentry of {filesystem}" if filesystem else "a dentry"
    return Assessment(Weight.SUSPECTED, report.known.says, thing)


def _slab_damage(report: Report) -> Assessment | None:
    """A crash inside the allocator: whoever comes next is the one that falls."""
    symbols = own_symbols(report)
    if report.kind not in ("oops", "kernel_bug", "slab_corruption", "warning", "head_lost"):
        return None
    if not symbols:
        if report.kind == "slab_corruption":
            return Assessment(Weight.UNDECIDED, f"{report.known.says}; no stack came with it")
        return None
    if symbols[0] in functions.SLAB_ALLOC:
        return Assessment(
            Weight.UNDECIDED,
            "the slab's free list was broken before; who allocates next falls into it, and is a"
            " victim",
        )
    if report.kind == "slab_corruption" or symbols[0] in functions.SLAB_FREE:
        return _freed_by(report, symbols)
    return None


def _freed_by(report: Report, symbols: list[str]) -> Assessment:
    callers = [s for s in symbols if s not in functions.SLAB_FREE | functions.KFREE]
    if not callers and report.caller and report.caller != report.at:
        callers = [report.caller.symbol.split(".")[0]]
    if not callers or callers[0] in functions.SLAB_FREE:
        return Assessment(
            Weight.UNDECIDED,
            "the slab could not take back an object; the stack that would name who freed it is not"
            " in the log",
        )
    around = [*report.frames, *([report.caller] if report.caller else [])]
    module = next((f.module for f in around if f.symbol.split(".")[0] == callers[0]), "")
    if report.kind == "head_lost" and not report.fatal and not module:
        return Assessment(
            Weight.UNDECIDED,
            f"registers and stack are those of the slab's free below {callers[0]}; the lines that"
            " say whether it was a fault or only a lockup are not in the log",
        )
    if callers[0] in functions.RCU or callers[0] in functions.SOFTIRQ:
        return Assessment(
            Weight.UNDECIDED,
            "an RCU callback freed an object that the slab could not take back; the callback's name"
            " is not on the stack (it jumped to the slab's free), so the log does not say what kind"
            " of object it was: "
            + (
                "it is no inode of ext4, which kfree does not free, but the slab may have been"
                " damaged before"
                if functions.KFREE.intersection(symbols)
                else "an inode of ext4 is freed in this way, and so are many others"
            ),
            event="RCU freed an object that the slab could not take back; what kind of object, the"
            " log does not say",
        )
    if callers[0] in ("__d_free", "__d_free_external", "dentry_free"):
        why = "the slab could not take back the memory of a dentry: it had been freed before"
        return Assessment(Weight.SUSPECTED, why, "a dentry")
    if callers[0] in functions.DISPATCH:
        named = report.work or "a function that is not on the stack"
        return Assessment(
            Weight.UNDECIDED,
            f"it was {named} that freed the object, by a jump to the slab; the log does not say"
            " whether that was an inode",
        )
    named = f"{callers[0]} [{module}]" if module else callers[0]
    if not module:
        # A second free of an inode whose page another cache has by now puts an object of that
        # cache on its free list while it is in use (mm/slub.c: __slab_free(), 4.19): its owner's
        # own and only free is then the one that is caught.
        return Assessment(
            Weight.UNDECIDED,
            f"the slab could not take back an object that {named} freed: either it had been freed"
            " already, or the pointer to it or the slab was damaged before, and then"
            f" {named} is a victim; the log does not say which",
            event=f"the slab could not take back an object that {named} freed; the log does not say"
            " who damaged it",
        )
    if report.modules.get(module, Module("")).foreign and not functions.KFREE.intersection(symbols):
        return Assessment(
            Weight.UNDECIDED,
            f"it was {named}, out of tree, that freed the object; the log does not say whether it"
            " was one of its own or an inode",
        )
    return Assessment(
        Weight.OTHER, f"it was {named} that freed the object: not an inode but an object of its own"
    )


def _rcu_lists(report: Report) -> Assessment | None:
    """RCU's own list of callbacks is broken: somebody queued one rcu_head twice, or freed it."""
    symbols = own_symbols(report)[:2]
    at_work = functions.RCU.intersection(symbols) or any(
        s.startswith("rcu_segcblist") for s in symbols
    )
    wrong = report.kind in ("oops", "kernel_bug") or report.where.startswith("kernel/rcu/")
    if not at_work or not wrong or report.kind in ASIDE:
        return None
    return Assessment(
        Weight.UNDECIDED,
        f"RCU's list of callbacks was found broken in {symbols[0]}: an object was handed to RCU"
        " twice, or its memory was reused while it waited; dentries and inodes wait there, and"
        " others",
        "RCU's list of callbacks",
    )


_FREED = 0x6B6B6B6B6B6B6B6B


def _poison(report: Report) -> Assessment | None:
    """An address that freed memory or a deleted list entry holds: a use after free by itself."""
    if report.kind not in ("oops", "head_lost"):
        return None
    meaning, held = poison(report.fault_address), f"the address {report.fault_address or 0:#x} is"
    for name, content in report.registers.items():
        # Not list_del()'s: the compiler puts that into a register before it is needed.
        if report.fault_address is None and content == _FREED:
            meaning, held = poison(content), f"{name} holds"
    if not meaning:
        return None
    symbols = own_symbols(report)
    at = symbols[0] if symbols else "a function that is not in the log"
    said = f"{at} used memory after its free: {held} {meaning}"
    first = _first_frame(report)
    if first is not None and first.module and not functions.filesystem(first.symbol):
        return Assessment(Weight.UNDECIDED, f"{said}; {first} is the module's own code")
    near = _touched(report, functions.LIFE | functions.USE, _NEAR)
    if near:
        return Assessment(Weight.SUSPECTED, f"{said}, on the way of an inode or dentry ({near})")
    far = _touched(report, functions.LIFE | functions.USE)
    return Assessment(Weight.UNDECIDED, f"{said}, below {far}" if far else said)


def _first_frame(report: Report) -> Frame | None:
    symbols = own_symbols(report)
    frames = ([report.at] if report.at else []) + report.frames
    return next((f for f in frames if symbols and f.symbol.split(".")[0] == symbols[0]), None)


def _touched(report: Report, wanted: set[str], most: int = 64) -> str:
    """The first function of a set on its own stack, before it comes to a disk or a network."""
    symbols = own_symbols(report)
    if report.caller and report.caller.symbol.split(".")[0] not in symbols[:2]:
        symbols = [*symbols[:1], report.caller.symbol.split(".")[0], *symbols[1:]]
    for symbol in symbols[:most]:
        if symbol in functions.BLOCK:
            return ""
        if symbol in wanted:
            return symbol
    return ""


_CRASHES = (
    "oops",
    "kernel_bug",
    "list_corruption",
    "kasan",
    "kfence",
    "refcount",
    "head_lost",
)


def _life(report: Report) -> Assessment | None:
    """A crash in the code that ends inodes and dentries, or works on them."""
    if report.kind == "warning":
        return _warning(report)
    if report.kind not in _CRASHES:
        return None
    near = _touched(report, functions.LIFE, _NEAR)
    if near:
        return Assessment(
            Weight.SUSPECTED,
            f"it happened in {near}, where inodes and dentries end their life: one was not what its"
            " lists said",
            _thing_named(report),
        )
    far = _touched(report, functions.LIFE | functions.USE)
    first = _first_frame(report)
    if not far or first is not None and first.module and _other_module(report, first.module):
        return None
    return Assessment(
        Weight.UNDECIDED,
        f"it happened below {far}, which works on inodes or dentries: one of them may have been"
        " freed before; other faults end there, too",
    )


def _other_module(report: Report, module: str) -> bool:
    """Whether it is no filesystem's: its own objects are no inodes."""
    named = {functions.filesystem(f.symbol) for f in report.frames if f.module == module}
    return module not in ("ext4", "jbd2", "overlay") and not any(named)


def _thing_named(report: Report) -> str:
    filesystem = _filesystem_on(report)
    return _inode_of(filesystem) if filesystem else "an inode or dentry"


_FILES = re.compile(
    r"\S*(?:fs/(?:inode|dcache|fs-writeback|libfs|namei)\.c|fs/ext4/\w+\.c|fs/notify/\w+\.c)"
)


def _warning(report: Report) -> Assessment | None:
    far = _touched(report, functions.LIFE, _NEAR)
    if not _FILES.match(report.where) and not far:
        return None
    where = far or (own_symbols(report) or [report.where])[0]
    return Assessment(
        Weight.UNDECIDED,
        f"{report.known.says}: in {where}, in the code that works on inodes and dentries",
    )


def _corruption(report: Report) -> Assessment | None:
    if report.kind == "kasan" and re.search(r"null-ptr|wild-memory|user-memory", report.headline):
        return None
    if report.known.relation is not Relation.DAMAGE:
        return None
    if report.kind == "refcount":
        return Assessment(Weight.OTHER, f"{report.known.says}; no inode or dentry is on the stack")
    thing = "a page" if report.kind == "bad_page" else ""
    return Assessment(
        Weight.UNDECIDED,
        f"{report.known.says}; a second free does that to innocent code later, and so do others",
        thing,
    )


def _other(report: Report) -> Assessment:
    """Nothing of ours; what is said about the stack is what was looked at."""
    said = report.known.says
    if not report.symbols:
        return Assessment(Weight.OTHER, f"{said}; no stack came with it")
    first = _first_frame(report)
    if _touched(report, functions.LIFE | functions.USE):
        module = f" [{first.module}]" if first is not None and first.module else ""
        return Assessment(Weight.OTHER, f"{said}, in {own_symbols(report)[0]}{module}")
    return Assessment(
        Weight.OTHER,
        f"{said}; no function that is known here to end inodes or dentries, or to work on them, is"
        " on the stack before that of a disk or network",
    )
