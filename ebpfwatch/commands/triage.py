"""``ebpfwatch triage FILE...|-``: what the log of a machine that crashed says about this bug."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.text.printable import printable
from ebpfwatch.triage import compare, explain, modulefiles
from ebpfwatch.triage.lines import Lines
from ebpfwatch.triage.logs import Log, logs, none_read
from ebpfwatch.triage.summary import Triage

EPILOG = (
    "exit code 0: this bug, or suspected; 1: something else, undecided, or nothing found; where no"
    " log was read 77 if that needs root, else 69"
)

_NARROWEST, _WIDEST = 60, 160  # columns


def configure(parser: argparse.ArgumentParser) -> None:
    """Which logs, and in which form to answer."""
    parser.epilog = EPILOG
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="+",
        help="dmesg, journalctl in any form, vmcore-dmesg, a pstore record, a console; compressed,"
        " a tar, a directory of them; - reads standard input",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--vmlinux",
        metavar="FILE",
        help="the kernel's image with debug information, to name file and line of each frame",
    )
    parser.add_argument(
        "--modules",
        metavar="DIR",
        help="the files of the kernel's modules (/lib/modules/RELEASE of that machine): who prints"
        " a line that is not known, and what the out-of-tree ones call; by default this"
        " machine's, if the log is of its kernel",
    )


def run(arguments: argparse.Namespace) -> int:
    """Read, judge, tell; exit 1 if it is not this bug."""
    if arguments.modules is not None and not Path(arguments.modules).is_dir():
        raise EbpfwatchError(
            f"cannot read {arguments.modules}: not a directory",
            "give the directory with the files of the modules",
            Exit.USAGE,
        )
    with Lines(arguments.vmlinux) as lines:
        found = list(logs(arguments.file))
        boots = _boots(found)
        errors = none_read(found, arguments.file)
        if arguments.json:
            print(json.dumps(_json(found, boots, arguments.modules), ensure_ascii=True))
        if not boots:
            raise _all_of(errors)
        if not arguments.json:
            for error in errors:
                print(printable(error.message))
            width = shutil.get_terminal_size((explain.WIDTH, 24)).columns
            width = min(max(width, _NARROWEST), _WIDEST)
            _print(found, boots, lines, arguments.modules, width)
    verdicts = {triage.verdict for _, triage in boots}
    return Exit.OK if verdicts & {"this_bug", "suspected"} else Exit.FAILED


def _all_of(errors: list[EbpfwatchError]) -> EbpfwatchError:
    """One for all; where one needs root, so do all."""
    codes = [error.exit_code for error in errors]
    return EbpfwatchError(
        "; ".join(error.message for error in errors),
        next((error.hint for error in errors if error.hint), ""),
        Exit.NOPERM if Exit.NOPERM in codes else Exit.UNAVAILABLE,
    )


def _boots(found: list[Log]) -> list[tuple[str, Triage]]:
    """Each boot of each log by its name; without the logs that have nothing of a kernel."""
    boots = []
    for log in found:
        for number, triage in enumerate(log.boots, 1):
            several = f", boot {number} of {len(log.boots)}" if len(log.boots) > 1 else ""
            boots.append((f"{log.name}{several}", triage))
    if len(boots) < 2:
        return boots
    wanted = [(name, t) for name, t in boots if t.groups or t.singles or t.release or t.first]
    return wanted or boots[:1]


def _in_modules(triage: Triage, directory: str | None) -> list[str]:
    chosen = Path(directory) if directory else modulefiles.default_directory(triage.release)
    if chosen is None or triage.verdict in ("nothing_found", "not_this_bug"):
        return []
    return modulefiles.look_up(triage, chosen)


def _print(
    found: list[Log],
    boots: list[tuple[str, Triage]],
    lines: Lines,
    directory: str | None,
    width: int,
) -> None:
    found = [log for log in found if not log.passed_over]
    several = len(boots) > 1 or len(found) > 1
    if several:
        for name, triage in boots:
            print(printable(f"{name}: {explain.headline(triage)}"))
        for log in found:
            if log.problem:
                print(printable(f"{log.name}: not read: it {log.problem}"))
        crashes = compare.crashes(boots)
        if len(crashes) > 1:
            print(f"\n{compare.tell(crashes, width)}")
    for name, triage in boots:
        if several and triage.verdict == "nothing_found":
            continue
        if several:
            print(f"\n{'-' * width}")
        print(explain.tell(triage, name, lines.name, width, _in_modules(triage, directory)))


def _json(
    found: list[Log], boots: list[tuple[str, Triage]], directory: str | None
) -> dict[str, object]:
    """One log is one object; several are a list of them, and what they have in common."""
    each = [
        {"name": name, **explain.to_json(triage), "modules": _in_modules(triage, directory)}
        for name, triage in boots
    ]
    not_read = [f"{log.name} {log.problem}" for log in found if log.problem]
    if len(each) == 1 and len([log for log in found if not log.passed_over]) == 1:
        return {**each[0], "not_read": not_read}
    crashes = compare.crashes(boots)
    return {
        "schema": 2,
        "logs": each,
        "not_read": not_read,
        "compared": compare.compared(crashes) if len(crashes) > 1 else None,
    }
