"""``ebpfwatch triage FILE|-``: what the log of a machine that is dead says about this bug."""

from __future__ import annotations

import argparse
import io
import json
import re

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.triage import explain
from ebpfwatch.triage.lines import Lines
from ebpfwatch.triage.summary import read

#: First bytes of files that are no log, and what to do with them.
_MAGIC = {
    b"\x7fELF": "is a vmcore or a program, not a log; get the log out with vmcore-dmesg FILE",
    b"KDUMP   ": "is a vmcore, not a log; get the log out with makedumpfile --dump-dmesg FILE",
    b"\x1f\x8b": "is compressed; try zcat FILE | ebpfwatch triage -",
    b"\xfd7zXZ": "is compressed; try xzcat FILE | ebpfwatch triage -",
    b"\x28\xb5\x2f\xfd": "is compressed; try zstdcat FILE | ebpfwatch triage -",
    b"{\n": "is not one object a line; try journalctl -k -o json | ebpfwatch triage -",
    b"data: {": "is made for a browser; try journalctl -k -o json | ebpfwatch triage -",
    b"\x1e{": "is made for another reader; try journalctl -k -o json | ebpfwatch triage -",
    b"LPKSHHRH": "is a journal file; try journalctl --file FILE -k -o export | ebpfwatch triage -",
}

#: journalctl -o verbose: a time, and the entry's cursor.
_VERBOSE = re.compile(rb"[^\n]{10,60} \[s=[0-9a-f]{32};")

EPILOG = "exit code 0: this bug, or suspected; 1: something else, undecided, or nothing found"


def configure(parser: argparse.ArgumentParser) -> None:
    """Which log, and in which form to answer."""
    parser.epilog = EPILOG
    parser.add_argument(
        "file",
        metavar="FILE",
        help="dmesg, journalctl -o export or json, vmcore-dmesg, a pstore record, a console; -"
        " reads standard input",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--vmlinux",
        metavar="FILE",
        help="the kernel's image with debug information, to name file and line of each frame",
    )


def run(arguments: argparse.Namespace) -> int:
    """Read, judge, tell; exit 1 if it is not this bug."""
    with Lines(arguments.vmlinux) as lines, _open(arguments.file) as stream:
        try:
            triage = read(stream)
        except OSError as error:
            raise _cannot_read(arguments.file, error) from None
        if arguments.json:
            print(json.dumps(explain.to_json(triage), ensure_ascii=True))
        else:
            print(explain.tell(triage, arguments.file, lines.name))
    return Exit.OK if triage.verdict in ("this_bug", "suspected") else Exit.FAILED


def _open(name: str) -> io.BufferedReader:
    try:
        file = io.FileIO(0, closefd=False) if name == "-" else io.FileIO(name)
        stream: io.BufferedReader = io.BufferedReader(file)
        head = stream.peek(100)
    except OSError as error:
        raise _cannot_read(name, error) from None
    hints = [hint for magic, hint in _MAGIC.items() if head.startswith(magic)]
    if _VERBOSE.match(head):
        hints.append("is verbose; try journalctl -k -o export | ebpfwatch triage -")
    for hint in hints:
        what, _, todo = hint.partition("; ")
        if name == "-":
            raise EbpfwatchError(f"standard input {what}", todo, Exit.USAGE)
        raise EbpfwatchError(f"{name} {what}", todo.replace("FILE", name), Exit.USAGE)
    return stream


def _cannot_read(name: str, error: OSError) -> EbpfwatchError:
    what = "standard input" if name == "-" else name or "a file without a name"
    return EbpfwatchError(
        f"cannot read {what}: {error.strerror}",
        "give a log file, or - for standard input",
        Exit.USAGE,
    )
