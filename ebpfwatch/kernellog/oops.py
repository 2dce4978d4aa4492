"""Kernel reports (warnings, oopses, BUGs, the slab's and the sanitizers' own) as data.

The parser is fed one record after another and gives back whole reports.  It knows the shapes of
arm64 and x86-64 from Linux 4.4 to 6.18 and takes what it finds: no field is required.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ebpfwatch.kernellog.known import KnownMessage, recognise
from ebpfwatch.kernellog.report import Frame, Module, Record, Report

__all__ = ["Parser"]

_LONGEST = 1024  # characters: printk has no longer record; only module lists are continued
_MOST_RECORDS = 400  # of one report: after that it is over, whatever it says
_MOST_SECONDS = 10.0  # between two records of one report
_MOST_FRAMES = 64
_MOST_MODULES = 512


# What continues a report, or begins one whose own headline was lost.
_DETAIL = re.compile(
    r"Internal error: (?P<error>\S[^\[]*)\[#(?P<n>\d+)\]"
    r"|(?:Oops: )?(?:invalid opcode|0x[0-9a-f]+|[0-9a-f]{4}): ?[0-9a-f]* ?\[#(?P<x86n>\d+)\]"
    r"|Oops: .{0,60}\[#(?P<oopsn>\d+)\]"
)
_FRAME = re.compile(
    r"(?:\[<[0-9a-f]+>\] )?(?P<unsure>\? )?(?P<symbol>[A-Za-z_][\w.$]*)\+(?P<offset>0x[0-9a-f]+)"
    r"/(?P<size>0x[0-9a-f]+)(?: \[(?P<module>[\w-]+)[^\]]*\])?"
    r"(?: \((?:P|F|U|K|L|\w)+\))?(?:\s+\S+:\d+)?(?: \[inline\])?$"
)
_SPOT = re.compile(
    r"\b([A-Za-z_][\w.$]{0,127})\+(0x[0-9a-f]+)/(0x[0-9a-f]+)(?: \[([\w-]+)[^\]]*\])?"
)
_CPU = re.compile(
    r"CPU: (?P<cpu>\d+) (?:UID: \d+ )?PID: (?P<pid>\d+) Comm: (?P<comm>.{1,32}?)"
    r" (?:Kdump: loaded )?(?:(?P<taint>Tainted: [A-Z -]+?)|Not tainted)\s+"
    r"(?P<release>\d+\.\d[\w.+~-]*)(?: (?P<build>#\S+))?"
)
_AT_CPU = re.compile(
    r"WARNING: CPU: (?P<cpu>\d+) PID: (?P<pid>\d+) at (?P<where>\S+) "
    r"|WARNING: (?:\[.{0,200}\] )?(?P<where2>\S+:\d+) at .*, CPU#(?P<cpu2>\d+): (?P<comm>.*)/"
    r"(?P<pid2>\d+)$"
    r"|kernel BUG at (?P<where3>[^\s!]+)!?"
)
_ADDRESS = re.compile(
    r"(?:at virtual address|dereference, address:|dereference at|page request at"
    r"|paging request at|for address:?|non-canonical address) (?:0x)?([0-9a-f]{8,16})"
)
_REGISTER = re.compile(r"\b(x\d{1,2}|sp|R[A-Z]{2}|R\d\d|CR2) ?: (?:0018:)?([0-9a-f]{16})\b")
# Linux 6.10 and later say "Oops: " of everything, and of this twice.
_PAGE_FAULT = re.compile(
    r"(?:Oops: )?Oops: (?P<code>[0-9a-f]{4,8}) |#PF: error_code\(0x(?P<hex>[0-9a-f]{1,8})\)"
)
_CACHE = re.compile(
    r"belongs to the cache (\S+) of size|cache=([^\s\]]+)|^BUG (\S+) \(|"
    r"Wrong slab cache\. (\S+) but"
)
_OTHER_STACK = re.compile(
    r"(Allocated|Freed|Last potentially related work creation|Second to last potentially related"
    r" work creation|allocated|freed|INFO: Allocated in|INFO: Freed in)\b"
)
_INTERRUPT = re.compile(
    r"(?:el\d\w*_(?:irq|interrupt|fiq)|asm_(?:sysvec|common_interrupt)|apic_timer_interrupt"
    r"|common_interrupt|ret_from_intr|reschedule_interrupt)"
)
_MODULE = re.compile(r"([\w-]+)(?:\(([A-Z+-]+)\))?$")


class Parser:
    """Feed records, get reports; ``close`` gives the last one."""

    def __init__(self) -> None:
        self._open: Report | None = None
        self._records = 0
        self._last: float | None = None
        self._in_modules = False
        self._stack: list[Frame] | None = None

    @property
    def busy(self) -> bool:
        """Whether a report is under way."""
        return self._open is not None

    def feed(self, record: Record, known: KnownMessage | None) -> Iterator[Report]:
        """``known`` is what ``recognise`` made of the record; yields the report it ended."""
        if self._open is not None and self._is_over(record):
            yield from self.close()
        if known is not None and known.opens:
            if self._open is not None and (self._open.frames or self._open.other_stacks):
                yield from self.close()
            self._begin(record, known)
        elif self._open is None and (lost := _DETAIL.match(record.text)):
            row = recognise("kernel BUG at ?:0" if "BUG" in lost[0] else "Unable to handle kernel")
            assert row is not None
            self._begin(record, row)
        if self._open is not None:
            self._records += 1
            self._last = record.seconds
            self._read(self._open, record.text)
            if record.text.startswith("---[ end "):
                yield from self.close()

    def close(self) -> Iterator[Report]:
        """The report under way, if there is one."""
        report, self._open = self._open, None
        if report is not None:
            _part_victim(report)
            # Of no other fault does CR2 say anything.
            if report.fault_address is None and report.error_code is not None:
                report.fault_address = report.registers.get("CR2")
            yield report

    def _is_over(self, record: Record) -> bool:
        if self._records >= _MOST_RECORDS:
            return True
        if record.seconds is None or self._last is None:
            return False
        return not -1.0 <= record.seconds - self._last <= _MOST_SECONDS

    def _begin(self, record: Record, known: KnownMessage) -> None:
        if self._open is not None:  # two headlines and no stack between: one report
            self._open.more.append(record.text)
            if self._open.kind in ("warning", "kernel_bug", "oops"):
                self._open.known = known
            return
        self._open = Report(known, record.text, record.seconds)
        self._records, self._last = 0, record.seconds
        self._in_modules, self._stack = False, None

    def _read(self, report: Report, text: str) -> None:
        if self._in_modules and _add_modules(report, text):
            return
        self._in_modules = text.startswith("Modules linked in:")
        text = text if self._in_modules else text[:_LONGEST]
        if self._in_modules:
            _add_modules(report, text.partition(":")[2])
        elif frame := _frame(text):
            self._add_frame(report, frame)
        else:
            self._heading(report, text)
            _details(report, text)

    def _heading(self, report: Report, text: str) -> None:
        if text.startswith(("Call trace:", "Call Trace:")):
            self._stack = report.frames if not report.frames else []
        elif found := _OTHER_STACK.match(text.partition("] ")[2] or text):
            self._stack = report.other_stacks.setdefault(found[1].split()[-1].lower(), [])
            if found[1].startswith("INFO"):
                self._stack = report.other_stacks.setdefault(found[1].split()[1].lower(), [])
        elif report.kind in ("kasan", "kfence") and not report.frames and self._stack is None:
            self._stack = report.frames  # KFENCE prints its stack without a heading

    def _add_frame(self, report: Report, frame: Frame) -> None:
        if self._stack is None:
            self._stack = report.frames
        if len(self._stack) < _MOST_FRAMES:
            self._stack.append(frame)


def _frame(text: str) -> Frame | None:
    found = _FRAME.match(text)
    if found is None:
        return None
    return Frame(
        found["symbol"],
        int(found["offset"], 16),
        int(found["size"], 16),
        found["module"] or "",
        not found["unsure"],
    )


def _spot(text: str) -> Frame | None:
    found = _SPOT.search(text)
    return Frame(found[1], int(found[2], 16), int(found[3], 16), found[4] or "") if found else None


def _add_modules(report: Report, text: str) -> bool:
    """Whether the whole line is names of modules; adds them if so."""
    words = text.partition("[last unloaded:")[0].split()
    found = [_MODULE.match(word) for word in words]
    if not words or not all(found):
        return not words
    for match in found:
        if match and len(report.modules) < _MOST_MODULES:
            report.modules[match[1]] = Module(match[1], (match[2] or "").strip("+-"))
    return True


def _details(report: Report, text: str) -> None:
    """Whatever a line that is neither frame nor module list has to say."""
    if found := _CPU.search(text):
        report.cpu, report.pid, report.comm = int(found["cpu"]), int(found["pid"]), found["comm"]
        report.release, report.build = found["release"], found["build"] or ""
        report.taint = (found["taint"] or "").partition(": ")[2].strip()
    elif found := _AT_CPU.match(text):
        report.where = found["where"] or found["where2"] or found["where3"]
        for name, value in (("cpu", "cpu"), ("cpu", "cpu2"), ("pid", "pid"), ("pid", "pid2")):
            if found[value]:
                setattr(report, name, int(found[value]))
        report.comm = found["comm"] or report.comm
        report.at = _spot(text) or report.at
    elif text.startswith("Workqueue: "):
        report.work = text.partition(": ")[2].partition(" ")[2]
    elif text.startswith("Hardware name:"):
        report.hardware = text.partition(": ")[2]
    elif text.startswith(("pc :", "pc:", "RIP:", "IP:", "PC is at")):
        _program_counter(report, text)
    elif text.startswith(("lr :", "lr:", "LR is at")):
        report.caller, report.arch = _spot(text), "arm64"
    elif text.startswith("Code:"):
        if not report.others_registers:
            report.code = report.code or text[5:].strip()
    else:
        _numbers(report, text)


def _program_counter(report: Report, text: str) -> None:
    spot = _spot(text)
    if text.startswith(("RIP:", "IP:")):
        if "0033:" in text or report.at and report.frames:
            report.others_registers = True
            return
        report.arch = "x86-64"
    else:
        report.arch = "arm64"
    if spot is not None and (report.at is None or not report.where):
        report.at = spot


def _numbers(report: Report, text: str) -> None:
    if found := _DETAIL.match(text):
        report.number = int(found["n"] or found["x86n"] or found["oopsn"])
    if report.fault_address is None and (found := _ADDRESS.search(text)):
        report.fault_address = int(found[1], 16)
    if found := _CACHE.search(text):
        report.cache = report.cache or next(group for group in found.groups() if group)
    if found := _PAGE_FAULT.match(text):
        report.error_code = int(found["code"] or found["hex"], 16)
    for found in _REGISTER.finditer(text):
        if report.others_registers and found[1] != "CR2":
            continue
        report.registers.setdefault(found[1], int(found[2], 16))


def _part_victim(report: Report) -> None:
    """The stack below an interrupt belongs to a task that had nothing to do with it."""
    for index, frame in enumerate(report.frames):
        if _INTERRUPT.match(frame.symbol):
            report.victim_frames = [f for f in report.frames[index + 1 :] if f.sure]
            report.frames = report.frames[: index + 1]
            return
