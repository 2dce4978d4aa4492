"""A whole log, read once and summed up: which reports, how often, and what they amount to.

Memory is bounded whatever the log holds: reports are grouped by what they say, groups, tasks and
repeated lines are limited in number, and what did not fit is counted.
"""

from __future__ import annotations

import dataclasses
import io
import re

from ebpfwatch.kernellog.known import KnownMessage, recognise
from ebpfwatch.kernellog.oops import Parser
from ebpfwatch.kernellog.report import Module, Record, Report
from ebpfwatch.kernellog.traced import TracedVerdict, traced
from ebpfwatch.triage.assess import Assessment, Weight, assess
from ebpfwatch.triage.records import Counts, records

__all__ = ["VERDICTS", "Group", "Single", "Triage", "read"]

_MOST_GROUPS = 128
_MOST_TASKS = 32
_MOST_TRACED = 400  # lines of ebpfwatch itself that are kept: some four a verdict
_MOST_LINES = 512  # different lines whose repetitions are counted
_REPEATED = 20  # times: below that a repeated line is not worth a word

#: What the probes see of a second free; their other verdicts are context.
_PROOFS = ("double_free", "double_destroy", "double_evict", "free_while_alive")

#: A finding in the kernel's log, as ``sinks.kmsg`` writes it.
_FINDING = re.compile(r"(?m)^ebpfwatch: (\w+) \((confirmed|probable|undecidable)\); ino \d")

#: What a log can be, from the heaviest report in it.
VERDICTS = {
    None: "nothing_found",
    Weight.OTHER: "not_this_bug",
    Weight.UNDECIDED: "undecided",
    Weight.SUSPECTED: "suspected",
    Weight.PROVEN: "this_bug",
}


@dataclasses.dataclass
class Group:
    """Reports that say the same; ``report`` is the first of them."""

    report: Report
    assessment: Assessment
    count: int = 0
    cpus: set[int] = dataclasses.field(default_factory=set)
    tasks: dict[str, int] = dataclasses.field(default_factory=dict)
    last: float | None = None

    def add(self, report: Report) -> None:
        """One more of them."""
        self.count += 1
        self.last = report.seconds if report.seconds is not None else self.last
        if report.cpu >= 0 and len(self.cpus) < 1024:
            self.cpus.add(report.cpu)
        if report.comm and (report.comm in self.tasks or len(self.tasks) < _MOST_TASKS):
            self.tasks[report.comm] = self.tasks.get(report.comm, 0) + 1


@dataclasses.dataclass
class Single:
    """A kind of one-line messages: the first, and how many."""

    known: KnownMessage
    text: str
    seconds: float | None
    count: int = 0


@dataclasses.dataclass
class Triage:
    """What the log holds.

    ``repeated`` are lines that nobody knows, by how often they came, digits taken out;
    ``more_groups`` counts reports that had no room.  ``traced`` are the verdicts that the probes
    of ebpfwatch printed themselves, where the kernel dumped its trace buffer; ``findings`` the
    lines that its daemon wrote into the kernel's log.
    """

    counts: Counts = dataclasses.field(default_factory=Counts)
    groups: list[Group] = dataclasses.field(default_factory=list)
    singles: dict[str, Single] = dataclasses.field(default_factory=dict)
    kinds: dict[str, int] = dataclasses.field(default_factory=dict)
    modules: dict[str, Module] = dataclasses.field(default_factory=dict)
    release: str = ""
    build: str = ""
    arch: str = ""
    hardware: str = ""
    taint: str = ""
    first: float | None = None
    last: float | None = None
    more_groups: int = 0
    traced: list[TracedVerdict] = dataclasses.field(default_factory=list)
    findings: list[str] = dataclasses.field(default_factory=list)
    repeated: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def weight(self) -> Weight | None:
        """The heaviest report's; one-line messages about the life of inodes count as suspicion."""
        weights = [group.assessment.weight for group in self.groups]
        for single in self.singles.values():
            suspect = single.known.relation.value == "precursor"
            weights.append(Weight.SUSPECTED if suspect else Weight.OTHER)
        for verdict in self.traced:
            proof = verdict.verdict in _PROOFS
            weights.append(Weight.PROVEN if proof else Weight.SUSPECTED)
        for verdict_word, confidence in _FINDING.findall("\n".join(self.findings)):
            proof = verdict_word in _PROOFS and confidence != "undecidable"
            weights.append(Weight.PROVEN if proof else Weight.SUSPECTED)
        return max(weights, default=None)

    @property
    def verdict(self) -> str:
        """One of ``VERDICTS``."""
        return VERDICTS[self.weight]

    def heaviest(self, weight: Weight) -> Group | None:
        """The first group of that weight."""
        return next((g for g in self.groups if g.assessment.weight is weight), None)


def read(stream: io.BufferedReader) -> Triage:
    """Read a log to its end; raises only ``OSError`` of the stream."""
    result = Triage()
    parser = Parser()
    groups: dict[tuple[object, ...], Group] = {}
    lines = _Repetitions()
    own: list[str] = []
    for record in records(stream, result.counts):
        _note_time(result, record)
        known = recognise(record.text)
        if "ebpfwatch" in record.text:
            _note_own(result, own, record.text)
        if known is not None:
            _note(result, record, known)
        elif not parser.busy:
            lines.add(record.text)
            if record.text.startswith("Linux version ") and not result.release:
                result.release = record.text.split(" ", 3)[2][:64]
        for report in parser.feed(record, known):
            _group(result, groups, report)
    for report in parser.close():
        _group(result, groups, report)
    result.repeated = lines.most()
    result.traced = list(traced(own))
    return result


def _note_own(result: Triage, traced_lines: list[str], text: str) -> None:
    """What ebpfwatch itself said: a finding in the kernel's log, or a line of its probe."""
    if _FINDING.match(text):
        if len(result.findings) < _MOST_TRACED:
            result.findings.append(text[:1000])
    elif len(traced_lines) < _MOST_TRACED:
        traced_lines.append(text[:400])


def _note_time(result: Triage, record: Record) -> None:
    if record.seconds is not None:
        result.first = record.seconds if result.first is None else result.first
        result.last = record.seconds


def _note(result: Triage, record: Record, known: KnownMessage) -> None:
    result.kinds[known.kind] = result.kinds.get(known.kind, 0) + 1
    if known.opens:
        return
    single = result.singles.get(known.kind)
    if single is None:
        single = Single(known, record.text[:300], record.seconds)
        result.singles[known.kind] = single
    single.count += 1


def _group(result: Triage, groups: dict[tuple[object, ...], Group], report: Report) -> None:
    key = (report.kind, report.where, str(report.at), report.cache, tuple(report.symbols[:6]))
    group = groups.get(key)
    if group is None:
        if len(groups) >= _MOST_GROUPS:
            result.more_groups += 1
            return
        group = groups[key] = Group(report, assess(report))
        result.groups.append(group)
    group.add(report)
    _machine(result, report)


def _machine(result: Triage, report: Report) -> None:
    for name in ("release", "build", "arch", "hardware"):
        if getattr(report, name) and not (name == "release" and result.release):
            setattr(result, name, getattr(result, name) or getattr(report, name))
    result.taint = report.taint or result.taint
    if len(result.modules) < 1024:
        result.modules.update(report.modules)


class _Repetitions:
    """The lines that come most often, in bounded memory (Misra and Gries, 1982).

    A line that makes up more than 1/512 of the log is never missed; counts are lower bounds.
    """

    _DIGITS = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|\d+")

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, text: str) -> None:
        line = self._DIGITS.sub("#", text[:160])
        if line in self._counts or len(self._counts) < _MOST_LINES:
            self._counts[line] = self._counts.get(line, 0) + 1
            return
        self._counts = {known: count - 1 for known, count in self._counts.items() if count > 1}

    def most(self) -> dict[str, int]:
        often = sorted(self._counts.items(), key=lambda item: -item[1])
        return {line: count for line, count in often[:3] if count >= _REPEATED}
