"""How sure a verdict is, and why not more: what could have forged it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from ebpfwatch.catalogue.layout import Broken, Flag, LifeFlag
from ebpfwatch.catalogue.roles import BY_CANARY, Hook
from ebpfwatch.catalogue.verdicts import Kind, Verdict
from ebpfwatch.events.wire import VerdictEvent
from ebpfwatch.verdicts.finding import Confidence
from ebpfwatch.verdicts.knowledge import Knowledge
from ebpfwatch.verdicts.rules import broken_rules
from ebpfwatch.verdicts.stacks import frame, is_tracer

__all__ = ["TICK_NS_MAX", "ago", "doubts", "evidence"]

#: The longest tick of a kernel (CONFIG_HZ=100), with which steps are stamped.
TICK_NS_MAX = 10_000_000

_ORDER = (Confidence.CONFIRMED, Confidence.PROBABLE, Confidence.UNDECIDABLE)


def doubts(
    event: VerdictEvent, verdict: Verdict, knowledge: Knowledge
) -> tuple[Confidence, list[str]]:
    """How sure at most, and why not more."""
    caps = [Confidence.CONFIRMED]
    says: list[str] = []

    def doubt(cap: Confidence, reason: str) -> None:
        caps.append(cap)
        says.append(reason)

    if event.flags & Flag.SEAL_BROKEN:
        doubt(Confidence.UNDECIDABLE, "two CPUs wrote the table entry at once")
    for roles in () if _testified(event, verdict) else verdict.forged_by:
        weak = [_weakness(role, event, knowledge) for role in roles]
        if all(weak):
            silent = all(knowledge.alive.get(role) is False for role in roles)
            doubt(Confidence.UNDECIDABLE if silent else Confidence.PROBABLE, "; ".join(weak))
    if verdict.damage and not event.flags & Flag.WITNESS_READ:
        doubt(Confidence.PROBABLE, "the object's own memory could not be read")
    if verdict.of_the_dead and not _testifies_death(event):
        doubt(
            Confidence.PROBABLE,
            "the object does not say that it is dead (I_FREEING | I_CLEAR, and no references)",
        )
    told_by_table = verdict.kind is not Kind.CAUSE and verdict is not Verdict.IDENTITY_CHANGED
    if told_by_table and _identity_differs(event):
        life = event.life
        assert life is not None
        doubt(
            Confidence.PROBABLE,
            f"the object is inode {event.ino} generation {event.generation} now, and was inode"
            f" {life.ino} generation {life.generation}",
        )
    for cap, reason in _doubts_of_contracts(event, verdict, knowledge):
        doubt(cap, reason)
    if verdict is Verdict.FREED_IN_RECLAIM:
        doubt(Confidence.PROBABLE, "a candidate: reclaim may do this legally, but rarely")
    if verdict is Verdict.FOREIGN_FREE and event.hook is Hook.ANY_FREE:
        if not event.call_site:
            doubt(Confidence.PROBABLE, "the caller is not known")
        elif not knowledge.symbol(event.call_site):
            doubt(Confidence.PROBABLE, "the caller has no name: it may be the kernel's own")
        elif is_tracer(frame(event.call_site, knowledge.symbol(event.call_site), lambda m: "")):
            doubt(Confidence.PROBABLE, "a tracer hides the caller: only the stack tells who it is")
    says.extend(knowledge.reduced)
    return max(caps, key=_ORDER.index), says


def _doubts_of_contracts(
    event: VerdictEvent, verdict: Verdict, knowledge: Knowledge
) -> Iterator[tuple[Confidence, str]]:
    """Where a broken rule, or a free that the table knows nothing of, may have another reason."""
    proven = event.flags & Flag.RELATED_PROVEN
    if event.broken == Broken.ALIAS and not proven and not event.flags & Flag.OBJECT_DENTRY:
        yield (
            Confidence.PROBABLE,
            "what is on its list of names does not say that it is a name of this inode",
        )
    if event.broken == Broken.CHILDREN and not proven:
        yield (
            Confidence.PROBABLE,
            "what is on its list of children does not say that this is its parent",
        )
    if event.broken and knowledge.unproven:
        yield (
            Confidence.PROBABLE,
            f"where the kernel keeps what this rule reads is not proven: {knowledge.unproven}",
        )
    if event.broken == Broken.NO_LINK:
        yield Confidence.PROBABLE, "a damaged filesystem may have names of inodes without links"
    if event.broken and event.flags & Flag.WITNESS_NO_INODE:
        yield Confidence.PROBABLE, "its memory may be no inode any more"
    if verdict is Verdict.RCU_LISTS_CROSSED:
        yield (
            Confidence.PROBABLE,
            "only where these callbacks ran speaks for it: no CPU came or went, none is offloaded",
        )
    if verdict is Verdict.DOUBLE_FREE and event.life is None:
        yield (
            Confidence.PROBABLE,
            "its first free is not remembered: the object is dead, and no inode that died within"
            " the last minute was forgotten before its free",
        )
        lost = knowledge.lost("evict", 0)
        if lost:
            yield Confidence.UNDECIDABLE, f"{lost} runs of the hook evict were skipped"


def _weakness(role: str, event: VerdictEvent, knowledge: Knowledge) -> str:
    """Why this role may have missed a step since the object's last known one; "" if it has not."""
    if role not in knowledge.attached:
        return f"the hook {role} is not attached"
    alive = knowledge.alive.get(role)
    if alive is False:
        return f"the hook {role} was silent when the canary tried it"
    lost = knowledge.lost(role, _since(event))
    if lost:
        return f"{lost} runs of the hook {role} were skipped in that time"
    if alive is None and role in BY_CANARY:
        return f"the hook {role} is not proven alive"
    return ""


def _testifies_death(event: VerdictEvent) -> bool:
    flags = event.flags & (Flag.WITNESS_CLEAR | Flag.WITNESS_NO_INODE)
    return flags == Flag.WITNESS_CLEAR and event.count == 0


def _testified(event: VerdictEvent, verdict: Verdict) -> bool:
    """Whether the object alone shows it: an inode that says I_CLEAR was evicted in this life."""
    return verdict is Verdict.DOUBLE_EVICT and bool(event.flags & Flag.WITNESS_CLEAR)


def _since(event: VerdictEvent) -> int:
    life = event.life
    if life is None:
        return event.ns
    return life.freed.ns or life.evicted.ns or event.ns


def _identity_differs(event: VerdictEvent) -> bool:
    life = event.life
    if life is None or not event.flags & Flag.WITNESS_IDENTITY:
        return False
    if event.flags & Flag.LIFE_FORMER:
        return False
    return (life.ino, life.generation) != (event.ino, event.generation)


def evidence(event: VerdictEvent) -> list[str]:
    """What speaks for the verdict, in words."""
    says = broken_rules(event)
    life = event.life
    if life is not None:
        if event.flags & Flag.LIFE_FORMER:
            when = life.freed.ns or life.evicted.ns
            says.append(
                f"that address was inode {life.ino} generation {life.generation} before, which was"
                f" {'freed' if life.freed else 'evicted'} {ago(event.ns - when)} before, and"
                " allocated again since"
            )
        elif life.freed:
            says.append(f"freed {ago(event.ns - life.freed.ns)} before, and not allocated since")
        elif life.destroyed:
            says.append(f"queued for RCU {ago(event.ns - life.destroyed.ns)} before")
        elif life.evicted:
            says.append(f"evicted {ago(event.ns - life.evicted.ns)} before")
        if event.hook is Hook.RCU_FREE and life.destroyed and life.destroyed.cpu != event.cpu:
            says.append(
                f"it was queued on CPU {life.destroyed.cpu} and is freed on CPU {event.cpu}: RCU's"
                " lists are crossed, if no CPU came or went; look at the findings about dentries"
            )
        if life.flags & LifeFlag.NO_EVICT:
            says.append("its eviction was not seen")
    if event.flags & Flag.WITNESS_NO_INODE:
        says.append("its memory is no ext4 inode any more: something else lies there now")
    elif event.verdict.kind is Kind.CAUSE:
        pass  # the rules have said it
    elif event.flags & Flag.WITNESS_PUBLISHED:
        says.append("the object is on its superblock's list of living inodes")
    elif event.flags & Flag.WITNESS_CLEAR:
        says.append("the object itself says that it was evicted (I_FREEING | I_CLEAR)")
    return says


def ago(ns: int) -> str:
    """A duration for people; no step is known better than to a tick."""
    if ns < TICK_NS_MAX:
        return "less than 10 ms"
    return f"{ns / 1e6:.0f} ms" if ns < 10_000_000_000 else f"{ns / 1e9:.0f} s"
