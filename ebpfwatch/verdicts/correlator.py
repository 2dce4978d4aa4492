"""From what the kernel flagged to a finding: who did what, in which order, and who is responsible.

Pure and bounded: it keeps nothing between events.  The kernel side decided *what* happened,
exactly; ``confidence`` weighs what could have forged it, ``responsible`` who is behind it.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from ebpfwatch.catalogue.functions import RCU_CALLBACKS
from ebpfwatch.catalogue.layout import Broken, Flag, LifeFlag
from ebpfwatch.catalogue.roles import Hook
from ebpfwatch.catalogue.verdicts import Kind, Verdict
from ebpfwatch.events.wire import LifeSeen, VerdictEvent, Who, device
from ebpfwatch.verdicts.chain import victim
from ebpfwatch.verdicts.confidence import TICK_NS_MAX, doubts, evidence
from ebpfwatch.verdicts.finding import (
    Actor,
    Confidence,
    Finding,
    Frame,
    Identity,
    Moment,
    Preceding,
    Responsible,
    Severity,
    Strength,
)
from ebpfwatch.verdicts.knowledge import Knowledge
from ebpfwatch.verdicts.responsible import Clues, responsible
from ebpfwatch.verdicts.rules import broken_rules, subject
from ebpfwatch.verdicts.stacks import frame, in_softirq, resolve

__all__ = ["Knowledge", "judge", "later"]

_NAME_MAX = 63  #: bytes of a name that the probes keep

_SEVERITY = {
    Confidence.CONFIRMED: Severity.CRIT,
    Confidence.PROBABLE: Severity.ERR,
    Confidence.UNDECIDABLE: Severity.WARNING,
}


def judge(event: VerdictEvent, knowledge: Knowledge, sequence: int) -> Finding:
    """The finding; ``sequence`` makes the id unique."""
    verdict = event.verdict
    life = event.life
    preceding = knowledge.preceding(event)
    confidence, why_not_more = doubts(event, verdict, knowledge)
    realtime_us = (event.ns + knowledge.realtime_offset_ns) // 1000
    major, minor = device(event.dev)
    name, mount = knowledge.place(major, minor)
    second = _second(event, knowledge)
    evicted_by = _earlier(life.evicted, "task", knowledge) if life else None
    destroyed_by = _earlier(life.destroyed, "task", knowledge) if life else None
    first = _first(verdict, life, evicted_by, destroyed_by, knowledge)
    return Finding(
        id=_identifier(realtime_us, sequence),
        verdict=verdict,
        confidence=confidence,
        severity=_severity(verdict, confidence),
        reasons=(*evidence(event), *victim(verdict, event.ns, preceding), *why_not_more),
        identity=Identity(event.object, major, minor, event.ino, event.generation),
        ns=event.ns,
        realtime_us=realtime_us,
        summary=_summary(verdict, event, major, minor, first, second),
        responsible=responsible(
            verdict,
            confidence,
            first,
            second,
            (destroyed_by, evicted_by),
            _clues(event, knowledge, preceding),
        ),
        first=first,
        second=second,
        evicted_by=evicted_by,
        destroyed_by=destroyed_by,
        unlinked_by=_actor(event.unlinked, knowledge),
        name=event.name,
        path=_path(event, mount),
        device=name,
        mount=mount,
        nlink=life.nlink if life and Flag.LIFE_FORMER not in event.flags else None,
        reclaim=_reclaim(event),
        call_site=event.call_site,
        witness=_witness(event.flags),
        test=knowledge.test_object(event.object),
        timeline=_timeline(event),
        what="dentry" if event.flags & Flag.OBJECT_DENTRY else "inode",
        filesystem=event.filesystem,
        broken=tuple(rule.name.lower() for rule in Broken if rule.name and event.broken & rule),
        related=event.related,
        directory_ino=event.directory_ino,
        preceded_by=preceding,
        lacks=_lacks(event, first, second, knowledge),
    )


_MOMENT = "%Y%m%dT%H%M%S.%fZ"


def _identifier(realtime_us: int, sequence: int) -> str:
    moment = datetime.datetime.fromtimestamp(realtime_us / 1e6, datetime.timezone.utc)
    return f"{moment:{_MOMENT}}-{sequence:04x}"


def later(id_: str, last: str) -> str:
    """The id, or where it would not sort after the last one (the clock was set back) one that is a
    microsecond later than that: what was found last stays last.
    """
    if id_ > last:
        return id_
    try:
        moment = datetime.datetime.strptime(last.partition("-")[0], _MOMENT)
        moment += datetime.timedelta(microseconds=1)
    except (ValueError, OverflowError):
        return id_
    return f"{moment:{_MOMENT}}-{id_.rpartition('-')[2]}"


def _severity(verdict: Verdict, confidence: Confidence) -> Severity:
    if verdict.damage:
        return _SEVERITY[confidence]
    return Severity.NOTICE if verdict is Verdict.CONCURRENT_UNLINK else Severity.WARNING


def _clues(event: VerdictEvent, knowledge: Knowledge, preceding: Sequence[Preceding]) -> Clues:
    return Clues(
        destroy_watched=knowledge.alive.get("destroy") is True,
        earlier=knowledge.earlier(event.object, event.ns),
        cause=_cause(knowledge, preceding),
        out_of_tree=knowledge.out_of_tree,
    )


def _cause(knowledge: Knowledge, preceding: Sequence[Preceding]) -> tuple[str, Responsible] | None:
    """The first broken rule before it that somebody was named for."""
    for one in preceding:
        named = knowledge.named_by(one.id) if one.verdict.kind is Kind.CAUSE else None
        if named is not None and named.strength is not Strength.UNKNOWN:
            return one.id, named
    return None


def _witness(flags: Flag) -> str:
    if not flags & Flag.WITNESS_READ or flags & Flag.OBJECT_DENTRY:
        return ""
    if flags & Flag.WITNESS_NO_INODE:
        return "reused"
    if flags & Flag.WITNESS_PUBLISHED:
        return "alive"
    return "dead" if flags & Flag.WITNESS_CLEAR else "unborn"


# -- who


def _frames(addresses: tuple[int, ...], call_site: int, knowledge: Knowledge) -> tuple[Frame, ...]:
    def name(address: int) -> Frame:
        return frame(address, knowledge.symbol(address), knowledge.taints)

    return resolve(addresses, call_site, name)


def _actor(
    who: Who, knowledge: Knowledge, context: str = "task", stack: tuple[Frame, ...] = ()
) -> Actor | None:
    """None for a step that was not seen; only who did it itself is worth asking /proc about."""
    if not who:
        return None
    process = knowledge.process(who.tgid, who.ns) if context == "task" else None
    return Actor(who.ns, who.cpu, who.pid, who.tgid, who.comm, context, stack, process)


def _second(event: VerdictEvent, knowledge: Knowledge) -> Actor | None:
    """Who did the step that should not have happened."""
    stack = _frames(event.stack, event.call_site, knowledge)
    # The callback may be called by anybody: where the frames have names, they tell.
    if in_softirq(stack) or (event.hook is Hook.RCU_FREE and not any(f.symbol for f in stack)):
        context = "softirq"
    elif event.hook is Hook.ANY_FREE and not any(f.symbol for f in stack):
        context = "unknown"  # most frees run in softirqs, and only the frames' names tell
    else:
        context = "task"
    return _actor(event.who, knowledge, context, stack)


def _first(
    verdict: Verdict,
    life: LifeSeen | None,
    evicted_by: Actor | None,
    destroyed_by: Actor | None,
    knowledge: Knowledge,
) -> Actor | None:
    """Who did first what is now done again."""
    if life is None:
        return None
    if verdict is Verdict.DOUBLE_DESTROY and destroyed_by:
        return destroyed_by
    return _earlier(life.freed, "unknown", knowledge) or destroyed_by or evicted_by


def _earlier(who: Who, context: str, knowledge: Knowledge) -> Actor | None:
    """Who did a step that was legal when it happened: with its stack if one was taken, else only
    with its caller.
    """
    frames = knowledge.frames(who.stack) if who.stack else ()
    stack = _frames(frames, who.caller, knowledge)
    if in_softirq(stack) or any(f.symbol in RCU_CALLBACKS for f in stack):
        context = "softirq"
    return _actor(who, knowledge, context, stack)


# -- in words


def _path(event: VerdictEvent, mount: str) -> str:
    """As much of it as is known: "/mnt/a/b", "/a/b on the filesystem" or ".../a/b"."""
    if not event.name:
        return ""
    longest = event.name if len(event.name.encode()) < _NAME_MAX else f"{event.name}..."
    inside = "/".join((*reversed(event.parents), longest))
    if not event.flags & Flag.PARENTS_WHOLE:
        return f".../{inside}"
    return f"{mount.rstrip('/')}/{inside}"


def _timeline(event: VerdictEvent) -> tuple[Moment, ...]:
    """The steps of this object that are still known, oldest first, this one last.

    Steps are stamped with the tick of their CPU, which may be one ahead or behind of another's, and
    of the exact time of a verdict: a life's steps are in the order in which a life can take them.
    """
    life = event.life
    steps: list[tuple[Who, str]] = []
    if life is not None:
        where = ", inside shrink_slab" if life.flags & LifeFlag.RECLAIM else ""
        steps = [
            (life.evicted, f"evicted with {life.nlink} links{where}"),
            (life.destroyed, "queued for RCU"),
            (life.freed, "freed" if life.frees < 2 else f"freed, for the {life.frees}th time"),
        ]
        before = f"inode {life.ino} here before: " if Flag.LIFE_FORMER in event.flags else ""
        steps = [(who, before + text) for who, text in steps if who]
    # Of this life, and before its eviction; or of the next one at this address.
    older = [who for who, _ in steps if who.ns + TICK_NS_MAX < event.unlinked.ns]
    steps.insert(len(older), (event.unlinked, "ext4_unlink of this inode"))
    steps.append((event.who, event.verdict.words.happened))
    return tuple(
        Moment(min(who.ns, event.ns), f"{text} on CPU {who.cpu}") for who, text in steps if who
    )


def _reclaim(event: VerdictEvent) -> str:
    if event.reclaim_pid:
        return f"inside shrink_slab by {event.who.comm} (pid {event.reclaim_pid})"
    former = Flag.LIFE_FORMER in event.flags
    if event.life and not former and event.life.flags & LifeFlag.RECLAIM:
        return f"evicted inside shrink_slab by {event.life.evicted.comm}"
    return ""


def _summary(
    verdict: Verdict,
    event: VerdictEvent,
    major: int,
    minor: int,
    first: Actor | None,
    second: Actor | None,
) -> str:
    text = f"{subject(event, major, minor)} {verdict.words.happened}"
    rules = broken_rules(event) if verdict.kind is Kind.CAUSE else ()
    if rules:
        text += f" ({'; '.join(rules)})"
    if first is not None:
        text += f", first {_by(first)}"
    return text + (f", now {_by(second)}" if second is not None else "")


def _by(actor: Actor) -> str:
    """A task is named only for what it did itself."""
    if actor.context == "task":
        return f"by {actor.comm} (pid {actor.pid}, cpu {actor.cpu})"
    where = "in a softirq on" if actor.context == "softirq" else "on"
    return f"{where} cpu {actor.cpu}"


def _lacks(
    event: VerdictEvent, first: Actor | None, second: Actor | None, knowledge: Knowledge
) -> tuple[str, ...]:
    says = list(knowledge.lacks)
    if second is None or not second.stack:
        says.append("the stack of this step could not be taken")
    if first is not None and len(first.stack) < 2:
        says.append(
            "of the steps before, at most the caller is known: evidence.first_stacks is false"
            if not event.life or not any((event.life.freed.stack, event.life.evicted.stack))
            else "the stack of the first step has made room for another"
        )
    if not event.name and event.unlinked.pid:
        says.append(
            "its name was not kept at its unlink: evidence.names is false, or it could not be read"
        )
    elif not event.name and not event.flags & Flag.OBJECT_DENTRY:
        says.append("no unlink of this inode is remembered, so it has no name")
    elif event.name and event.directory_ino and not event.flags & Flag.PARENTS_VALID:
        says.append(f"its directory (inode {event.directory_ino}) is no longer in memory")
    if "destroy" not in knowledge.attached and event.verdict.kind is Kind.EFFECT:
        says.append("the hook destroy is absent, so who queued the object for RCU is not known")
    return tuple(says)
