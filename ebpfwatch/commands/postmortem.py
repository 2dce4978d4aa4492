"""``ebpfwatch postmortem VMCORE``: our evidence out of a dead machine's memory."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from ebpfwatch.catalogue.roles import Hook
from ebpfwatch.errors import Exit
from ebpfwatch.postmortem import machine
from ebpfwatch.postmortem.blackbox import Entry, Transition, entries, transitions, verdicts
from ebpfwatch.postmortem.dump import Dump
from ebpfwatch.postmortem.opening import add_vmlinux
from ebpfwatch.sinks.text import report
from ebpfwatch.text.printable import printable
from ebpfwatch.triage import explain
from ebpfwatch.triage.lines import Lines
from ebpfwatch.triage.summary import read
from ebpfwatch.verdicts.correlator import Knowledge, judge

_LAST_LINES = 30  # of the kernel's log


def configure(parser: argparse.ArgumentParser) -> None:
    """The dump, its symbols, and how much to show."""
    parser.add_argument(
        "vmcore", metavar="VMCORE", type=Path, help="the dump (ELF or kdump-compressed)"
    )
    add_vmlinux(parser)
    parser.add_argument(
        "--object",
        type=lambda word: int(word, 16),
        action="append",
        default=[],
        metavar="ADDRESS",
        help="also tell of the slab page at this address (hexadecimal)",
    )
    parser.add_argument(
        "--last", type=int, default=40, metavar="N", help="transitions to show (default 40)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Exit 1 if ebpfwatch did not run on that machine; what was found of it goes to stdout."""
    dump = Dump(arguments.vmcore, arguments.vmlinux)
    print(f"kernel {dump.release}, read by its {dump.types}")
    maps = dump.maps()
    objects = [
        *arguments.object,
        *_print_verdicts(dump, [r for m in maps["verdict_scratch"] for r in dump.per_cpu(m)]),
    ]
    _print_table([e for m in maps["table"] for e in entries(dump.table(m))], arguments.last, dump)
    for address in dict.fromkeys(objects):
        print(f"\nIs the page of object {address:#x} still a slab page? {dump.slab_line(address)}")
    who, frames = dump.crashed_stack()
    print(
        f"\nCrashed in {printable(who)}:", *(f"  {printable(frame)}" for frame in frames), sep="\n"
    )
    _print_machine(dump, arguments.vmcore)
    if not maps["table"]:
        print("\nno map of ebpfwatch's is in this dump: it did not run, or is another version")
        return Exit.FAILED
    return Exit.OK


def _print_machine(dump: Dump, vmcore: Path) -> None:
    """The machine as it was, and what triage makes of its own log."""
    for title, lines in machine.sections(dump.drgn, dump.program):
        print(f"\n{title}:", *(f"  {printable(line)}" for line in lines), sep="\n")
    text = machine.log(dump.drgn, dump.program)
    boots = read(io.BufferedReader(io.BytesIO(text)))
    if not text or not boots:
        print("\nThe kernel's log cannot be read from this dump.")
    for triage in boots:
        print("\nThe kernel's own log, as triage reads it:")
        print(explain.tell(triage, str(vmcore), Lines(None).name, explain.WIDTH, []))
    last = text.decode("utf-8", "replace").splitlines()[-_LAST_LINES:]
    print("\nIts last lines:", *(f"  {printable(line)}" for line in last), sep="\n")


def _print_verdicts(dump: Dump, records: list[bytes]) -> list[int]:
    """The last verdict of each hook and CPU as a report; returns their objects."""
    offset_ns = dump.realtime_offset_ns()
    unknown = "the state of the hooks is"
    if not offset_ns:
        unknown = "the time of day and the state of the hooks are"
    knowledge = Knowledge(
        # Nothing proves a dead machine's hooks alive.
        attached=frozenset(hook.value for hook in Hook if hook.watcher),
        alive={},
        lost=lambda role, since_ns: 0,
        symbol=dump.name,
        realtime_offset_ns=offset_ns,
        test_object=lambda address: False,
        taints=dump.taints,
        lacks=(f"this comes from a dump: {unknown} not known",),
    )
    found = verdicts(records)
    print(f"\n{len(found)} verdicts in the probes' own memory")
    for sequence, event in enumerate(found):
        print(report(judge(event, knowledge, sequence)))
    return [event.object for event in found]


def _print_table(found: list[Entry], last: int, dump: Dump) -> None:
    dying = [entry for entry in found if entry.dying]
    print(f"\n{len(found)} objects in the table, {len(dying)} of them dying:")
    for entry in dying[:100]:
        print(
            f"  {entry.object:#x} {entry.state} inode {entry.ino} generation {entry.generation}"
            f" on {entry.dev[0]}:{entry.dev[1]}" + (" in reclaim" if entry.in_reclaim else "")
        )
    steps = transitions(found, last)
    print(f"\nThe last {len(steps)} transitions:")
    for step in steps:
        print(_line(step, dump))


def _line(step: Transition, dump: Dump) -> str:
    caller = f", called from {dump.name(step.caller) or hex(step.caller)}" if step.caller else ""
    return printable(
        f"  {step.ns / 1e9:.6f} {step.object:#x} inode {step.ino} on {step.dev[0]}:{step.dev[1]}"
        f" {step.what} by {step.comm} (pid {step.pid}, cpu {step.cpu}){caller}"
    )
