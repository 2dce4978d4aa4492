"""Kernel reports (warnings, oopses, BUGs, the slab's and the sanitizers' own) as data.

The parser is fed one record after another and gives back whole reports.  It knows the shapes of
arm64, x86-64 and 32-bit ARM from Linux 3.10 to 6.18 and takes what it finds: no field is required.
"""

from __future__ import annotations

import re

from ebpfwatch.kernellog.known import OOM_KILLED, KnownMessage, Relation
from ebpfwatch.kernellog.report import Frame, Module, Record, Report

__all__ = ["HEAD_LOST", "Parser"]

_LONGEST = 1024  # characters: printk has no longer record; only module lists are continued
_MOST_RECORDS = 400  # of one report: after that it is over, whatever it says
_MOST_SECONDS = 10.0  # between two records of one report
_MOST_FRAMES = 64
_MOST_MODULES = 512
_CUT_HEAD = 300  # records: a report this near to the log's beginning may have lost its own

#: A report whose first lines are not in the log; not in the table, because no message says it.
HEAD_LOST = KnownMessage(
    "head_lost",
    "",
    Relation.OTHER,
    "registers or a stack whose first lines are not in the log: a fault, a warning or a lockup",
    "",
    (),
)
#: What other CPUs print while one prints its oops; and what is no damage by itself.
_ASIDE = ("soft_lockup", "rcu_stall", "hung_task", "oom", "page_allocation_failure")
#: Headlines that a fault or BUG() has; everything else may be the detail of a warning.
_FAULTS = ("oops", "kernel_bug", "kasan", "kfence")

# What continues a report, or begins one whose own headline was lost.
_DETAIL = re.compile(
    r"Internal error: (?P<error>\S[^\[]*)\[#(?P<n>\d+)\]"
    r"|(?:Oops: )?(?:invalid opcode|divide error|double fault|stack segment|int3|0x[0-9a-f]+"
    r"|[0-9a-f]{4}): ?[0-9a-f]* ?(?:\w+ )*\[#(?P<x86n>\d+)\]"
    r"|Oops: .{0,60}\[#(?P<oopsn>\d+)\]"
)
_DETAILS = (
    "Internal error: ",
    "Oops",
    "invalid opcode",
    "divide error",
    "double fault",
    "stack seg",
)
_DUMPS = (
    "pc : ",
    "PC is at ",
    "RIP: ",
    "IP: ",
    "Call trace:",
    "Call Trace:",
    "Backtrace:",
    "lr : ",
)
_FATAL = re.compile(
    r"Mem abort info:|Internal error: |Oops: |\[[0-9a-f]{8,16}\] \*?pgd|Process .{1,32} \(pid: "
)
_FRAME = re.compile(
    r"(?:\[<[0-9a-f]+>\] )?(?P<unsure>\? )?(?P<symbol>[A-Za-z_][\w.$]*)\+(?P<offset>0x[0-9a-f]+)"
    r"/(?P<size>0x[0-9a-f]+)(?: \[(?P<module>[\w-]+)[^\]]*\])?"
    r"(?: \((?:P|F|U|K|L|\w)+\))?(?:\s+\S+:\d+)?(?: \[inline\])?$"
)
# decode_stacktrace.sh of syzbot: the inlined ones have no offset.
_INLINED = re.compile(r"(?P<symbol>[A-Za-z_][\w.$]*) [\w/.-]+\.[chS]:\d+ \[inline\]$")
# 32-bit ARM: "[<c01>] (f) from [<c02>] (g+0x1/0x2)"; since Linux 5.16 " f from g+0x1/0x2".
_FROM = re.compile(
    r"(?:\[<[0-9a-f]+>\] )?\(?(?P<callee>[A-Za-z_][\w.$]*)(?:\+0x[0-9a-f]+/0x[0-9a-f]+)?"
    r"(?: \[[\w-]+\])?\)? from (?:\[<[0-9a-f]+>\] )?\(?(?P<symbol>[A-Za-z_][\w.$]*)"
    r"\+(?P<offset>0x[0-9a-f]+)/(?P<size>0x[0-9a-f]+)(?: \[(?P<module>[\w-]+)\])?\)?$"
)
_SPOT = re.compile(
    r"\b([A-Za-z_][\w.$]{0,127})\+(0x[0-9a-f]+)/(0x[0-9a-f]+)(?: \[([\w-]+)[^\]]*\])?"
)
_CPU = re.compile(
    r"CPU: (?P<cpu>\d+) (?:UID: \d+ )?PID: (?P<pid>\d+) Comm: (?P<comm>.{1,32}?)"
    r" (?:Kdump: loaded )?(?:(?P<taint>Tainted: [A-Z -]+?)|Not tainted)\s+"
    r"(?P<release>\d+\.\d[\w.+~-]*)(?: (?P<build>#\S+))?"
)
# A hung task's: who it is stands in the headline.
_TAINT_ALONE = re.compile(
    r"(?:(?P<taint>Tainted: [A-Z -]+?)|Not tainted)\s+(?P<release>\d+\.\d[\w.+~-]*)"
    r"(?: (?P<build>#\S+))?$"
)
_WHO = re.compile(
    r"INFO: task (?P<comm>.{1,64}):(?P<pid>\d+) blocked|.*\[(?P<comm2>.{1,32}):(?P<pid2>\d+)\]$"
)
_AT_CPU = re.compile(
    r"WARNING: (?:CPU: (?P<cpu>\d+) PID: (?P<pid>\d+) )?at (?P<where>\S+) "
    r"|WARNING: (?:\[.{0,200}\] )?(?P<where2>\S+:\d+) at .*, CPU#(?P<cpu2>\d+): (?P<comm>.*)/"
    r"(?P<pid2>\d+)$"
    r"|kernel BUG at (?P<where3>[^\s!]+)!?"
)
_STUCK = re.compile(r".*CPU#(\d+) stuck")
_ADDRESS = re.compile(
    r"(?:at virtual address|dereference, address:|dereference at|page request at"
    r"|paging request at|for address:?|non-canonical address) (?:0x)?([0-9a-f]{8,16})\b"
)
_REGISTER = re.compile(r"\b(x\d{1,2}|sp|R[A-Z]{2}|R\d\d|CR2) ?: (?:0018:)?([0-9a-f]{16})\b")
# Linux 6.10 and later say "Oops: " of everything, and of this twice.
_PAGE_FAULT = re.compile(
    r"(?:Oops: )?Oops: (?P<code>[0-9a-f]{4,8}) |#PF: error_code\(0x(?P<hex>[0-9a-f]{1,8})\)"
)
# "Wrong slab cache. A but object is from B": B is the object's cache, A what it was freed into.
_CACHE = re.compile(
    r"belongs to the cache (\S+) of size|cache=([^\s\]]+)|BUG ([^\s(]+)(?:\(\d+:.{0,200}?\))? \("
    r"|.*?Wrong slab cache\. (?P<into>\S+) but object is from (\S+)"
)
_MEMCG = re.compile(r"\(\d+:.*")  # of the child cache of a memory cgroup, before Linux 5.9
_OTHER_STACK = re.compile(
    r"(Allocated|Freed|Last potentially related work creation|Second to last potentially related"
    r" work creation|allocated|freed|INFO: Allocated in|INFO: Freed in)\b"
)
_INTERRUPT = re.compile(
    r"(?:el\d\w*_(?:irq|interrupt|fiq)|asm_(?:sysvec|common_interrupt)|apic_timer_interrupt"
    r"|common_interrupt|ret_from_intr|reschedule_interrupt|__irq_svc|__irq_usr)"
)
_MODULE = re.compile(r"([A-Za-z0-9_][\w-]*)(?:\(([A-Z+-]+)\))?$")


class Parser:
    """Feed records, get reports; ``close`` gives the last one."""

    def __init__(self) -> None:
        self._open: Report | None = None
        self._records = 0
        self._seen = 0
        self._last: float | None = None
        self._in_modules = False
        self._stack: list[Frame] | None = None
        self._closed: Report | None = None

    @property
    def busy(self) -> bool:
        """Whether a report is under way."""
        return self._open is not None

    def feed(self, record: Record, known: KnownMessage | None) -> list[Report]:
        """``known`` is what ``recognise`` made of the record; the reports that it ended."""
        ended: list[Report] = []
        self._seen += 1
        if self._open is not None and self._is_over(record):
            ended += self.close()
        if known is not None and known.opens:
            if self._open is None:
                self._begin(record, known)
            else:
                ended += self._another(record, known)
        elif self._open is None and self._head_lost(record.text):
            self._begin(record, HEAD_LOST)
        if self._open is not None:
            self._records += 1
            self._last = record.seconds
            self._read(self._open, record.text)
            if record.text.startswith("---[ end "):
                ended += self.close()
        return ended

    def close(self) -> list[Report]:
        """The report under way, if there is one."""
        report, self._open = self._open, None
        if report is None:
            return []
        _part_victim(report)
        # Of no other fault does CR2 say anything.
        if report.fault_address is None and report.error_code is not None:
            report.fault_address = report.registers.get("CR2")
        self._closed = report
        return [report]

    def _is_over(self, record: Record) -> bool:
        if self._records >= _MOST_RECORDS:
            return True
        if "[ cut here ]" in record.text:
            return bool(self._open and self._open.frames)
        if record.seconds is None or self._last is None:
            return False
        return not -1.0 <= record.seconds - self._last <= _MOST_SECONDS

    def _head_lost(self, text: str) -> bool:
        """Whether a report without its headline begins here.

        x86-64 before Linux 5.13 prints RIP and Code once more behind the end of a report.
        """
        if text.startswith(_DETAILS):
            return _DETAIL.match(text) is not None
        if self._seen > _CUT_HEAD or not text.startswith(_DUMPS):
            return False
        spot = _spot(text)
        return self._closed is None or spot is not None and spot != self._closed.at

    def _begin(self, record: Record, known: KnownMessage) -> None:
        self._open = Report(known, record.text[:_LONGEST], record.seconds, self._seen)
        self._records, self._last = 0, record.seconds
        self._in_modules, self._stack = False, None

    def _another(self, record: Record, known: KnownMessage) -> list[Report]:
        """A headline while a report is open: its second one, another CPU's, or the next report."""
        report = self._open
        assert report is not None
        again = known.kind == report.kind != "kasan"  # KASAN names an inlined function, too
        over = bool(report.frames or report.other_stacks) or again
        aside = known.kind in _ASIDE
        if not over and aside and report.kind not in _ASIDE:
            report.more.append(record.text[:_LONGEST])  # another CPU's: the fault keeps its name
            return []
        if not over and not aside and report.kind not in _ASIDE:
            fault_in_warning = report.kind == "warning" and known.kind in _FAULTS
            if not fault_in_warning:
                report.more.append(record.text[:_LONGEST])
                # What was found wrong says more than that something was, or where.
                if report.kind in ("warning", "kernel_bug") and known.kind not in (
                    "warning",
                    "oops",
                ):
                    report.known = known
                return []
        ended = self.close()
        self._begin(record, known)
        return ended

    def _read(self, report: Report, text: str) -> None:
        if self._in_modules and _add_modules(report, text):
            return
        self._in_modules = text.startswith("Modules linked in:")
        if self._in_modules:
            _add_modules(report, text.partition(":")[2], first=True)
            return
        text = text[:_LONGEST]
        if report.kind == "oom" and text.startswith(OOM_KILLED) and text != report.headline:
            report.more.append(text)  # whom it killed
            return
        frames = _frames(text)
        if frames:
            self._add_frames(report, frames, " from " in text)
        else:
            self._heading(report, text)
            _details(report, text)

    def _heading(self, report: Report, text: str) -> None:
        if text.startswith(("Call trace:", "Call Trace:", "Backtrace:")):
            self._stack = report.frames if not report.frames else []
            return
        found = _OTHER_STACK.match(text.partition("] ")[2] or text)
        if found:
            self._stack = report.other_stacks.setdefault(found[1].split()[-1].lower(), [])
            if found[1].startswith("INFO"):
                self._stack = report.other_stacks.setdefault(found[1].split()[1].lower(), [])
        elif report.kind in ("kasan", "kfence") and not report.frames and self._stack is None:
            self._stack = report.frames  # KFENCE prints its stack without a heading

    def _add_frames(self, report: Report, frames: list[Frame], arm: bool) -> None:
        if self._stack is None:
            self._stack = report.frames
        if arm and self._stack:
            frames = frames[1:]  # the callee is the caller of the line before
        elif arm and report.at is not None and report.at.symbol == frames[0].symbol:
            frames = [report.at, *frames[1:]]
        for frame in frames:
            if len(self._stack) < _MOST_FRAMES:
                self._stack.append(frame)


def _frames(text: str) -> list[Frame]:
    """The frame of a line; 32-bit ARM has two of them on one."""
    if "+0x" not in text:
        inlined = _INLINED.match(text) if text.endswith("[inline]") else None
        return [Frame(inlined["symbol"], 0, 0)] if inlined else []
    found = _FRAME.match(text)
    if found is None:
        both = _FROM.match(text) if " from " in text else None
        if both is None:
            return []
        return [Frame(both["callee"], 0, 0, both["module"] or ""), _frame(both, True)]
    return [_frame(found, not found["unsure"])]


def _frame(found: re.Match[str], sure: bool) -> Frame:
    offset, size = int(found["offset"], 16), int(found["size"], 16)
    return Frame(found["symbol"], offset, size, found["module"] or "", sure)


def _spot(text: str) -> Frame | None:
    found = _SPOT.search(text)
    return Frame(found[1], int(found[2], 16), int(found[3], 16), found[4] or "") if found else None


def _add_modules(report: Report, text: str, first: bool = False) -> bool:
    """Whether the line is names of modules; adds them if so.

    Of the line that begins the list every whole name counts, and a word that is none says that the
    list was cut, or mixed with another CPU's line; of the lines that may continue it all must be
    names.
    """
    words = text.partition("[last unloaded:")[0].split()
    found = [_MODULE.match(word) for word in words]
    if not all(found):
        if not first:
            return False
        report.modules_cut = True
    for match in found:
        if match and len(report.modules) < _MOST_MODULES:
            report.modules[match[1]] = Module(match[1], (match[2] or "").strip("+-"))
    return bool(words) or first


def _details(report: Report, text: str) -> None:
    """Whatever a line that is neither frame nor module list has to say."""
    found = _CPU.search(text) if "CPU: " in text else None
    if found:
        report.cpu, report.pid, report.comm = int(found["cpu"]), int(found["pid"]), found["comm"]
        _build(report, found)
        return
    at = _AT_CPU.match(text) if text.startswith(("WARNING: ", "kernel BUG")) else None
    if at:
        report.where = report.where or at["where"] or at["where2"] or at["where3"]
        for name, value in (("cpu", "cpu"), ("cpu", "cpu2"), ("pid", "pid"), ("pid", "pid2")):
            if at[value]:
                setattr(report, name, int(at[value]))
        report.comm = at["comm"] or report.comm
        report.at = report.at or _spot(text)
    elif text.startswith("Workqueue: "):
        report.work = text.partition(": ")[2].partition(" ")[2]
    elif text.startswith("Hardware name:"):
        report.hardware = text.partition(": ")[2]
    elif text.startswith(("pc :", "pc:", "RIP:", "IP:", "PC is at")):
        _program_counter(report, text)
    elif text.startswith(("lr :", "lr:", "LR is at")):
        report.caller = _spot(text) or report.caller
        report.arch = report.arch or "arm64"
    elif text.startswith("Code:"):
        if not report.others_registers:
            report.code = report.code or text[5:].strip()
    else:
        _numbers(report, text)


def _build(report: Report, found: re.Match[str]) -> None:
    report.release, report.build = found["release"], found["build"] or ""
    report.taint = (found["taint"] or "").partition(": ")[2].strip()


def _program_counter(report: Report, text: str) -> None:
    spot = _spot(text)
    if text.startswith(("RIP:", "IP:")):
        if "0033:" in text or report.at and report.frames:
            report.others_registers = True
            return
        report.arch = "x86-64"
    elif not report.arch or " psr: " in text:
        report.arch = "arm" if " psr: " in text else "arm64"
    if spot is not None and (report.at is None or not report.where):
        report.at = spot


def _numbers(report: Report, text: str) -> None:
    found = _DETAIL.match(text)
    if found:
        report.number = int(found["n"] or found["x86n"] or found["oopsn"])
        if text.startswith("Internal error: ") and text.rstrip().endswith(" ARM"):
            report.arch = "arm"
    report.fatal = report.fatal or _FATAL.match(text) is not None
    if report.fault_address is None:
        address = _ADDRESS.search(text)
        report.fault_address = int(address[1], 16) if address else None
    _caches(report, text)
    page_fault = _PAGE_FAULT.match(text)
    if page_fault:
        report.error_code = int(page_fault["code"] or page_fault["hex"], 16)
    if not report.comm or not report.release:
        _task(report, text)
    if ": " in text:
        for register in _REGISTER.finditer(text):
            if report.others_registers and register[1] != "CR2":
                continue
            report.registers.setdefault(register[1], int(register[2], 16))


def _caches(report: Report, text: str) -> None:
    found = _CACHE.match(text) or (_CACHE.search(text) if "cache" in text else None)
    if found and not report.cache:
        into = found["into"]
        names = [name for name in found.groups() if name and name != into]
        report.cache = _MEMCG.sub("", names[0]) if names else ""
        report.wrong_cache = _MEMCG.sub("", into or "")


def _task(report: Report, text: str) -> None:
    """Who it was, where that stands in the headline, and what stands alone then."""
    found = _WHO.match(text) if report.kind in _ASIDE and text == report.headline else None
    if found:
        report.comm = found["comm"] or found["comm2"]
        report.pid = int(found["pid"] or found["pid2"])
        stuck = _STUCK.match(text)
        report.cpu = int(stuck[1]) if stuck else report.cpu
    elif not report.release and "ainted" in text:
        alone = _TAINT_ALONE.match(text)
        if alone:
            _build(report, alone)


def _part_victim(report: Report) -> None:
    """The stack below an interrupt belongs to a task that had nothing to do with it."""
    for index, frame in enumerate(report.frames):
        if _INTERRUPT.match(frame.symbol):
            report.victim_frames = [f for f in report.frames[index + 1 :] if f.sure]
            report.frames = report.frames[: index + 1]
            return
