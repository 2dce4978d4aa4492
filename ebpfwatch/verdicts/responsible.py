"""Who is most likely to blame, and why: never more certain than the evidence.

Pure.  What counts is code that was called by the wrong step itself.  A task that a softirq
interrupted has done nothing, and neither have the functions it was in; they are never looked at.
A module whose code made the wrong call is *shown*; one that is merely on the stack is *suspected*,
for it may have passed on what was legal; where there is neither, nobody is named.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from ebpfwatch.catalogue.functions import EXT4_MODULES, RELEASE
from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.verdicts.finding import Actor, Confidence, Frame, Responsible, Strength
from ebpfwatch.verdicts.stacks import own_frames

__all__ = ["Clues", "describe_taints", "responsible"]

#: Who stands there gave back a reference; that one was missing may be somebody else's doing.
_LAST_REFERENCE = {Verdict.EVICTED_IN_USE, Verdict.PUT_WITHOUT_REFERENCE}
_PUT_BEFORE = (
    "a reference is missing: it was given back twice here, or by somebody before, who left no stack"
)

#: Pseudo-modules of kallsyms: what is traced, not what is done.
_NO_MODULE = re.compile(r"bpf|__builtin__\w+")

_TAINTS = {
    "P": "proprietary",
    "O": "out-of-tree",
    "F": "force-loaded",
    "C": "staging",
    "E": "unsigned",
    "K": "livepatch",
}


@dataclasses.dataclass(frozen=True)
class Clues:
    """What the reasoning has besides the finding's own actors.

    ``destroy_watched``: the destroy hook was attached and proven alive, so a second queueing by
    ext4_destroy_inode would have been seen.  ``earlier``: (id, responsible) of the last finding
    about this object and inode, ``cause`` the same of a broken rule before.  ``out_of_tree``:
    modules loaded, by name.
    """

    destroy_watched: bool = False
    earlier: tuple[str, Responsible] | None = None
    cause: tuple[str, Responsible] | None = None
    out_of_tree: tuple[str, ...] = ()


def describe_taints(taints: str) -> str:
    """In words: "out-of-tree, unsigned"."""
    return ", ".join(_TAINTS.get(mark, f"taint {mark}") for mark in taints)


def responsible(
    verdict: Verdict,
    confidence: Confidence,
    first: Actor | None,
    second: Actor | None,
    before: Sequence[Actor | None],
    clues: Clues,
) -> Responsible:
    """The judgement; ``before`` are who evicted and who queued the object."""
    if not verdict.words.step:
        # Nobody who is on this stack did wrong; who was named for a broken rule before may have.
        return _by_cause(clues) or _unknown((verdict.words.nobody,), clues)
    found = (
        _by_stack(second, verdict)
        or (_by_stack(first, verdict, "first free") if verdict is Verdict.DOUBLE_FREE else None)
        or _by_earlier(clues)
        or _by_cause(clues)
        or next(filter(None, (_by_legal_step(actor, verdict) for actor in before)), None)
        or _unknown(_why_unknown(verdict, second, clues), clues)
    )
    if found.strength is Strength.SHOWN and confidence is Confidence.UNDECIDABLE:
        doubt = "the verdict itself is undecidable, so this is a suspicion only"
        return Responsible(found.who, Strength.SUSPECTED, (*found.because, doubt))
    return found


def _suspects(frames: Sequence[Frame]) -> list[tuple[int, Frame]]:
    return [
        (index, f)
        for index, f in enumerate(frames)
        if f.module and f.module not in EXT4_MODULES and not _NO_MODULE.fullmatch(f.module)
    ]


def _by_stack(actor: Actor | None, verdict: Verdict, step: str = "") -> Responsible | None:
    """Out-of-tree modules before others, then the nearest to the call; ``step`` is the verdict's
    own unless another is given.
    """
    step = step or verdict.words.step
    frames = own_frames(actor.stack) if actor else ()
    suspects = _suspects(frames)
    if not suspects:
        return None
    index, f = min(suspects, key=lambda found: ("O" not in found[1].taints, found[0]))
    who = f"module {f.module}" + (f" ({describe_taints(f.taints)})" if f.taints else "")
    direct = all(RELEASE.fullmatch(inner.symbol) for inner in frames[:index])
    if direct and verdict in _LAST_REFERENCE:
        return Responsible(
            who, Strength.SUSPECTED, (f"its own code made the {step}: {f}", _PUT_BEFORE)
        )
    if direct:
        return Responsible(who, Strength.SHOWN, (f"its own code made the {step}: {f}",))
    through = frames[index - 1].symbol or "an address without a name"
    return Responsible(
        who,
        Strength.SUSPECTED,
        (
            f"its code is on the stack of the {step}: {f}",
            f"the call went on through {through}: it may have passed on what was legal",
        ),
    )


def _by_legal_step(actor: Actor | None, verdict: Verdict) -> Responsible | None:
    """Whoever evicted or queued the object did nothing wrong by that alone."""
    found = _by_stack(actor, verdict, "step before it")
    if found is None:
        return None
    doubt = "that step was legal by itself, and nothing shows who did the wrong one"
    return Responsible(found.who, Strength.SUSPECTED, (found.because[0], doubt))


def _by_earlier(clues: Clues) -> Responsible | None:
    if clues.earlier is None or clues.earlier[1].strength is Strength.UNKNOWN:
        return None
    identifier, before = clues.earlier
    return Responsible(
        before.who,
        before.strength,
        (f"the finding {identifier} about this very object named it", *before.because),
    )


def _by_cause(clues: Clues) -> Responsible | None:
    if clues.cause is None:
        return None
    identifier, before = clues.cause
    return Responsible(
        before.who,
        Strength.SUSPECTED,
        (
            f"the finding {identifier}, a broken rule shortly before, named it",
            "nothing but the time shows that the one led to the other",
        ),
    )


def _why_unknown(verdict: Verdict, second: Actor | None, clues: Clues) -> tuple[str, ...]:
    why = []
    if verdict in _LAST_REFERENCE and second is not None and second.stack:
        return (
            f"{second.comm} (pid {second.pid}) gave back the last reference through the kernel's"
            " own code",
            _PUT_BEFORE,
        )
    if second is None or not second.stack:
        why.append("there is no stack of this step")
    elif second.context == "softirq":
        why.append(
            "it ran in a softirq or in RCU's thread without any module's code, and the task that"
            " was running there has nothing to do with it"
        )
        if verdict in (Verdict.DOUBLE_FREE, Verdict.FREE_WHILE_ALIVE):
            why.append(_who_queued(clues))
    elif second.context == "unknown":
        why.append(
            "the frames of its stack have no names, so the task that was running there may have"
            " done it, or may only have been interrupted"
        )
    else:
        why.append(
            f"{second.comm} (pid {second.pid}) did it through the kernel's own code alone; no"
            " system call may do that, so the kernel or something that left no frame is wrong"
        )
    return tuple(why)


def _who_queued(clues: Clues) -> str:
    if clues.destroy_watched:
        return (
            "ext4_destroy_inode was not seen to queue it a second time:"
            " something else called the callback or call_rcu()"
        )
    return "who queued it a second time is not known: the hook destroy is absent or not proven"


def _unknown(because: tuple[str, ...], clues: Clues) -> Responsible:
    if clues.out_of_tree:
        names = ", ".join(clues.out_of_tree)
        because = (*because, f"out-of-tree modules are loaded (no evidence against them): {names}")
    return Responsible("", Strength.UNKNOWN, because)
