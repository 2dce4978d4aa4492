"""``ebpfwatch balance MODULE``: does a module give back the references that it takes?"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import select
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from ebpfwatch.balance.calls import Module, Site, find
from ebpfwatch.balance.counts import judge, lines
from ebpfwatch.commands import seconds
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.host.fields import optional
from ebpfwatch.kernel.symbols import Symbols
from ebpfwatch.loader.balancing import MOST_SITES, Placed, Watch
from ebpfwatch.loader.running import capabilities_missing
from ebpfwatch.paths import Paths
from ebpfwatch.system.log import say
from ebpfwatch.system.signals import Signals
from ebpfwatch.text.printable import printable
from ebpfwatch.triage import kofile, modulefiles

EXAMPLES = """\
exit code 0: what it takes and gives back adds up, or cannot be judged; 1: it does not add up

examples:
  ebpfwatch balance vendor_fs                   30 seconds of its work, as root
  ebpfwatch balance vendor_fs --seconds 300     longer, for what it does seldom
"""

_LONGEST = 3600.0
_LOOK_SECONDS = 1.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Which module, how long, at which cost."""
    parser.add_argument("module", metavar="MODULE", help="its name, as in /proc/modules")
    parser.add_argument(
        "--seconds", type=seconds, default=30.0, metavar="S", help="how long (default: 30)"
    )
    parser.add_argument(
        "--modules",
        type=Path,
        metavar="DIR",
        help="where its file is (default: /lib/modules/RELEASE of this kernel)",
    )
    parser.add_argument(
        "--cpu-percent",
        type=seconds,
        default=5.0,
        metavar="P",
        help="end it where it costs more than this share of one CPU (default: 5)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Watch, and say what adds up; exit 1 if something does not."""
    name = arguments.module.replace("-", "_")
    paths = Paths()
    module = _file(paths, name, arguments.modules)
    missing = capabilities_missing()
    if missing:
        raise EbpfwatchError(f"loading BPF programs needs {missing}", "run it as root", Exit.NOPERM)
    addresses = _sections(paths, name, module.sites)
    if not module.sites:
        print(f"{printable(name)} calls none of the functions that take or give back references")
        return Exit.OK
    if len(module.sites) > MOST_SITES:
        raise EbpfwatchError(
            f"{name} calls them from {len(module.sites)} places, and {MOST_SITES} can be watched",
            "",
            Exit.UNAVAILABLE,
        )
    say("compiling", "info")
    placed = [Placed(site, addresses[site.section] + site.offset) for site in module.sites]
    signals = Signals(signal.SIGINT, signal.SIGTERM)
    with contextlib.closing(signals):
        watch = Watch(module, placed)
        say(
            f"compiled in {watch.compile_seconds:.1f} s; {len(placed)} calls of {name} are watched"
            f" for {min(arguments.seconds, _LONGEST):g} s; Ctrl-C ends it"
        )
        ended = _follow(watch, signals, arguments)
    elapsed = time.monotonic() - watch.began
    symbols = Symbols(paths.proc / "kallsyms")
    symbols.load()
    counts = watch.finish({one.address: symbols.name(one.address) for one in placed})
    judgements = judge(counts)
    calls = sum(one.calls + one.nothing for one in counts.sites)
    cost = "what a call costs could not be measured"
    if watch.cost_ns is not None:
        percent = calls * watch.cost_ns / elapsed / 1e7
        cost = f"each costs {watch.cost_ns:.0f} ns, measured here: {percent:.2g} % of one CPU"
    if arguments.json:
        body = {
            "schema": 1,
            "module": name,
            "seconds": round(elapsed, 3),
            "ended": ended,
            "calls": calls,
            "cost_ns": watch.cost_ns,
            "kinds": [dataclasses.asdict(one) for one in judgements],
            "sites": [dataclasses.asdict(one) for one in counts.sites],
        }
        print(json.dumps(body))
    else:
        print(f"{printable(name)}: {elapsed:.1f} s, {ended}; {calls} calls were seen, {cost}")
        print("\n".join(printable(line) for line in lines(counts, judgements)))
    return Exit.FAILED if any(one.bad for one in judgements) else Exit.OK


def _file(paths: Paths, name: str, directory: Path | None) -> Module:
    """What the file of the loaded module says; raises ``EbpfwatchError`` where it is not found."""
    home = paths.sys / "module" / name
    if not (home / "sections").is_dir():
        raise EbpfwatchError(
            f"the module {name} is not loaded"
            if not home.is_dir()
            else f"{name} is part of the kernel, not a module: {home} has no sections",
            "`ebpfwatch suspects` lists the modules from outside the kernel",
            Exit.USAGE,
        )
    where = directory or modulefiles.default_directory(os.uname().release)
    found = [path for path in kofile.walk(where) if kofile.named(path) == name] if where else []
    ours, srcversion = b"", optional(home / "srcversion")
    with contextlib.suppress(OSError):
        ours = (home / "notes/.note.gnu.build-id").read_bytes()
    refused = ""
    for path in found:
        data = kofile.contents(path)
        if data is None:
            refused = f"{path} cannot be read"
            continue
        if not _same(data, kofile.note_build_id(ours), srcversion):
            refused = f"{path} is not the file that was loaded"
            continue
        module = find(data)
        if module is not None:
            return module
        refused = f"{path} is no module of this machine"
    raise EbpfwatchError(
        f"where {name} calls is in its file, and {refused or f'there is none below {where}'}",
        "give the directory of the file that was loaded with --modules DIR",
        Exit.UNAVAILABLE,
    )


def _same(data: bytes, build_id: str, srcversion: str | None) -> bool:
    """Whether it is the file that was loaded; where neither tells, its name has to do."""
    if build_id and kofile.build_id(data):
        return build_id == kofile.build_id(data)
    told = kofile.modinfo(data).get("srcversion")
    return not (srcversion and told) or srcversion == told


def _sections(paths: Paths, name: str, sites: Sequence[Site]) -> dict[str, int]:
    """Where the sections of the module lie in memory."""
    found = {}
    for section in {site.section for site in sites}:
        text = optional(paths.sys / "module" / name / "sections" / section) or "0"
        found[section] = int(text, 16)
    if not all(found.values()):
        raise EbpfwatchError(
            f"the kernel does not tell where the code of {name} lies",
            "run it as root, with kernel.kptr_restrict below 2",
            Exit.UNAVAILABLE,
        )
    return found


def _follow(watch: Watch, signals: Signals, arguments: argparse.Namespace) -> str:
    """Until the time is over, a signal comes, or it costs too much; why it ended."""
    ends = watch.began + min(arguments.seconds, _LONGEST)
    calls, at = 0, time.monotonic()
    while not signals.stop:
        left = ends - time.monotonic()
        if left <= 0:
            return "the time is over"
        select.select([signals.fd], [], [], min(_LOOK_SECONDS, left))
        before, calls, was, at = calls, watch.calls, at, time.monotonic()
        percent = (calls - before) * (watch.cost_ns or 0.0) / (at - was) / 1e7
        if percent > arguments.cpu_percent:
            return f"ended early: it cost {percent:.0f} % of one CPU"
    return "ended by a signal"
