"""A whole log, read once and summed up boot by boot: which reports, how often, what they amount to.

Memory is bounded whatever the log holds: reports are grouped by what they say; groups, tasks, boots
and repeated lines are limited in number, and what did not fit is counted.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable

from ebpfwatch.kernellog.known import KNOWN, OOM_KILLED, KnownMessage, Relation, recognise
from ebpfwatch.kernellog.oops import Parser
from ebpfwatch.kernellog.report import Module, Record, Report
from ebpfwatch.kernellog.traced import TracedVerdict, traced
from ebpfwatch.triage.assess import ASIDE, Assessment, Weight, assess
from ebpfwatch.triage.records import Counts, records
from ebpfwatch.triage.registers import one_bit_off, poison

__all__ = ["VERDICTS", "Group", "Repeated", "Single", "Triage", "read"]

_MOST_GROUPS = 128
_MOST_IN_ALL = 256  # groups of all boots of one log
_MOST_BOOTS = 64
_MOST_TASKS = 32
_MOST_TRACED = 400  # lines of ebpfwatch itself that are kept: some four a verdict
_MOST_LINES = 512  # different lines whose repetitions are counted
_REPEATED = 20  # times: below that a repeated line is not worth a word
_KEPT_LINES = 8
_FEW = 20  # lines
_BOOTED = 300.0  # seconds: a log that begins later does not begin with the boot

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
_DAMAGED = ("bad_page", "already_free", "slab_corruption", "wrong_cache", "kasan", "kfence")
#: Letters of the taint, and the kinds of reports that leave them (kernel/panic.c: taint_flags).
_TAINTS = {
    "D": ("an oops or BUG()", ("oops", "kernel_bug", "head_lost", "slab_corruption")),
    "W": (
        "a warning",
        (
            *("warning", "dentry_free", "dentry_state", "inode_links", "inode_state", "refcount"),
            *("list_corruption", "wrong_cache", "rcu_head_twice"),
        ),
    ),
    "B": ("a bad page, or damage that the slab or a sanitizer found", _DAMAGED),
    "M": ("a machine check: the hardware complained", ("hardware",)),
    "L": ("a soft lockup", ("soft_lockup",)),
}
_DAMAGE_KINDS = {
    known.kind for known in KNOWN if known.relation in (Relation.DAMAGE, Relation.PRECURSOR)
}
_MODULE_OF_FRAME = re.compile(r"\+0x[0-9a-f]+/0x[0-9a-f]+ \[([\w-]+)")
_FREE_PAGES = re.compile(r"^ ?free:(\d+) ")


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
class Repeated:
    """A line that nobody here knows: as it came first, how often, and when first."""

    text: str
    count: int
    seconds: float | None


@dataclasses.dataclass
class Single:
    """A kind of one-line messages: the first, and how many."""

    known: KnownMessage
    text: str
    seconds: float | None
    order: int
    count: int = 0


@dataclasses.dataclass
class Triage:
    """What one boot's log holds.

    ``repeated`` are lines that nobody here knows, the most frequent first; ``more_groups`` counts
    reports that had no room.  ``traced`` are the verdicts that the probes of ebpfwatch printed
    themselves, where the kernel dumped its trace buffer; ``findings`` the lines that its daemon
    wrote into the kernel's log.  ``at_work`` are the modules that any frame of any report names.
    """

    counts: Counts = dataclasses.field(default_factory=Counts)
    groups: list[Group] = dataclasses.field(default_factory=list)
    singles: dict[str, Single] = dataclasses.field(default_factory=dict)
    kinds: dict[str, int] = dataclasses.field(default_factory=dict)
    modules: dict[str, Module] = dataclasses.field(default_factory=dict)
    modules_cut: bool = False
    #: the line "Modules linked in:" is in the log, whatever is on it
    modules_listed: bool = False
    at_work: set[str] = dataclasses.field(default_factory=set)
    release: str = ""
    build: str = ""
    arch: str = ""
    hardware: str = ""
    taint: str = ""
    first: float | None = None
    last: float | None = None
    records: int = 0
    more_groups: int = 0
    #: what was there before the first report, by its own number and taint, and is not in the log
    missing: list[str] = dataclasses.field(default_factory=list)
    #: the taint says that memory was found damaged, in a report that is not in the log
    damage_missing: bool = False
    free_pages: int | None = None
    #: a fault address that is a pointer with one bit turned over, in a sentence
    flipped: str = ""
    #: a report whose address is one that only freed memory holds
    poisoned: bool = False
    traced: list[TracedVerdict] = dataclasses.field(default_factory=list)
    findings: list[str] = dataclasses.field(default_factory=list)
    repeated: list[Repeated] = dataclasses.field(default_factory=list)

    @property
    def evidence(self) -> Weight | None:
        """The heaviest report's weight, whatever the hardware said."""
        weights = [group.assessment.weight for group in self.groups]
        for single in self.singles.values():
            suspect = single.known.relation is Relation.PRECURSOR
            weights.append(Weight.SUSPECTED if suspect else Weight.OTHER)
        if self.damage_missing:
            weights.append(Weight.UNDECIDED)
        own = self.own_evidence
        return max([*weights, own] if own else weights, default=None)

    @property
    def own_evidence(self) -> Weight | None:
        """What ebpfwatch itself saw: its probes in the kernel, or its daemon."""
        weights = []
        for verdict in self.traced:
            proof = verdict.verdict in _PROOFS
            weights.append(Weight.PROVEN if proof else Weight.SUSPECTED)
        for verdict_word, confidence in _FINDING.findall("\n".join(self.findings)):
            proof = verdict_word in _PROOFS and confidence != "undecidable"
            weights.append(Weight.PROVEN if proof else Weight.SUSPECTED)
        return max(weights, default=None)

    @property
    def hardware_first(self) -> bool:
        """The hardware complained, or a bit flipped, and a report could be its doing."""
        complained = self._complained_before or "M" in self.taint or bool(self.flipped)
        return complained and (self.evidence or Weight.OTHER) >= Weight.UNDECIDED

    @property
    def _complained_before(self) -> bool:
        """Whether the hardware complained, and not only after the last report."""
        single = self.singles.get("hardware")
        heavy = [g.report.order for g in self.groups if g.assessment.weight >= Weight.UNDECIDED]
        return single is not None and single.order < max(heavy, default=single.order + 1)

    @property
    def weight(self) -> Weight | None:
        """The heaviest, but no proof from a machine whose hardware complained: a flipped bit in a
        pointer looks the same.  What ebpfwatch itself saw does not depend on that.
        """
        found = self.evidence
        if found is Weight.PROVEN and self.hardware_first and self.own_evidence is not found:
            return Weight.SUSPECTED
        return found

    @property
    def verdict(self) -> str:
        """One of ``VERDICTS``."""
        return VERDICTS[self.weight]

    @property
    def slab_damaged(self) -> bool:
        """Whether the slab, its lists or its pages were found damaged, or something was used after
        its free.
        """
        return not _DAMAGE_KINDS.isdisjoint(self.kinds) or "B" in self.taint or self.poisoned

    @property
    def begins_late(self) -> list[str]:
        """That the log does not begin with the boot, in a sentence, where it has reports."""
        if not self.groups or self.first is None or self.first <= _BOOTED:
            return []
        return [f"the log begins {self.first:.0f} s after boot: what came before is not in it"]

    def heaviest(self, weight: Weight) -> Group | None:
        """The first group of that weight."""
        return next((g for g in self.groups if g.assessment.weight is weight), None)

    @property
    def first_freer(self) -> list[tuple[str, list[str]]]:
        """Stacks of the first free or the allocation that the log itself holds, by heading."""
        found = []
        for group in self.groups:
            for heading, frames in group.report.other_stacks.items():
                if frames:
                    found.append((heading, [str(frame) for frame in frames[:8]]))
        return found

    @property
    def may_be_no_log(self) -> bool:
        """Whether nothing shows that a kernel wrote it.  More than one line with a kernel's message
        behind something else shows a form that is not understood; one in many may be a quotation.
        """
        counts = self.counts
        shown = counts.behind > 1 or counts.behind == 1 and counts.lines <= _FEW
        timed = self.first is not None
        return self.verdict == "nothing_found" and not (shown or timed or self.release)

    @property
    def outside(self) -> bool:
        """Whether the taint says that a module from outside the kernel's tree was loaded at any
        time: a proprietary one or one out of tree (kernel/panic.c: taint_flags).
        """
        return "P" in self.taint or "O" in self.taint

    def foreign(self) -> list[Module]:
        """The loaded modules that are not of the kernel's own tree."""
        return [module for module in self.modules.values() if module.foreign]


def read(stream: io.BufferedReader, progress: Callable[[], object] | None = None) -> list[Triage]:
    """Read a log to its end, one ``Triage`` a boot; raises only ``OSError`` of the stream."""
    counts = Counts()
    boots = _Boots(counts)
    for number, record in enumerate(records(stream, counts)):
        boots.add(record)
        if progress is not None and not number & 0xFFF:
            progress()
    return boots.end()


class _Boots:
    """Tells the boots of one log apart."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._done: list[Triage] = []
        self._groups_left = _MOST_IN_ALL
        self._boot = ""
        self._reader = _Boot(counts, self._groups_left)

    def add(self, record: Record) -> None:
        """The next record of the log."""
        if self._begins(record):
            self._finish()
        if record.boot:
            self._boot = record.boot
        self._reader.add(record)

    def _begins(self, record: Record) -> bool:
        before = self._reader.result
        seconds, last = record.seconds, before.last
        if seconds is not None and last is not None and seconds >= last and not record.boot:
            if record.text[:1] not in "-LB":
                return False  # by far the most lines
        if not before.records or len(self._done) >= _MOST_BOOTS:
            return False
        if record.boot and self._boot and record.boot != self._boot:
            return True
        text = record.text
        if text.startswith(("-- Reboot --", "-- Boot ")):
            return True
        if text.startswith(("Linux version ", "Booting Linux on ")):
            return before.records > 20 or (before.last or 0.0) > 1.0
        if record.seconds is None or before.last is None or record.seconds >= 30:
            return False
        return record.seconds + 60 < before.last

    def _finish(self) -> None:
        result = self._reader.end()
        self._groups_left -= len(result.groups)
        self._done.append(result)
        self._reader = _Boot(self._counts, max(1, self._groups_left))

    def end(self) -> list[Triage]:
        """All of them, in the order of the log."""
        if self._reader.result.records or not self._done:
            self._finish()
        return self._done


class _Boot:
    """Reads the records of one boot."""

    def __init__(self, counts: Counts, most_groups: int) -> None:
        self.result = Triage(counts)
        self._most_groups = min(_MOST_GROUPS, most_groups)
        self._parser = Parser()
        self._groups: dict[tuple[object, ...], Group] = {}
        self._lines = _Repetitions()
        self._own: list[str] = []
        self._oom = False  # the OOM killer was invoked, and has not named whom it killed

    def add(self, record: Record) -> None:
        """The next one."""
        result, text = self.result, record.text
        result.records += 1
        if record.seconds is not None:
            if result.first is None:
                result.first = record.seconds
            result.last = record.seconds
        known = recognise(text)
        if known is not None and known.kind == "oom" and self._of_one_kill(text):
            known = None
        if "+0x" in text:
            result.at_work.update(_MODULE_OF_FRAME.findall(text))
        elif text.startswith("Modules linked in:"):
            result.modules_listed = True
        if "ebpfwatch" in text:
            self._note_own(text)
        if known is not None:
            self._note(record, known)
        elif not self._parser.busy and not text.startswith(OOM_KILLED):
            self._ordinary(record)
        elif "free:" in text[:6]:
            self._memory(text)
        for report in self._parser.feed(record, known):
            self._group(report)

    def end(self) -> Triage:
        """What came of it."""
        for report in self._parser.close():
            self._group(report)
        result = self.result
        result.repeated = self._lines.most()
        result.traced = list(traced(self._own))
        return result

    def _of_one_kill(self, text: str) -> bool:
        """Whether the line names whom the OOM killer ended that was told of before: that is one
        event. The kernel does one after another, under oom_lock (mm/oom_kill.c).
        """
        invoked, self._oom = self._oom, not text.startswith(OOM_KILLED)
        return invoked and not self._oom

    def _ordinary(self, record: Record) -> None:
        self._lines.add(record)
        if record.text.startswith("Linux version ") and not self.result.release:
            self.result.release = record.text.split(" ", 3)[2][:64]

    def _memory(self, text: str) -> None:
        """show_free_areas() of a report about memory: the last one counts."""
        found = _FREE_PAGES.match(text)
        if found:
            self.result.free_pages = int(found[1])

    def _note_own(self, text: str) -> None:
        """What ebpfwatch itself said: a finding in the kernel's log, or a line of its probe."""
        if _FINDING.match(text):
            if len(self.result.findings) < _MOST_TRACED:
                self.result.findings.append(text[:1000])
        elif len(self._own) < _MOST_TRACED:
            self._own.append(text[:400])

    def _note(self, record: Record, known: KnownMessage) -> None:
        kinds, singles = self.result.kinds, self.result.singles
        kinds[known.kind] = kinds.get(known.kind, 0) + 1
        if known.opens:
            return
        single = singles.get(known.kind)
        if single is None:
            single = singles[known.kind] = Single(
                known, record.text[:300], record.seconds, self.result.records
            )
        single.count += 1

    def _group(self, report: Report) -> None:
        result = self.result
        if not result.groups:
            self._look_back(report)
        result.at_work |= report.modules_at_work
        result.flipped = result.flipped or one_bit_off(report)
        result.poisoned = result.poisoned or poison(report.fault_address) != ""
        key = (report.kind, report.where, str(report.at), report.cache, tuple(report.symbols[:6]))
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= self._most_groups:
                result.more_groups += 1
                return
            group = self._groups[key] = Group(report, assess(report))
            result.groups.append(group)
        group.add(report)
        self._machine(report)

    def _look_back(self, report: Report) -> None:
        """What must have come before the log's first report, and is not in it."""
        missing = self.result.missing
        if report.kind == "head_lost":
            missing.append("the beginning of the first report is not in the log")
        if report.number > 1 and report.kind not in ASIDE:
            missing.append(
                f"the first oops here is number {report.number} since boot: the earlier ones are"
                " not in the log, and the first is the one to look at"
            )
        for letter, (what, kinds) in _TAINTS.items():
            known = any(kind in self.result.kinds for kind in kinds if kind != report.kind)
            if letter in report.taint and not known:
                self.result.damage_missing |= letter == "B"
                missing.append(
                    f"the taint {letter} of the first report says that {what} came before it; no"
                    " such report stands before it in this log"
                )

    def _machine(self, report: Report) -> None:
        result = self.result
        for name in ("release", "build", "arch", "hardware"):
            if getattr(report, name) and not (name == "release" and result.release):
                setattr(result, name, getattr(result, name) or getattr(report, name))
        result.taint = report.taint or result.taint
        result.modules_cut = result.modules_cut or report.modules_cut
        if len(result.modules) < 1024:
            result.modules.update(report.modules)


class _Repetitions:
    """The lines that come most often, in bounded memory (Misra and Gries, 1982).

    A line that makes up more than 1/512 of the log is never missed; counts are lower bounds.
    """

    _NUMBERS = re.compile(r"(?:0x)?[0-9a-f]*[0-9][0-9a-f]*")
    _DIGITS = re.compile(r"\d+")

    def __init__(self) -> None:
        self._counts: dict[str, Repeated] = {}

    def add(self, record: Record) -> None:
        """One more line that is not known; lines that differ in numbers only are one."""
        text = record.text[:160]
        hexadecimal = "ffff" in text or "0x" in text
        key = self._NUMBERS.sub("#", text) if hexadecimal else self._DIGITS.sub("#", text)
        found = self._counts.get(key)
        if found is not None:
            found.count += 1
        elif len(self._counts) < _MOST_LINES:
            self._counts[key] = Repeated(record.text[:160], 1, record.seconds)
        else:
            for line in self._counts.values():
                line.count -= 1
            self._counts = {known: line for known, line in self._counts.items() if line.count}

    def most(self) -> list[Repeated]:
        """The most frequent, if they are frequent."""
        often = sorted(self._counts.values(), key=lambda line: -line.count)
        return [line for line in often[:_KEPT_LINES] if line.count >= _REPEATED]
