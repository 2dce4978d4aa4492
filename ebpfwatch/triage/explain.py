"""A triage told to a person: what the log holds, what it means, why, and what to do next."""

from __future__ import annotations

import textwrap
from typing import Any, Callable

from ebpfwatch.kernellog.known import Relation
from ebpfwatch.kernellog.report import Frame
from ebpfwatch.text.printable import printable
from ebpfwatch.triage import fault, registers
from ebpfwatch.triage.advice import modules, next_steps
from ebpfwatch.triage.assess import Weight, in_reclaim, in_softirq, own_symbols
from ebpfwatch.triage.causes import accused, causes, in_a_word
from ebpfwatch.triage.summary import Group, Single, Triage

__all__ = ["WIDTH", "headline", "in_short", "reasons", "tell", "to_json", "unread"]

WIDTH = 100


def tell(
    triage: Triage,
    name: str,
    resolve: Callable[[Frame], str] = str,
    width: int = WIDTH,
    found: list[str] | None = None,
) -> str:
    """The whole report; ``resolve`` names a frame, with file and line where it can; ``found`` is
    what was found in the files of modules.
    """
    lines = [*textwrap.wrap(f"{name}: {headline(triage)}", width), ""]
    lines += _paragraph("In short: " + " ".join(f"{one}." for one in in_short(triage)), width)
    machine = _machine(triage, width)
    lines += ["", *machine] if machine else []
    events: list[Group | Single] = [*triage.groups, *triage.singles.values()]
    if events:
        lines += ["", "What the kernel said, in order:"]
    for event in sorted(events, key=_when):
        lines += _group(event, resolve, width) if isinstance(event, Group) else _single(event)
    own_lines = _own(triage)[:20]
    title = "What ebpfwatch itself said (of its probe's lines some may be a self-test's):"
    lines += _section(title, own_lines, width)
    lines += _section("Why:", reasons(triage), width)
    lines += _section("What mistake looks like this:", causes(triage), width)
    lines += _section("Modules:", modules(triage), width)
    lines += _section("In the files of the modules:", found or [], width)
    lines += _section("Lines that are not known here:", _repeated(triage), width)
    lines += _section("What to do next:", next_steps(triage), width)
    lines += _section(
        "Not in the log, or not read:",
        [*triage.missing, *triage.begins_late, *unread(triage)],
        width,
    )
    return "\n".join(printable(line) for line in lines)


def _paragraph(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width)


# -- the first lines


def headline(triage: Triage) -> str:
    """The verdict, what was damaged, and who is connected with it, on one line."""
    verdict = triage.verdict
    who = "".join(f"; {name} {how}" for name, how in accused(triage)[:1])
    if verdict == "this_bug":
        return f"THIS BUG: an inode object of ext4 was freed a second time{who}"
    if verdict == "suspected":
        if triage.hardware_first:
            why = "a bit flipped" if triage.flipped else "the machine's hardware complained, too"
            return f"SUSPECTED, hardware first: {why}{who}"
        thing = _thing(triage, Weight.SUSPECTED) or "an inode or dentry"
        return (
            f"SUSPECTED: the life of {thing} is damaged; no second free of an ext4 inode is"
            f" shown{who}"
        )
    if verdict == "undecided":
        event = _event(triage)
        if event:
            return f"UNDECIDED: {event}{who}"
        if triage.slab_damaged:
            return f"UNDECIDED: memory was corrupted; the log does not say by whom{who}"
        return (
            "UNDECIDED: the kernel crashed where an earlier second free may have led it; the log"
            f" does not say why{who}"
        )
    if verdict == "not_this_bug":
        return "NOT THIS BUG: what the log complains about has other causes"
    if triage.counts.behind and not triage.may_be_no_log:
        return "NOTHING FOUND, but kernel messages stand behind a prefix that is not understood"
    if not triage.counts.lines:
        return "NOTHING FOUND: the log is empty"
    if triage.may_be_no_log:
        return f"NOTHING FOUND: this may be no kernel log: {_NO_LOG}"
    return "NOTHING FOUND: no complaint of the kernel that is known here"


_NO_LOG = "no line has the time since boot, or the version of the kernel"


def _event(triage: Triage) -> str:
    """What happened, where the first report of an undecided log says more than that."""
    heaviest = triage.heaviest(Weight.UNDECIDED)
    return heaviest.assessment.event if heaviest is not None else ""


def _thing(triage: Triage, weight: Weight) -> str:
    """What was damaged, by the first report of that weight that says it."""
    things = [g.assessment.thing for g in triage.groups if g.assessment.weight is weight]
    named = [thing for thing in things if thing]
    if named:
        return named[0]
    suspects = [s.known.kind for s in triage.singles.values()]
    return "a dentry" if "dentry_in_use" in suspects else ""


def in_short(triage: Triage) -> list[str]:
    """Three sentences for a support engineer: what happened, who did it, what to do first."""
    steps = next_steps(triage)
    first = steps[0] if steps else ""
    said = [_what(triage), in_a_word(triage), _whose(triage)]
    if first:
        said.append(f"First step: {first}")
    return [sentence for sentence in said if sentence]


def _what(triage: Triage) -> str:
    verdict = triage.verdict
    heaviest = triage.heaviest(triage.weight) if triage.weight is not None else None
    if triage.hardware_first and verdict == "suspected":
        return (
            "The log has a crash that looks like damage to inodes, and signs of bad hardware, which"
            " can cause the same"
        )
    if verdict == "this_bug":
        return "The kernel freed the memory of an ext4 file's inode that was free already"
    if verdict == "suspected":
        thing = _thing(triage, Weight.SUSPECTED) or "an inode or dentry"
        often = (
            f" ({heaviest.count} reports)" if heaviest is not None and heaviest.count > 1 else ""
        )
        return (
            f"The kernel found {thing} in a state that must not be{often}; this is what comes"
            " before an inode is freed twice, or what follows it"
        )
    if verdict == "undecided":
        event = _event(triage)
        if event:
            return (
                f"{event[0].upper()}{event[1:]}. Whether an inode that was freed twice is the"
                " reason, it does not say either"
            )
        return (
            "The kernel crashed on damaged memory, or in code that works on inodes; whether an"
            " inode that was freed twice is the reason, the log does not say"
        )
    if verdict == "not_this_bug":
        kinds = ", ".join(f"{count} x {kind}" for kind, count in list(triage.kinds.items())[:4])
        return f"The log has complaints ({kinds}), but none of them is this bug"
    if triage.counts.behind and not triage.may_be_no_log:
        have = "line has a message" if triage.counts.behind == 1 else "lines have messages"
        return (
            f"{triage.counts.behind} {have} of a kernel behind a prefix that this"
            f' program does not understand, such as "{triage.counts.example[:60]}"'
        )
    if not triage.counts.lines:
        return "The log is empty"
    said = "No message of the kernel that is known here stands in the log"
    return f"This may be no kernel log: {_NO_LOG}. {said}" if triage.may_be_no_log else said


def _whose(triage: Triage) -> str:
    if triage.verdict in ("not_this_bug", "nothing_found"):
        return ""
    named = accused(triage)
    if named:
        return f"The module {named[0][0]} {named[0][1]}: ask its maker first"
    proven = triage.heaviest(Weight.PROVEN)
    if proven is not None and in_softirq(proven.report):
        task = proven.report.comm or "the task"
        return (
            f"{task}, which was running, has nothing to do with it; who made the mistake is not in"
            " the log"
        )
    foreign = triage.foreign()
    if foreign:
        names = ", ".join(module.name for module in foreign[:3])
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        return (
            "Who made the mistake is not in the log; modules from outside the kernel were loaded"
            f" ({names}{more}), and one of them is more likely than the kernel itself"
        )
    return "Who made the mistake is not in the log"


# -- what the kernel said


def _when(event: Group | Single) -> float:
    seconds = event.report.seconds if isinstance(event, Group) else event.seconds
    return seconds if seconds is not None else 0.0


def _section(title: str, sentences: list[str], width: int) -> list[str]:
    if not sentences:
        return []
    lines = ["", title]
    for number, sentence in enumerate(sentences, 1):
        lines += textwrap.wrap(
            f"{number}. {sentence}.", width, initial_indent="  ", subsequent_indent="     "
        )
    return lines


def _machine(triage: Triage, width: int) -> list[str]:
    if triage.verdict == "nothing_found" and (not triage.counts.lines or triage.may_be_no_log):
        return []  # there is nothing to say of a machine
    build = f" ({triage.build})" if triage.build else ""
    parts = [f"kernel {triage.release or 'unknown'}{build}", triage.arch, triage.hardware]
    line = ", ".join(part for part in parts if part)
    if triage.taint:
        line += f"; tainted: {triage.taint}"
    if triage.first is not None and triage.last is not None:
        first, last = f"{triage.first:.3f} s", f"{triage.last:.3f} s"
        line += f"; log of {first}" if first == last else f"; log from {first} to {last}"
        line += " after boot"
    return textwrap.wrap(line, width)


def _group(group: Group, resolve: Callable[[Frame], str], width: int) -> list[str]:
    report = group.report
    lines = [f"  {_time(report.seconds)}{_times(group.count)}{report.title}"]
    lines.append(f"      {_who(group)}")
    if report.headline not in lines[0]:
        lines += _indented(report.headline, width)
    if report.kind == "oom":
        for text in report.more[:1]:
            lines += _indented(text, width)
    stack = [frame for frame in report.frames if frame.sure]
    if stack:
        path = " < ".join(resolve(frame) for frame in stack)
        lines += textwrap.wrap(path, width, initial_indent="      ", subsequent_indent="        ")
    lines += _indented(f"-> {group.assessment.why}", width)
    if group.assessment.weight is not Weight.PROVEN:  # of those the reasons say it
        for sentence in [*registers.describe(report), *_other_stacks(group)]:
            lines += _indented(f"-> {sentence}", width)
    return lines


def _indented(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="      ", subsequent_indent="         ")


def _who(group: Group) -> str:
    report = group.report
    cpus = ", ".join(str(cpu) for cpu in sorted(group.cpus)[:16]) or "unknown"
    tasks = ", ".join(sorted(group.tasks, key=lambda t: -group.tasks[t])[:4]) or "unknown"
    pid = f" (pid {report.pid})" if report.pid >= 0 and group.count == 1 else ""
    where = ""
    if in_softirq(report):
        where = "; in a softirq: the current task is a bystander"
    elif in_reclaim(report):
        kswapd = "kswapd" in report.symbols or report.comm.startswith("kswapd")
        where = f"; inside memory reclaim (shrink_slab, by {'kswapd' if kswapd else 'this task'})"
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


def _other_stacks(group: Group) -> list[str]:
    said = []
    for heading, frames in group.report.other_stacks.items():
        if frames:
            stack = " < ".join(str(frame) for frame in frames[:8])
            said.append(f"the kernel also recorded where the object was {heading}: {stack}")
    return said


# -- why


def reasons(triage: Triage) -> list[str]:
    """The argument, step by step, from what the log shows."""
    said: list[str] = []
    if triage.hardware_first and triage.flipped:
        said.append(triage.flipped)
    elif triage.hardware_first:
        said.append(
            "the hardware complained in this log, or by the taint M: a bit that flips in a pointer"
            " leaves the same picture, so no report here proves a second free"
        )
    proven = triage.heaviest(Weight.PROVEN)
    suspected = triage.heaviest(Weight.SUSPECTED)
    if suspected is not None:
        said.append(_about_precursor(suspected))
    if proven is not None:
        said += _about_proof(proven)
        if suspected is not None:
            said += _lead(suspected, proven)
    for single in triage.singles.values():
        if single.known.relation is Relation.PRECURSOR:
            said.append(f"{single.known.kind} ({single.text[:100]}): {single.known.says}")
    if _own(triage) and proven is None:
        said.append(
            "ebpfwatch saw it in the kernel: the kernel's own log has no report of the second free"
        )
    said += _about_verdict(triage)
    return said


def _about_verdict(triage: Triage) -> list[str]:
    if triage.verdict == "undecided":
        before = [
            "memory was found damaged before this log begins (taint B): what it complains of may be"
            " what followed"
        ]
        return [
            *(before if triage.damage_missing else []),
            "a second free of an inode does this to whoever comes next, but a wild write, bad"
            " memory or any other use after free does it, too: this log alone cannot tell",
        ]
    if triage.verdict == "not_this_bug":
        return [*_not_damaged(triage), *_pressure(triage)]
    return _about_nothing(triage) if triage.verdict == "nothing_found" else []


def _not_damaged(triage: Triage) -> list[str]:
    if triage.slab_damaged:
        return [
            "the damage that the kernel reports is that of another object, or it does not say of"
            " which"
        ]
    if triage.counts.behind:
        return []  # what stands behind an unknown prefix was not judged
    return [
        "no report that could be read says that an inode, a dentry, the slab, one of its lists or a"
        " page was damaged"
    ]


def _about_nothing(triage: Triage) -> list[str]:
    """What makes that worth nothing: there was nothing to be found in."""
    counts = triage.counts
    if not counts.lines:
        return ["the log is empty"]
    if counts.behind:
        return [
            f"a kernel's message stands behind something else in {_many(counts.behind, 'line')};"
            f' the first is: "{counts.example}"',
            *([f"{_NO_LOG}: it may be no log of a kernel"] if triage.may_be_no_log else []),
        ]
    if triage.may_be_no_log:
        return [f"{_NO_LOG}: it may be no log of a kernel"]
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
    return said + _other_stacks(group)


def _lead(suspected: Group, proven: Group) -> list[str]:
    before, after = suspected.last, proven.report.seconds
    first = suspected.report.seconds
    if before is None or after is None or first is None or after < before:
        return []
    which = "the first" if suspected.count == 1 else "the last"
    return [
        f"{after - before:.2f} s lie between {which} {suspected.report.kind} in this log and the"
        " second free; whether others came before the log begins it does not say"
    ]


def _pressure(triage: Triage) -> list[str]:
    kinds = [k for k in triage.kinds if k in ("oom", "page_allocation_failure")]
    if not kinds:
        return []
    return ["memory was short: this bug shows most often then, but that alone is no sign of it"]


def _own(triage: Triage) -> list[str]:
    return triage.findings + [f"probe: {verdict.text()}" for verdict in triage.traced]


def _repeated(triage: Triage) -> list[str]:
    """Lines that came again and again, before the damage if that is known."""
    damage = [g.report.seconds for g in triage.groups if g.assessment.weight > Weight.OTHER]
    first = min((s for s in damage if s is not None), default=None)
    said = []
    for line in triage.repeated[:3]:
        before = first is not None and line.seconds is not None and line.seconds < first
        when = ", from before the first damage on" if before else ""
        said.append(
            f'came at least {line.count} times (numbers differ){when}: "{line.text}". Find out who'
            " prints it: --modules DIR looks it up in the files of the modules"
        )
    return said


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def unread(triage: Triage) -> list[str]:
    """What of the file was not read, or not as it stood."""
    counts, said = triage.counts, []
    if triage.more_groups:
        said.append(
            f"{triage.more_groups} reports of further kinds: only the first"
            f" {len(triage.groups)} are told apart"
        )
    facts = {
        f"the rest of {_many(counts.cut, 'line')} too long to be read whole": counts.cut,
        f"{_many(counts.unreadable, 'record')} could not be read": counts.unreadable,
        f"bytes that are no text, in {_many(counts.garbled, 'line')}": counts.garbled,
        f"{_many(counts.foreign, 'line')} that other programs wrote": counts.foreign,
        f"the newest line came first: {triage.records} records were turned around": counts.turned,
        "the newest line comes first, and the log is too long to be turned around": (
            counts.upside_down
        ),
        f'the prefix "{counts.learned}" was taken off, because many lines have one alike': (
            counts.learned
        ),
        f"the file is damaged: {counts.damaged}": counts.damaged,
    }
    said += [fact for fact, true in facts.items() if true]
    if counts.behind and triage.verdict != "nothing_found":
        said.append(
            f"{_many(counts.behind, 'line')} with a kernel's message behind a prefix that is not"
            f' understood, such as "{counts.example}"'
        )
    return said


# -- JSON


def to_json(triage: Triage) -> dict[str, Any]:
    """The same for programs; stable keys, plain types."""
    return {
        "schema": 2,
        "verdict": triage.verdict,
        "headline": headline(triage),
        "in_short": in_short(triage),
        "kernel": triage.release,
        "arch": triage.arch,
        "taint": triage.taint,
        "hardware_first": triage.hardware_first,
        "kinds": dict(sorted(triage.kinds.items())),
        "reports": [_report(group) for group in triage.groups],
        "reasons": reasons(triage),
        "causes": causes(triage),
        "accused": [{"module": name, "because": how} for name, how in accused(triage)],
        "ebpfwatch": _own(triage),
        "out_of_tree": [module.name for module in triage.foreign()],
        "repeated": [{"text": r.text, "count": r.count} for r in triage.repeated],
        "next": next_steps(triage),
        "missing": [*triage.missing, *triage.begins_late],
        "unread": unread(triage),
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
        "thing": group.assessment.thing,
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
        "function": (own_symbols(report) or [""])[0],
        "other_stacks": {k: [str(f) for f in v] for k, v in report.other_stacks.items() if v},
        "softirq": in_softirq(report),
        "reclaim": in_reclaim(report),
        "precursor": report.known.relation is Relation.PRECURSOR,
    }
