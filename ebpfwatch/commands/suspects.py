"""``ebpfwatch suspects``: which modules could have done it, and what speaks against each."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ebpfwatch.commands.daemon import add_state_directory, state_directory
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.host.fields import optional
from ebpfwatch.host.modules import read_modules
from ebpfwatch.paths import Paths
from ebpfwatch.sinks import store
from ebpfwatch.text.wrapped import wrapped
from ebpfwatch.triage import modulefiles
from ebpfwatch.triage.kofile import note_build_id
from ebpfwatch.triage.logs import logs
from ebpfwatch.triage.summary import Triage, read
from ebpfwatch.triage.suspects import RANKS, Loaded, Ranking, Suspect, rank

EXAMPLES = """\
exit code 0: nothing points to a module; 1: a finding or the kernel's log does, or one hides

examples:
  ebpfwatch suspects                                this machine, as root
  ebpfwatch suspects --log /var/crash/dmesg.1       with the log of the crash, too
"""

_MOST_RECORDS = 100_000
_SOME = ("named", "suspected", "hidden", "connected")  # something points to the module


def configure(parser: argparse.ArgumentParser) -> None:
    """Where the files, the logs and the findings are."""
    parser.add_argument(
        "--modules",
        type=Path,
        metavar="DIR",
        help="the files of the modules (default: /lib/modules/RELEASE of this kernel)",
    )
    parser.add_argument(
        "--log",
        action="append",
        default=[],
        metavar="FILE",
        help="a log of the kernel, as for triage; may be repeated (default: this kernel's, now)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_state_directory(parser)


def run(arguments: argparse.Namespace) -> int:
    """Look at what is loaded; exit 1 if something points to a module."""
    if arguments.modules is not None and not arguments.modules.is_dir():
        raise EbpfwatchError(
            f"cannot read {arguments.modules}: not a directory",
            "give the directory with the files of the modules",
            Exit.USAGE,
        )
    if os.geteuid() != 0 and not arguments.log:
        raise EbpfwatchError(
            "only root may read the kernel's log and the findings, which point to a module",
            "run it as root, or give a log: --log FILE",
            Exit.NOPERM,
        )
    paths = Paths()
    directory = arguments.modules or modulefiles.default_directory(os.uname().release)
    notes: list[str] = []
    triages = list(_triages(arguments.log or [str(paths.dev / "kmsg")], notes))
    findings = []
    try:
        findings = list(store.read_all(state_directory(arguments)))
    except EbpfwatchError as error:
        notes.append(f"the findings were not looked at: {error.message}")
    loaded = read_loaded(paths)
    if not loaded:
        notes.append(f"no module is loaded, or {paths.proc / 'modules'} cannot be read")
    ranking = rank(loaded, directory, triages, findings)
    ranking.notes += notes
    if arguments.json:
        print(json.dumps({"schema": 1, **dataclasses.asdict(ranking)}, ensure_ascii=True))
    else:
        print("\n".join(_text(ranking)))
    return Exit.FAILED if any(one.rank in _SOME for one in ranking.suspects) else Exit.OK


def read_loaded(paths: Paths) -> list[Loaded]:
    """What is in the kernel; the newest stands first in /proc/modules (add_unformed_module() in
    kernel/module.c adds at the head of the list).
    """
    hidden = _hidden(paths)
    listed = read_modules(paths.proc / "modules")
    hidden &= _hidden(paths)  # one that was being loaded or unloaded is not, the second time
    found = [
        _loaded(paths, module.name, module.taints, len(listed) - index, False)
        for index, module in enumerate(listed)
    ]
    return found + [_loaded(paths, name, "", 0, True) for name in sorted(hidden)]


def _hidden(paths: Paths) -> set[str]:
    """Modules that only /sys shows; what is built in has no ``initstate`` there."""
    names = set()
    with contextlib.suppress(OSError):
        for path in (paths.sys / "module").glob("*/initstate"):
            if path.read_text() == "live\n":
                names.add(path.parent.name)
    return names - {module.name for module in read_modules(paths.proc / "modules")}


def _loaded(paths: Paths, name: str, taints: str, order: int, hidden: bool) -> Loaded:
    directory = paths.sys / "module" / name
    told = {}
    for key in ("version", "srcversion", "taint"):
        with contextlib.suppress(OSError):
            told[key] = optional(directory / key) or ""
    build_id = ""
    with contextlib.suppress(OSError):
        build_id = note_build_id((directory / "notes/.note.gnu.build-id").read_bytes())
    return Loaded(
        name,
        taints or told.get("taint", ""),
        order,
        told.get("version", ""),
        told.get("srcversion", ""),
        build_id,
        hidden,
    )


def _triages(files: list[str], notes: list[str]) -> Iterator[Triage]:
    for file in files:
        if re.fullmatch(r".*/kmsg", file):
            yield from _living(Path(file), notes)
            continue
        for log in logs([file]):
            if log.problem and not log.passed_over:
                notes.append(f"{log.name} was not read: it {log.problem}")
            yield from log.boots


def _living(file: Path, notes: list[str]) -> Iterator[Triage]:
    """This kernel's log up to now: its own records, which are those of facility 0."""
    lines: list[bytes] = []
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.closing(os.fdopen(fd, "rb", buffering=0)) as records:
            while len(lines) < _MOST_RECORDS:
                try:
                    record = records.read(8192)
                except BrokenPipeError:
                    continue  # EPIPE: it was overwritten while we read (devkmsg_read())
                if not record:
                    break
                lines.append(kernel_line(record))
    except OSError as error:
        notes.append(f"the kernel's log was not read: {file}: {error.strerror}")
        return
    yield from read(io.BufferedReader(io.BytesIO(b"".join(lines))))


def kernel_line(record: bytes) -> bytes:
    """As dmesg prints it; nothing of a record that user space wrote."""
    head, _, text = record.partition(b";")
    fields = head.split(b",")
    with contextlib.suppress(ValueError, IndexError):
        if int(fields[0]) >> 3 == 0:
            seconds, rest = divmod(int(fields[2]), 10**6)
            first = text.split(b"\n", 1)[0]
            return b"[%5d.%06d] %s\n" % (seconds, rest, first)
    return b""


def _text(ranking: Ranking) -> list[str]:
    suspects = ranking.suspects
    some = [one for one in suspects if one.rank in _SOME]
    lines = []
    if not suspects:
        lines.append(
            f"No module to ask about: none of the {ranking.loaded} that are loaded is from outside"
            " the kernel, and no finding names one."
        )
    else:
        lines.append(
            f"{len(suspects)} modules to ask about, {ranking.loaded} are loaded; something points"
            f" to {len(some)} of them. That a module could do it is no evidence."
        )
    for number, suspect in enumerate(suspects, 1):
        lines += ["", *_one(number, suspect)]
    lines += ["", *(f"Not known: {note}" for note in ranking.notes)] if ranking.notes else []
    return list(wrapped(lines))


def _one(number: int, suspect: Suspect) -> Iterator[str]:
    """A module's paragraph: how much is known against it, why, what it can do, what clears it."""
    loaded, info = suspect.loaded, suspect.info
    taints = f" ({loaded.taints})" if loaded.taints else ""
    yield f"{number}. {loaded.name}{taints}: {RANKS[suspect.rank]}"
    yield from (f"   - {reason}" for reason in suspect.reasons)
    yield from (f"   {meaning}: {', '.join(used)}" for meaning, used in suspect.calls.items())
    about = {
        "version": loaded.version or info.get("version", ""),
        "author": info.get("author", ""),
        "license": info.get("license", ""),
        "description": info.get("description", ""),
    }
    said = ", ".join(f"{key} {value}" for key, value in about.items() if value)
    if said:
        yield f"   it says of itself: {said}"
    if suspect.file:
        whether = {
            True: "it is what was loaded",
            False: "it is not what was loaded",
            None: "whether it is what was loaded cannot be told",
        }[suspect.same]
        yield f"   file: {suspect.file} ({whether})"
    if loaded.order:
        yield f"   loaded as number {loaded.order} since the boot, of those that are loaded now"
    yield f"   what would clear it: {suspect.clears}"
