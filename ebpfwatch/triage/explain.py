"""A triage told to a person: what the log holds, what it means, why, and what to do next."""

from __future__ import annotations

import textwrap
from typing import Any, Callable

from ebpfwatch.kernellog.known import Relation
from ebpfwatch.kernellog.report import Frame
from ebpfwatch.text.printable import printable
from ebpfwatch.triage import fault, registers
from ebpfwatch.triage.advice import modules, next_steps
from ebpfwatch.triage.assess import Weight, in_reclaim, in_softirq
from ebpfwatch.triage.summary import Group, Single, Triage

__all__ = ["reasons", "tell", "to_json"]

_WIDTH = 100

_HEADLINES = {
    "this_bug": "THIS BUG: an inode object of ext4 was freed a second time",
    "suspected": "SUSPECTED: the life of an inode or dentry is damaged; no second free is shown",
    "undecided": "UNDECIDED: memory was corrupted; the log does not say by whom",
    "not_this_bug": "NOT THIS BUG: what the log complains about has other causes",
    "nothing_found": "NOTHING FOUND: no complaint of the kernel that is known here",
}


def tell(triage: Triage, name: str, resolve: Callable[[Frame], str] = str) -> str:
    """The whole report; ``resolve`` names a frame, with file and line where it can."""
    lines = [f"{name}: {_HEADLINES[triage.verdict]}", "", *_machine(triage), ""]
    events: list[Group | Single] = [*triage.groups, *triage.singles.values()]
    if events:
        lines.append("What the kernel said, in order:")
    for event in sorted(events, key=_when):
        lines += _group(event, resolve) if isinstance(event, Group) else _single(event)
    lines += _section(
        "What ebpfwatch itself said (of its probe's lines some may be a self-test's):",
        _own(triage)[:20],
    )
    lines += _section("Why:", reasons(triage))
    lines += _section("Modules:", modules(triage))
    lines += _section("What to do next:", next_steps(triage))
    lines += _section("Not read:", _unread(triage))
    return "\n".join(printable(line) for line in lines)


def _when(event: Group | Single) -> float:
    seconds = event.report.seconds if isinstance(event, Group) else event.seconds
    return seconds if seconds is not None else 0.0


def _section(title: str, sentences: list[str]) -> list[str]:
    if not sentences:
        return []
    lines = ["", title]
    for number, sentence in enumerate(sentences, 1):
        lines += textwrap.wrap(
            f"{number}. {sentence}.", _WIDTH, initial_indent="  ", subsequent_indent="     "
        )
    return lines


def _machine(triage: Triage) -> list[str]:
    build = f" ({triage.build})" if triage.build else ""
    parts = [f"kernel {triage.release or 'unknown'}{build}", triage.arch, triage.hardware]
    line = ", ".join(part for part in parts if part)
    if triage.taint:
        line += f"; tainted: {triage.taint}"
    if triage.first is not None and triage.last is not None:
        line += f"; log from {triage.first:.3f} s to {triage.last:.3f} s after boot"
    return textwrap.wrap(line, _WIDTH)


def _group(group: Group, resolve: Callable[[Frame], str]) -> list[str]:
    report = group.report
    lines = [f"  {_time(report.seconds)}{_times(group.count)}{report.title}"]
    lines.append(f"      {_who(group)}")
    if report.headline not in lines[0]:
        lines.append(f"      {report.headline}")
    stack = [frame for frame in report.frames if frame.sure]
    if stack:
        path = " < ".join(resolve(frame) for frame in stack)
        lines += textwrap.wrap(path, _WIDTH, initial_indent="      ", subsequent_indent="        ")
    lines += textwrap.wrap(
        f"-> {group.assessment.why}", _WIDTH, initial_indent="      ", subsequent_indent="         "
    )
    if group.assessment.weight is not Weight.PROVEN:  # of those the reasons say it
        for sentence in registers.describe(report):
            lines += textwrap.wrap(
                f"-> {sentence}", _WIDTH, initial_indent="      ", subsequent_indent="         "
            )
    return lines


def _who(group: Group) -> str:
    cpus = ", ".join(str(cpu) for cpu in sorted(group.cpus)[:16]) or "unknown"
    tasks = ", ".join(sorted(group.tasks, key=lambda t: -group.tasks[t])[:4]) or "unknown"
    pid = f" (pid {group.report.pid})" if group.report.pid >= 0 and group.count == 1 else ""
    where = ""
    if in_softirq(group.report):
        where = "; in a softirq: the current task is a bystander"
    elif in_reclaim(group.report):
        by = "kswapd" if "kswapd" in group.report.symbols else "a task that needs memory"
        where = f"; inside memory reclaim (shrink_slab, by {by})"
    return f"CPU {cpus}; task {tasks}{pid}{where}"


def _single(single: Single) -> list[str]:
    return [
        f"  {_time(single.seconds)}{_times(single.count)}{single.known.kind}: {single.text}",
        f"      -> {single.known.says}",
    ]


def _time(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.3f} s: "


def _times(count: int) -> str:
    return "once: " if count == 1 else f"{count} times: "


# -- why


def reasons(triage: Triage) -> list[str]:
    """The argument, step by step, from what the log shows."""
    said: list[str] = []
    proven = triage.heaviest(Weight.PROVEN)
    suspected = triage.heaviest(Weight.SUSPECTED)
    if suspected is not None:
        said.append(_about_precursor(suspected))
    if proven is not None:
        said += _about_proof(proven)
        if suspected is not None:
            said += _lead(suspected, proven)
    if _own(triage) and proven is None:
        said.append(
            "ebpfwatch saw it in the kernel: the kernel's own log has no report of the second free"
        )
    if triage.verdict == "undecided":
        said.append(
            "a second free of an inode does this to whoever comes next, but a wild write, bad"
            " memory or any other use after free does it, too: this log alone cannot tell"
        )
    if triage.verdict == "not_this_bug":
        said.append(
            "none of it is in the code that frees inodes, and the slab, its lists and its pages"
            " were not found damaged"
        )
        said += _pressure(triage)
    if triage.verdict == "nothing_found":
        said += _about_nothing(triage)
    return said


def _about_nothing(triage: Triage) -> list[str]:
    """What makes that worth nothing: there was nothing to be found in."""
    if not triage.counts.lines:
        return ["the log is empty"]
    if triage.first is None and not triage.release:
        return ["no line has the time since boot, or the version: it may be no log of a kernel"]
    return []


def _about_precursor(group: Group) -> str:
    report = group.report
    inside = " while memory was being reclaimed" if in_reclaim(report) else ""
    often = f"{group.count} times" if group.count > 1 else "once in this log"
    return f"{report.kind} {often}{inside}: {group.assessment.why}"


def _about_proof(group: Group) -> list[str]:
    report = group.report
    said = [f"{report.kind} {report.at or ''}: {group.assessment.why}", *fault.explain(report)]
    if in_softirq(report):
        victim = report.victim_frames[0].symbol if report.victim_frames else ""
        doing = f". It was in {victim} when the interrupt came" if victim else ""
        said.append(
            f"the free ran in RCU's softirq, after a grace period, on the stack of whoever was"
            f" running: {report.comm or 'the current task'} is a victim, not the culprit{doing}"
        )
    for heading, frames in report.other_stacks.items():
        if frames:
            stack = " < ".join(str(frame) for frame in frames[:6])
            said.append(f"the kernel also recorded where the object was {heading}: {stack}")
    return said


def _lead(suspected: Group, proven: Group) -> list[str]:
    before, after = suspected.report.seconds, proven.report.seconds
    if before is None or after is None or after < before:
        return []
    return [
        f"{after - before:.2f} s lie between the first {suspected.report.kind} and the second free:"
        " dentries and inodes die together, so one mistake can show in both"
    ]


def _pressure(triage: Triage) -> list[str]:
    kinds = [k for k in triage.kinds if k in ("oom", "page_allocation_failure")]
    if not kinds:
        return []
    return ["memory was short: this bug shows most often then, but that alone is no sign of it"]


def _own(triage: Triage) -> list[str]:
    return triage.findings + [f"probe: {verdict.text()}" for verdict in triage.traced]


def _unread(triage: Triage) -> list[str]:
    counts, said = triage.counts, []
    if triage.more_groups:
        said.append(
            f"{triage.more_groups} reports of further kinds: only the first 128 are told apart"
        )
    if counts.cut:
        said.append(f"the rest of {counts.cut} lines that were too long")
    if counts.unreadable:
        said.append(f"{counts.unreadable} records could not be read")
    if counts.garbled:
        said.append(f"bytes that are no text, in {counts.garbled} lines")
    if counts.foreign:
        said.append(f"{counts.foreign} lines that other programs wrote")
    for line, count in triage.repeated.items():
        said.append(
            f'this line, not known here, came at least {count} times (# is a number): "{line}";'
            " find out who prints it"
        )
    return said


# -- JSON


def to_json(triage: Triage) -> dict[str, Any]:
    """The same for programs; stable keys, plain types."""
    return {
        "schema": 1,
        "verdict": triage.verdict,
        "kernel": triage.release,
        "arch": triage.arch,
        "taint": triage.taint,
        "kinds": dict(sorted(triage.kinds.items())),
        "reports": [_report(group) for group in triage.groups],
        "reasons": reasons(triage),
        "ebpfwatch": _own(triage),
        "out_of_tree": [m.name for m in triage.modules.values() if m.foreign],
        "next": next_steps(triage),
        "lines": triage.counts.lines,
        "cut": triage.counts.cut,
        "unreadable": triage.counts.unreadable,
        "garbled": triage.counts.garbled,
        "foreign": triage.counts.foreign,
    }


def _report(group: Group) -> dict[str, Any]:
    report = group.report
    return {
        "kind": report.kind,
        "weight": group.assessment.weight.name.lower(),
        "why": group.assessment.why,
        "headline": report.headline,
        "count": group.count,
        "first_seconds": report.seconds,
        "last_seconds": group.last,
        "cpus": sorted(group.cpus),
        "tasks": sorted(group.tasks),
        "where": report.where,
        "at": str(report.at) if report.at else "",
        "fault_address": report.fault_address,
        "instruction": registers.describe(report),
        "cache": report.cache,
        "stack": [str(frame) for frame in report.frames],
        "softirq": in_softirq(report),
        "reclaim": in_reclaim(report),
        "precursor": report.known.relation is Relation.PRECURSOR,
    }
