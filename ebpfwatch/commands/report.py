"""``ebpfwatch report``: findings as a list or in full, and their acknowledgement."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.commands import positive
from ebpfwatch.commands.daemon import add_state_directory, default_run, running, state_directory
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.paths import Paths
from ebpfwatch.postmortem.last_boot import kernel_boot_id
from ebpfwatch.sinks import store
from ebpfwatch.sinks.text import report
from ebpfwatch.system.log import say
from ebpfwatch.text.printable import printable
from ebpfwatch.text.times import moment, utc
from ebpfwatch.verdicts.finding import Finding

_MOST = 20
_FOLLOW_SECONDS = 0.5
_THIS = "this"

EXAMPLES = """\
examples:
  ebpfwatch report                         the last findings, a line each
  ebpfwatch report ID                      one finding in full; ID as the list shows it
  ebpfwatch report --since 2h --boot       those of the last two hours, of this boot
  ebpfwatch report --follow                each new one as it comes
  ebpfwatch report --ack ID --because "host is drained, boots tonight"
                                           end its alert; what comes later raises a new one
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """What to show, and from where."""
    parser.add_argument("id", metavar="ID", nargs="*", help="show these findings in full")
    parser.add_argument("--full", action="store_true", help="show each in full, not a line each")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--tests", action="store_true", help="show the self-test's findings, too")
    when = "2026-01-31, 2026-01-31 08:15 (UTC), today, or 2h for two hours ago"
    parser.add_argument("--since", type=_moment, metavar="TIME", help=f"not older than: {when}")
    parser.add_argument("--until", type=_moment, metavar="TIME", help="not younger than")
    parser.add_argument(
        "--boot", nargs="?", const=_THIS, metavar="ID", help="only of this boot, or of that boot"
    )
    parser.add_argument(
        "--verdict",
        action="append",
        choices=[verdict.value for verdict in Verdict],
        metavar="VERDICT",
        help="only these: " + ", ".join(verdict.value for verdict in Verdict),
    )
    parser.add_argument("--follow", action="store_true", help="then show each new one as it comes")
    parser.add_argument("--limit", type=positive, metavar="N", help=f"at most N (default {_MOST})")
    parser.add_argument(
        "--ack",
        action="append",
        metavar="ID",
        help="acknowledge a finding, or all of this boot: its alert ends",
    )
    parser.add_argument("--because", default="", metavar="TEXT", help="why; kept with --ack")
    parser.add_argument("--no-pager", action="store_true", help="do not start a pager")
    parser.add_argument(
        "--from",
        dest="source",
        choices=("auto", "journal", "files"),
        default="auto",
        help="auto: the files, else the journal",
    )
    add_state_directory(parser)


def _moment(text: str) -> float:
    try:
        return moment(text, time.time())
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(arguments: argparse.Namespace) -> int:
    """Exit 1 if a finding that was asked for is not there; none at all is fine.

    What makes "none" worth less is said on stderr: nothing to look into, damaged files.
    """
    directory = state_directory(arguments)
    if arguments.ack:
        return _acknowledge(directory, arguments.ack, arguments.because)
    other: list[str] = []
    bodies = list(_chosen(_bodies(arguments, directory, other), arguments))
    full = arguments.full or bool(arguments.id)
    with _pager(not (arguments.json or arguments.follow or arguments.no_pager)):
        _show(bodies, arguments.json, full)
        missing = set(arguments.id) - {body.get("id") for body in bodies}
        if not arguments.json:
            for id_ in sorted(missing):
                print(f"no finding {printable(id_)}; `ebpfwatch report` lists them")
            if not bodies and not arguments.id and not arguments.follow:
                print(
                    f"no findings{_which(arguments)} in {printable(str(directory))}{_unwatched()}"
                )
            elif len(bodies) == _MOST and not arguments.limit and not full:
                print(f"\nonly the last {_MOST} are shown; --limit N shows more")
    if other:
        say(f"files that hold no finding, or half of one: {len(other)}; the first: {other[0]}")
    if arguments.follow:
        _follow(directory, arguments)
    return Exit.FAILED if missing else Exit.OK


def _unwatched() -> str:
    """What makes "no findings" say nothing, for those who may know: root."""
    if os.geteuid() != 0 or running(default_run()) is not None:
        return ""
    return "; no ebpfwatch daemon is running here now, so nothing is watched"


def _which(arguments: argparse.Namespace) -> str:
    chosen = (arguments.since, arguments.until, arguments.boot, arguments.verdict)
    return " that match" if any(chosen) else ""


# -- which


def _chosen(
    bodies: Iterable[dict[str, Any]], arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    if arguments.id:
        yield from (body for body in bodies if body.get("id") in arguments.id)
        return
    bodies = (body for body in bodies if _matches(body, arguments))
    yield from itertools.islice(bodies, arguments.limit or _MOST)


def _matches(body: dict[str, Any], arguments: argparse.Namespace) -> bool:
    at = body.get("realtime_us")
    seconds = at / 1e6 if isinstance(at, int) else 0.0
    boot = _this_boot() if arguments.boot == _THIS else arguments.boot
    return (
        (arguments.tests or not body.get("test"))
        and (arguments.since is None or seconds >= arguments.since)
        and (arguments.until is None or seconds <= arguments.until)
        and (boot is None or body.get("boot_id") == boot)
        and (arguments.verdict is None or body.get("verdict") in arguments.verdict)
    )


def _this_boot() -> str:
    try:
        return kernel_boot_id(Paths())
    except OSError:
        return ""


def _bodies(
    arguments: argparse.Namespace, directory: Path, other: list[str]
) -> Iterator[dict[str, Any]]:
    from_journal = arguments.source == "journal"
    if not from_journal:
        files = store.read_all(directory, other)
        first = next(files, None)
        if first is not None:
            return itertools.chain([first], files)
        from_journal = arguments.source == "auto" and Paths().journal_socket.exists()
        if not directory.is_dir() and not from_journal:
            raise EbpfwatchError(
                f"there is no directory {directory}, so there is nothing to look into",
                "name the daemon's with --state-directory; or it has never run here",
                Exit.UNAVAILABLE,
            )
    if not from_journal:
        return iter(())
    from ebpfwatch.sinks import journal

    return journal.read_all()


# -- how


_HEAD = f"{'ID':<29} {'TIME':<23} {'VERDICT':<21} {'CONFIDENCE':<12} WHAT"


def _show(bodies: list[dict[str, Any]], as_json: bool, full: bool) -> None:
    if as_json:
        for body in bodies:
            print(json.dumps(body, ensure_ascii=True))
    elif full:
        for body in bodies:
            print(_text(body))
    elif bodies:
        print(_HEAD)
        for body in bodies:
            print(_line(body))


def _line(body: dict[str, Any]) -> str:
    """One finding on one line."""
    try:
        finding = Finding.from_json(body)
    except Exception:
        return f"{printable(str(body.get('id'))):<29} of another version; --json shows it"
    identity = finding.identity
    where = finding.device or f"{identity.dev_major}:{identity.dev_minor}"
    what = f"inode {identity.ino} on {where}"
    name = finding.path or finding.name
    what += f" {name}" if name else ""
    if finding.responsible.who:
        what += f"; {finding.responsible.strength.value}: {finding.responsible.who}"
    what += "; self-test" if finding.test else ""
    what += "; acknowledged" if "acknowledged" in body else ""
    return (
        f"{finding.id:<29} {utc(finding.realtime_us / 1e6)} {finding.verdict.value:<21}"
        f" {finding.confidence.value:<12} {printable(what)}"
    )


def _text(body: dict[str, Any]) -> str:
    try:
        return report(Finding.from_json(body), body.get("acknowledged"))
    except Exception as error:  # whatever it holds, the others must still be shown
        why = printable(f"{type(error).__name__}: {error}")
        return f"a finding of another version ({why}): {json.dumps(body, ensure_ascii=True)}"


@contextlib.contextmanager
def _pager(wanted: bool) -> Iterator[None]:
    """On a terminal a text longer than it goes through less, or $PAGER."""
    words = os.environ.get("PAGER", "less").split()
    if not wanted or not words or not sys.stdout.isatty() or not shutil.which(words[0]):
        yield
        return
    # less: leave if it fits one screen, keep colours and the screen; no shell from within.
    environment = {"LESS": "FRX", "LESSSECURE": "1", **os.environ}
    with subprocess.Popen(words, stdin=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdin is not None
        try:
            with contextlib.redirect_stdout(process.stdin):
                yield
        except BrokenPipeError:  # the reader has left
            pass
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


def _follow(directory: Path, arguments: argparse.Namespace) -> None:
    """Until interrupted; looks at the directory, so it needs no daemon."""
    seen = {body.get("id") for body in store.read_all(directory)}
    changed_ns = 0
    sys.stdout.flush()
    while True:
        time.sleep(_FOLLOW_SECONDS)
        with contextlib.suppress(OSError):
            now_ns = os.stat(directory / "findings").st_mtime_ns
            if now_ns == changed_ns:
                continue
            changed_ns = now_ns
        new = [body for body in store.read_all(directory) if body.get("id") not in seen]
        seen.update(body.get("id") for body in new)
        for body in reversed(new):
            if _matches(body, arguments):
                if arguments.json:
                    print(json.dumps(body, ensure_ascii=True), flush=True)
                else:
                    print(_text(body) if arguments.full else _line(body), flush=True)


# -- acknowledging


def _acknowledge(directory: Path, ids: list[str], because: str) -> int:
    """Exit 1 if one of them is not there."""
    by = os.environ.get("SUDO_USER") or os.environ.get("USER") or f"uid {os.getuid()}"
    boot_id = _this_boot()
    known = {body["id"] for body in store.read_all(directory) if isinstance(body.get("id"), str)}
    missing = False
    try:
        if "all" in ids:
            wanted = {body["id"] for body in store.of_boot(directory, boot_id)}
            store.acknowledge_all(directory, boot_id, by, because)
            for id_ in sorted(wanted - store.acknowledged(directory)):
                store.acknowledge(directory, id_, by, because)
            print(f"acknowledged: all {len(wanted)} findings of this boot")
        for id_ in (id_ for id_ in ids if id_ != "all"):
            if id_ in known:
                store.acknowledge(directory, id_, by, because)
                print(f"acknowledged: {id_}")
            else:
                print(f"no finding {printable(id_)}; `ebpfwatch report` lists them")
                missing = True
    except OSError as error:
        raise EbpfwatchError(
            f"cannot write to {directory}/findings: {error.strerror}",
            "run it as root",
            Exit.NOPERM if error.errno in (1, 13) else Exit.CANTCREAT,
        ) from None
    return Exit.FAILED if missing else Exit.OK
