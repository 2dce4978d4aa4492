"""``ebpfwatch report``: findings from the journal or from the files, newest first."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ebpfwatch.commands import positive
from ebpfwatch.errors import Exit
from ebpfwatch.paths import Paths
from ebpfwatch.sinks import store
from ebpfwatch.sinks.text import report
from ebpfwatch.system.log import say
from ebpfwatch.text.printable import printable
from ebpfwatch.verdicts.finding import Finding


def configure(parser: argparse.ArgumentParser) -> None:
    """What to show, and from where."""
    parser.add_argument("id", nargs="?", help="only this finding")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--tests", action="store_true", help="show the self-test's findings, too")
    parser.add_argument(
        "--limit", type=positive, default=20, metavar="N", help="at most N (default 20)"
    )
    parser.add_argument(
        "--from",
        dest="source",
        choices=("auto", "journal", "files"),
        default="auto",
        help="auto: the files, else the journal",
    )
    parser.add_argument(
        "--state-directory",
        default="/var/lib/ebpfwatch",
        metavar="DIR",
        help="where the daemon keeps its files (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Exit 1 if one finding was asked for and is not there; none at all is fine.

    What makes "none" worth less is said on stderr: nothing to look into, damaged files.
    """
    other: list[str] = []
    bodies = _bodies(arguments, other)
    if arguments.id:
        bodies = (body for body in bodies if body.get("id") == arguments.id)
    elif not arguments.tests:
        bodies = (body for body in bodies if not body.get("test"))
    shown = 0
    for body in itertools.islice(bodies, arguments.limit):
        shown += 1
        print(json.dumps(body, ensure_ascii=True) if arguments.json else _text(body))
    if not shown and not arguments.json:
        print(f"no finding {arguments.id}" if arguments.id else "no findings")
    if other:
        say(f"files that hold no finding, or half of one: {len(other)}; the first: {other[0]}")
    return Exit.FAILED if arguments.id and not shown else Exit.OK


def _bodies(arguments: argparse.Namespace, other: list[str]) -> Iterator[dict[str, Any]]:
    directory = Path(arguments.state_directory)
    if arguments.source != "journal" and not directory.is_dir():
        say(f"there is no directory {directory}: has the daemon ever run with it?")
    files = store.read_all(directory, other)
    if arguments.source == "files":
        return files
    if arguments.source == "auto":
        first = next(files, None)
        if first is not None:
            return itertools.chain([first], files)
        if not Paths().journal_socket.exists():
            return iter(())
    from ebpfwatch.sinks import journal

    return journal.read_all()


def _text(body: dict[str, Any]) -> str:
    try:
        return report(Finding.from_json(body))
    except Exception as error:  # whatever it holds, the others must still be shown
        why = printable(f"{type(error).__name__}: {error}")
        return f"a finding of another version ({why}): {json.dumps(body, ensure_ascii=True)}"
