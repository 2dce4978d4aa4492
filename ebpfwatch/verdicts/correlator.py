"""From what the kernel flagged to a finding: verdict, confidence, and every reason for doubt.

Pure and bounded: it keeps nothing between events.  The kernel side decided *what* happened,
exactly; here it is weighed against what could have forged it: a hook that was silent, a run that
was skipped, an entry torn between two CPUs, an object that says otherwise.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Callable

from ebpfwatch.events.wire import (
    Flag,
    Hook,
    KernelVerdict,
    LifeFlag,
    LifeSeen,
    VerdictEvent,
    Who,
    device,
)
from ebpfwatch.verdicts.finding import Actor, Confidence, Finding, Identity, Severity, Verdict

__all__ = ["FORGED_BY", "Knowledge", "judge"]

#: What a verdict would need to be wrong: all roles of one of these sets missed a step.
#: Not listed: what the object itself testifies.
FORGED_BY: dict[Verdict, tuple[tuple[str, ...], ...]] = {
    Verdict.DOUBLE_DESTROY: (("alloc", "evict"),),
    Verdict.DOUBLE_EVICT: (("alloc",),),
    Verdict.DOUBLE_FREE: (("alloc", "evict"),),
    Verdict.FREE_WHILE_ALIVE: (),
    Verdict.FOREIGN_FREE: (),
    Verdict.IDENTITY_CHANGED: (("alloc", "evict"),),
    Verdict.FREED_IN_RECLAIM: (("unlink",), ("reclaim",)),
    Verdict.CONCURRENT_UNLINK: (("unlink",),),
}

_CRITICAL = {
    Verdict.DOUBLE_DESTROY,
    Verdict.DOUBLE_EVICT,
    Verdict.DOUBLE_FREE,
    Verdict.FREE_WHILE_ALIVE,
    Verdict.FOREIGN_FREE,
}

_SEVERITY = {
    Confidence.CONFIRMED: Severity.CRIT,
    Confidence.PROBABLE: Severity.ERR,
    Confidence.UNDECIDABLE: Severity.WARNING,
}

_ORDER = (Confidence.CONFIRMED, Confidence.PROBABLE, Confidence.UNDECIDABLE)


@dataclasses.dataclass(frozen=True)
class Knowledge:
    """What is known of the watcher itself at the moment of a verdict.

    ``attached`` and ``alive`` are by role; a role is alive when the canary proved it, and None
    means not yet proven.  ``lost(role, since_ns)`` is the number of skipped runs.
    ``symbol(address)`` names a kernel address, "" if it cannot.  ``realtime_offset_ns`` turns
    CLOCK_MONOTONIC into wall clock.  ``test_object(address)`` tells the self-test's own memory.
    ``frames(key)`` reads a stack that was taken at an earlier step; () if it is gone.
    """

    attached: frozenset[str]
    alive: Mapping[str, bool | None]
    lost: Callable[[str, int], int]
    symbol: Callable[[int], str]
    realtime_offset_ns: int
    test_object: Callable[[int], bool]
    frames: Callable[[int], tuple[int, ...]] = lambda key: ()


def judge(event: VerdictEvent, knowledge: Knowledge, sequence: int) -> Finding | None:
    """The finding, or None where the event is no verdict; ``sequence`` makes the id unique."""
    if event.verdict is KernelVerdict.NONE:
        return None
    verdict = Verdict[event.verdict.name]
    life = event.life
    confidence, doubts = _doubts(event, verdict, knowledge)
    realtime_us = (event.ns + knowledge.realtime_offset_ns) // 1000
    major, minor = device(event.dev)
    first = _first(verdict, life, knowledge)
    second = _actor(event.who, _context(event, knowledge), _stack(event, knowledge))
    return Finding(
        id=_identifier(realtime_us, sequence),
        verdict=verdict,
        confidence=confidence,
        severity=_severity(verdict, confidence),
        reasons=(*_evidence(event), *doubts),
        identity=Identity(event.object, major, minor, event.ino, event.generation),
        realtime_us=realtime_us,
        summary=_summary(verdict, event, major, minor, first),
        first=first,
        second=second,
        evicted_by=_earlier(life.evicted, knowledge) if life else None,
        unlinked_by=_actor(event.unlinked),
        name=event.name,
        nlink=life.nlink if life else None,
        reclaim=_reclaim(event),
        call_site=event.call_site,
        witness=_witness(event.flags),
        test=knowledge.test_object(event.object),
    )


def _identifier(realtime_us: int, sequence: int) -> str:
    moment = datetime.datetime.fromtimestamp(realtime_us / 1e6, datetime.timezone.utc)
    return f"{moment:%Y%m%dT%H%M%S.%fZ}-{sequence:04x}"


def _severity(verdict: Verdict, confidence: Confidence) -> Severity:
    if verdict in _CRITICAL:
        return _SEVERITY[confidence]
    return Severity.NOTICE if verdict is Verdict.CONCURRENT_UNLINK else Severity.WARNING


def _doubts(
    event: VerdictEvent, verdict: Verdict, knowledge: Knowledge
) -> tuple[Confidence, list[str]]:
    """How sure at most, and why not more."""
    caps = [Confidence.CONFIRMED]
    doubts: list[str] = []

    def doubt(cap: Confidence, reason: str) -> None:
        caps.append(cap)
        doubts.append(reason)

    if event.flags & Flag.SEAL_BROKEN:
        doubt(Confidence.UNDECIDABLE, "two CPUs wrote the table entry at once")
    for roles in FORGED_BY[verdict]:
        weak = [_weakness(role, event, knowledge) for role in roles]
        if all(weak):
            silent = all(knowledge.alive.get(role) is False for role in roles)
            doubt(Confidence.UNDECIDABLE if silent else Confidence.PROBABLE, "; ".join(weak))
    if verdict in _CRITICAL and not event.flags & Flag.WITNESS_READ:
        doubt(Confidence.PROBABLE, "the object's own memory could not be read")
    if verdict is Verdict.DOUBLE_EVICT and not event.flags & Flag.WITNESS_CLEAR:
        doubt(
            Confidence.PROBABLE,
            "the object does not say that it was evicted before (no I_FREEING | I_CLEAR)",
        )
    if verdict is Verdict.DOUBLE_FREE and not event.flags & Flag.WITNESS_CLEAR:
        doubt(
            Confidence.PROBABLE, "the object does not say that it is dead (no I_FREEING | I_CLEAR)"
        )
    if verdict is not Verdict.IDENTITY_CHANGED and _identity_differs(event):
        life = event.life
        assert life is not None
        doubt(
            Confidence.PROBABLE,
            f"the object is inode {event.ino} generation {event.generation} now, and was inode"
            f" {life.ino} generation {life.generation}",
        )
    if verdict is Verdict.FREED_IN_RECLAIM:
        doubt(Confidence.PROBABLE, "a candidate: reclaim may do this legally, but rarely")
    if verdict is Verdict.FOREIGN_FREE and event.hook is Hook.ANY_FREE and not event.call_site:
        doubt(Confidence.PROBABLE, "the caller is not known")
    return max(caps, key=_ORDER.index), doubts


def _weakness(role: str, event: VerdictEvent, knowledge: Knowledge) -> str:
    """Why this role may have missed a step since the object's last known one; "" if it has not."""
    if role not in knowledge.attached:
        return f"the hook {role} is not attached"
    alive = knowledge.alive.get(role)
    if alive is False:
        return f"the hook {role} was silent when the canary tried it"
    # alloc, unlink and evict run in task context only, where the kernel never skips a program:
    # what is skipped there are softirqs' own allocations.
    lost = 0 if role == "alloc" else knowledge.lost(role, _since(event))
    if lost:
        return f"{lost} runs of the hook {role} were skipped in that time"
    if alive is None and role != "reclaim":
        return f"the hook {role} has not been proven alive yet"
    return ""


def _since(event: VerdictEvent) -> int:
    life = event.life
    if life is None:
        return event.ns
    return life.freed.ns or life.evicted.ns or event.ns


def _identity_differs(event: VerdictEvent) -> bool:
    life = event.life
    if life is None or not event.flags & Flag.WITNESS_IDENTITY:
        return False
    return (life.ino, life.generation) != (event.ino, event.generation)


def _evidence(event: VerdictEvent) -> list[str]:
    """What speaks for the verdict, in words."""
    says = []
    life = event.life
    if life is not None:
        if life.freed:
            says.append(f"freed {_ago(event.ns - life.freed.ns)} before, and not allocated since")
        elif life.destroyed:
            says.append(f"queued for RCU {_ago(event.ns - life.destroyed.ns)} before")
        elif life.evicted:
            says.append(f"evicted {_ago(event.ns - life.evicted.ns)} before")
        if life.flags & LifeFlag.NO_EVICT:
            says.append("its eviction was not seen")
    if event.flags & Flag.WITNESS_PUBLISHED:
        says.append("the object is on its superblock's list of living inodes")
    elif event.flags & Flag.WITNESS_CLEAR:
        says.append("the object itself says that it was evicted (I_FREEING | I_CLEAR)")
    return says


def _ago(ns: int) -> str:
    if ns < 10_000_000:
        return f"{ns / 1000:.0f} us"
    return f"{ns / 1e6:.0f} ms" if ns < 10_000_000_000 else f"{ns / 1e9:.0f} s"


def _witness(flags: Flag) -> str:
    if not flags & Flag.WITNESS_READ:
        return ""
    if flags & Flag.WITNESS_PUBLISHED:
        return "alive"
    return "dead" if flags & Flag.WITNESS_CLEAR else "unborn"


_SOFTIRQ = {
    "__do_softirq",
    "handle_softirqs",
    "do_softirq",
    "rcu_do_batch",
    "rcu_process_callbacks",
}


_PROBE_FRAMES = ("bpf_prog_", "bpf_trace_run", "__bpf_trace_", "__traceiter_", "bpf_trampoline_")


def _context(event: VerdictEvent, knowledge: Knowledge) -> str:
    """In a softirq, and in RCU's own kthreads, the current task is a bystander."""
    if event.hook is Hook.RCU_FREE:
        return "softirq"
    functions = {knowledge.symbol(address).partition("+")[0] for address in event.stack}
    return "softirq" if functions & _SOFTIRQ else "task"


def _stack(event: VerdictEvent, knowledge: Knowledge) -> tuple[str, ...]:
    """The frames by name.

    A probe stands at a function's first instruction, before it has a frame of its own: the
    unwinder then leaves out its caller, who may be the culprit; the call site has it.
    """
    return _names(event.stack, event.call_site, knowledge)


def _names(addresses: tuple[int, ...], call_site: int, knowledge: Knowledge) -> tuple[str, ...]:
    def name(address: int) -> str:
        return knowledge.symbol(address) or f"{address:#x}"

    names = [name(address) for address in addresses]
    # The probe itself and the tracepoint that called it are not the kernel's doing.
    own = max((i for i, name in enumerate(names[:8]) if name.startswith(_PROBE_FRAMES)), default=-1)
    del names[: own + 1]
    if call_site and call_site not in addresses:
        names.insert(1 if names else 0, name(call_site))
    return tuple(names)


def _actor(who: Who | None, context: str = "task", stack: tuple[str, ...] = ()) -> Actor | None:
    if not who:
        return None
    return Actor(who.ns, who.cpu, who.pid, who.tgid, who.comm, context, stack)


def _first(verdict: Verdict, life: LifeSeen | None, knowledge: Knowledge) -> Actor | None:
    """Who did first what is now done again; if a first free ran in a softirq is not recorded."""
    if life is None:
        return None
    if verdict is Verdict.DOUBLE_DESTROY and life.destroyed:
        return _earlier(life.destroyed, knowledge)
    return (
        _earlier(life.freed, knowledge, "unknown")
        or _earlier(life.destroyed, knowledge)
        or _earlier(life.evicted, knowledge)
    )


def _earlier(who: Who, knowledge: Knowledge, context: str = "task") -> Actor | None:
    """Who did a step that was legal when it happened: with its stack if one was taken, else only
    with its caller."""
    frames = knowledge.frames(who.stack) if who.stack else ()
    return _actor(who, context, _names(frames, who.caller, knowledge))


def _reclaim(event: VerdictEvent) -> str:
    if event.reclaim_pid:
        return f"inside shrink_slab by {event.who.comm} (pid {event.reclaim_pid})"
    if event.life and event.life.flags & LifeFlag.RECLAIM:
        return f"evicted inside shrink_slab by {event.life.evicted.comm}"
    return ""


_SAYS = {
    Verdict.DOUBLE_DESTROY: "queued for RCU a second time",
    Verdict.DOUBLE_EVICT: "evicted a second time",
    Verdict.DOUBLE_FREE: "freed a second time",
    Verdict.FREE_WHILE_ALIVE: "freed while alive: its life was never evicted",
    Verdict.FOREIGN_FREE: "freed by a stranger, not by ext4's RCU callback",
    Verdict.IDENTITY_CHANGED: "another inode at its free than at its eviction",
    Verdict.FREED_IN_RECLAIM: "evicted by reclaim while its deletion was under way",
    Verdict.CONCURRENT_UNLINK: "unlinked by two tasks at once",
}


def _summary(
    verdict: Verdict, event: VerdictEvent, major: int, minor: int, first: Actor | None
) -> str:
    text = f"ext4 inode {event.ino} on {major}:{minor} {_SAYS[verdict]}"
    if first is not None:
        text += f", first by {first.comm} (pid {first.pid}, cpu {first.cpu})"
    return text + f", now by {event.who.comm} (pid {event.who.pid}, cpu {event.cpu})"
