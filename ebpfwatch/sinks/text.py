"""A finding for people: a report in the manner of KASAN.

Names that come from the kernel (tasks, files) were chosen by anybody: every character that could
move a cursor, end a line or turn the text around is escaped.
"""

from __future__ import annotations

import datetime
from typing import Any

from ebpfwatch.host.process import Process
from ebpfwatch.text.printable import printable
from ebpfwatch.text.times import utc
from ebpfwatch.verdicts.advice import advice
from ebpfwatch.verdicts.confidence import ago
from ebpfwatch.verdicts.finding import (
    Actor,
    Confidence,
    Finding,
    Moment,
    Preceding,
    Responsible,
    Strength,
)

__all__ = ["body", "report"]


def report(finding: Finding, acknowledged: dict[str, Any] | None = None) -> str:
    """The report as KASAN prints its own: many lines between two rules."""
    lines = [_RULE, body(finding)]
    if acknowledged is not None:
        lines += ["", _acknowledged(acknowledged)]
    return "\n".join([*lines, _RULE])


def body(finding: Finding) -> str:
    """What happened in three sentences, which inode, who is to blame, how sure, who now, who
    first, and what to do; the first line is the headline.
    """
    lines = [
        printable(finding.headline),
        f"{_moment(finding)}, id {finding.id}",
        "",
        *in_short(finding),
        "",
        *_object(finding),
        "",
        *_accused(finding.responsible),
        "",
        f"Confidence: {finding.confidence.value}",
        *(f"  - {printable(reason)}" for reason in finding.reasons),
        *(line for role, actor in _roles(finding) for line in _actor(role, actor, finding.ns)),
        *_timeline("The object's steps", finding.timeline, finding.ns),
        *_timeline("The machine before it", finding.machine, finding.ns),
        *_before(finding.preceded_by, finding.ns),
    ]
    if finding.folded:
        lines += ["", f"{finding.folded} more like the last one were not written"]
    for title, says in (
        ("Not known", finding.lacks),
        ("What to do", advice(finding)),
    ):
        lines += ["", f"{title}:", *(f"  - {printable(line)}" for line in says)] if says else []
    return "\n".join(lines)


def _moment(finding: Finding) -> str:
    """The wall clock; a dump may not tell how far it was ahead of the kernel's own clock."""
    if finding.realtime_us == finding.ns // 1000:
        return f"{finding.ns / 1e9:.6f} s after the boot (the time of day is not known)"
    when = datetime.datetime.fromtimestamp(finding.realtime_us / 1e6, datetime.timezone.utc)
    return f"{when:%Y-%m-%d %H:%M:%S.%f} UTC"


def in_short(finding: Finding) -> list[str]:
    """What happened, who did it, how sure that is: a sentence each."""
    accused = finding.responsible
    summary = printable(finding.summary)
    who = f"{accused.who} {_BLAME[accused.strength]}" if accused.who else _BLAME[accused.strength]
    return [f"{line[:1].upper()}{line[1:]}." for line in (summary, printable(who), _sure(finding))]


def _sure(finding: Finding) -> str:
    if finding.test:
        return "This is the self-test: nothing has happened to this machine"
    if finding.confidence is Confidence.CONFIRMED:
        return "Nothing speaks against it"
    return f"It is {finding.confidence.value}, not confirmed; the reasons are below"


def _acknowledged(note: dict[str, Any]) -> str:
    at_us = note.get("at_us")
    when = f" at {utc(at_us / 1e6)}" if isinstance(at_us, int) else ""
    who = f" by {printable(str(note['by']))}" if note.get("by") else ""
    why = f": {printable(str(note['because']))}" if note.get("because") else ""
    return f"Acknowledged{when}{who}{why}"


_BLAME = {
    Strength.SHOWN: "did it: its own code made the wrong call",
    Strength.SUSPECTED: "may have done it: its code is near, and nothing proves it",
    Strength.UNKNOWN: "Who did it is not known",
}

#: What the object's own state field says (verdicts/correlator.py).
_OWN_STATE = {
    "alive": "an inode in use",
    "dead": "already evicted",
    "unborn": "never in use",
}

_RULE = "=" * 66
_STRENGTH = {
    Strength.SHOWN: "Most likely responsible",
    Strength.SUSPECTED: "Possibly responsible",
    Strength.UNKNOWN: "Most likely responsible: not known",
}


def _object(finding: Finding) -> list[str]:
    identity = finding.identity
    device = f"{identity.dev_major}:{identity.dev_minor}"
    device += f" ({printable(finding.device)})" if finding.device else ""
    device += f", mounted on {printable(finding.mount)}" if finding.mount else ""
    size = ""
    if finding.object_bytes and finding.what == "inode" and finding.filesystem == "ext4":
        size = f" of {finding.object_bytes} bytes in ext4_inode_cache"
    facts = {
        "Inode": ""
        if finding.what == "dentry" and not identity.ino
        else f"{identity.ino} generation {identity.generation} on {device}"
        + (f" ({printable(finding.filesystem)})" if finding.filesystem != "ext4" else ""),
        "Dentry" if finding.what == "dentry" else "Object": f"{identity.object_address:#x}{size}"
        + (
            f"; its own state field says: {_OWN_STATE.get(finding.witness, finding.witness)}"
            if finding.witness
            else ""
        ),
        "Path": finding.path or finding.name,
        "Links at eviction": "" if finding.nlink is None else str(finding.nlink),
        "Reclaim": finding.reclaim,
        "Disk": finding.disk,
    }
    return [f"{name}: {printable(text)}" for name, text in facts.items() if text]


def _accused(accused: Responsible) -> list[str]:
    who = f": {accused.who}" if accused.who else ""
    reasons = [f"  - {printable(reason)}" for reason in accused.because]
    return [printable(_STRENGTH[accused.strength] + who), *reasons]


def _roles(finding: Finding) -> list[tuple[str, Actor]]:
    """Each step once, the wrong one first, as KASAN does; with who it was."""
    roles = [
        ("Now", finding.second),
        ("First", finding.first),
        ("Queued for RCU", finding.destroyed_by),
        ("Evicted", finding.evicted_by),
        ("Unlinked", finding.unlinked_by),
    ]
    shown: list[tuple[str, Actor]] = []
    for role, actor in roles:
        # Not by their times alone: an unlink and its eviction are often of one tick.
        known = role != "Unlinked" and any(actor == other for _, other in shown)
        if actor is not None and not known:
            shown.append((role, actor))
    return shown


def _actor(role: str, actor: Actor, now_ns: int) -> list[str]:
    task = f"{actor.comm} (pid {actor.pid}, tgid {actor.tgid})"
    who = {
        "task": f"by {task} on CPU {actor.cpu}",
        "softirq": f"in a softirq on CPU {actor.cpu}; {task} was running there, a bystander",
    }.get(actor.context, f"on CPU {actor.cpu} while {task} was running there")
    lines = ["", printable(f"{role} {who}, {_when(actor.ns, now_ns)}:")]
    if actor.process is not None and actor.context == "task":
        lines += [f"  {printable(fact)}" for fact in _process(actor.process)]
    return lines + [f"  {printable(str(f))}" for f in actor.stack]


def _process(process: Process) -> list[str]:
    parent = f"{process.parent} (pid {process.ppid})" if process.ppid else ""
    unit = process.unit or process.cgroup.rstrip("/")
    facts = {"exe": process.exe, "parent": parent, "unit": unit}
    return [f"{name} {text}" for name, text in facts.items() if text]


def _when(ns: int, now_ns: int) -> str:
    return f"at {ns / 1e9:.6f}" + (f", {ago(now_ns - ns)} before" if ns < now_ns else "")


def _before(preceding: tuple[Preceding, ...], now_ns: int) -> list[str]:
    """The findings before this one: in the order of time."""
    if not preceding:
        return []
    lines = ["", "What came before it:"]
    for one in preceding:
        times = f", {one.count} times" if one.count > 1 else ""
        lines.append(
            printable(
                f"  {(one.ns - now_ns) / 1e9:+12.6f} s  {one.verdict.value}"
                f" ({one.verdict.kind.value}, {one.relation}{times}): {one.summary} [{one.id}]"
            )
        )
    return lines


def _timeline(title: str, moments: tuple[Moment, ...], now_ns: int) -> list[str]:
    if not moments:
        return []
    shown = [f"  {(m.ns - now_ns) / 1e9:+12.6f} s  {printable(m.text)}" for m in moments]
    return ["", f"{title}:", *shown]
