"""``ebpfwatch status``: is it watching, was anything found; one screen and one exit code."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import textwrap
import time
from typing import Any

from ebpfwatch.commands.daemon import add_run_directory, running
from ebpfwatch.kernel.contracts import in_words
from ebpfwatch.sinks import statusfile
from ebpfwatch.sinks.summary import Level, armed_in_words
from ebpfwatch.system.lock import LOCK
from ebpfwatch.text.printable import printable
from ebpfwatch.text.sizes import size
from ebpfwatch.text.times import ago, utc

_OLD_SECONDS = 30.0  # the daemon writes every five

EXAMPLES = """\
exit codes, those of a Nagios plugin:
  0  OK        watching, nothing found that is not acknowledged
  1  WARNING   a candidate, a hook that is not proven, findings that cannot be kept
  2  CRITICAL  a confirmed finding, an early warning, a silent hook
  3  UNKNOWN   no daemon runs, or it does not answer
with --npd, those of a plugin of node-problem-detector: 0, 1 for a problem, 2 for unknown
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Output form."""
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--short", action="store_true", help="only the first line")
    parser.add_argument(
        "--npd", action="store_true", help="exit codes of node-problem-detector; see below"
    )
    add_run_directory(parser)


def run(arguments: argparse.Namespace) -> int:
    """The level as the exit code."""
    body: dict[str, Any] = {}
    age, hidden = 0.0, os.geteuid() != 0
    try:
        body, age = statusfile.read(arguments.run_directory)
    except PermissionError:
        hidden = True
    except (OSError, ValueError):
        hidden = hidden and (arguments.run_directory / LOCK).exists()
    level, first = _first(body, age, running(arguments.run_directory) is not None, hidden)
    if arguments.json:
        print(json.dumps({**body, "level": level.name, "what": first, "age_seconds": age}))
    else:
        print(f"{level.name}: {printable(first)}")
        if body and not arguments.short:
            _print(body, age)
    return {0: 0, 1: 1, 2: 1, 3: 2}[level.value] if arguments.npd else level.value


def _first(body: dict[str, Any], age: float, locked: bool, hidden: bool) -> tuple[Level, str]:
    """``locked``: a daemon runs, which only root can know; ``hidden``: we may not look."""
    if not body and hidden:
        return Level.UNKNOWN, "only root can see whether a daemon runs here; run it as root"
    if not body and locked:
        return Level.UNKNOWN, "the daemon is still loading its programs; nothing is watched yet"
    if not body:
        return Level.UNKNOWN, "no ebpfwatch daemon is running here, so nothing is watched"
    if not os.path.exists(f"/proc/{body.get('pid')}"):
        return Level.UNKNOWN, f"the daemon (pid {body.get('pid')}) has ended without saying so"
    if age > _OLD_SECONDS:
        return Level.UNKNOWN, f"the daemon (pid {body.get('pid')}) has said nothing for {ago(age)}"
    level = Level[body["level"]] if body["level"] in Level.__members__ else Level.UNKNOWN
    return level, str(body["what"])


def _print(body: dict[str, Any], age: float) -> None:
    host = os.uname()
    _line("", body["why"])
    if body["alert"]:
        _line("what to do", f"the section {body['alert']} of the runbook{_where(body['url'])}")
    _line("machine", f"{host.nodename}, Linux {host.release} {host.machine}")
    _line(
        "daemon",
        f"version {body['version']}, pid {body['pid']}, started {utc(body['started'])},"
        f" {ago(time.time() - body['started'])} ago",
    )
    print()
    _hooks(body["hooks"])
    _line("rules", in_words(body["unchecked_rules"]))
    armed = armed_in_words(body)
    if armed:
        _line("armed", armed)
    print()
    _line("findings", _findings(body))
    said = ", ".join(f"{count} {kind}" for kind, count in sorted(body["kernel_log"].items()))
    _line("kernel log", said or "nothing of interest since the machine booted")
    if body["early_warning"]:
        _line("", "early warning: what came before the known crashes has come together")
    if body["last_boot"]:
        _line("last boot", f"ended: {body['last_boot']}")
    lost = ", ".join(f"{count} {kind}" for kind, count in sorted(body["lost"].items()))
    _line("lost", lost or "nothing since the start")
    canary = ago(time.time() - body["last_canary"]) + " ago" if body["last_canary"] else "never"
    _line("last canary", f"{canary}, on {body['canary_mounts']} filesystem(s)")
    off = f"; the governor keeps {body['governor_step']} hooks off" if body["governor_step"] else ""
    _line(
        "cost",
        f"{body['cpu_percent']:.1f} % of one CPU, {size(body['resident_bytes'])} of memory and"
        f" {size(body['kernel_memory_bytes'])} in the kernel{off}",
    )
    for sink, why in body["sink_problems"].items():
        _line("cannot keep", f"{sink}: {why}")
    _line("files", body["state_directory"])
    _line("metrics", body["url"])
    _line("", f"as of {age:.0f} s ago")


def _where(url: str) -> str:
    return f": {url}/runbook" if url != "off" else " (docs/runbook.md)"


def _hooks(hooks: list[dict[str, Any]]) -> None:
    alive = sum(hook["state"] == "alive" for hook in hooks)
    used = sum(hook["state"] not in ("not used", "off", "on demand") for hook in hooks)
    _line("watched", f"{alive} of {used} hooks in use are proven alive")
    for hook in hooks:
        why = hook["reason"] if hook["state"] in ("not used", "on demand") else hook["how"]
        _line(f"  {hook['role']}", f"{hook['state']}: {why or hook['watches']}")


def _findings(body: dict[str, Any]) -> str:
    told = [
        f"{found['count']} {found['verdict']} ({found['confidence']})"
        + (f", {found['open']} not acknowledged" if found["open"] else "")
        for found in body["findings"]
        if found["count"]
    ]
    tests = f"; {body['tests']} of the self-test" if body["tests"] else ""
    return ("; ".join(told) or "none since the machine booted") + tests


def _line(name: str, text: str) -> None:
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    print(
        textwrap.fill(
            f"{name:<13}{printable(text)}",
            width,
            subsequent_indent=" " * 13,
            break_on_hyphens=False,
        )
        if text
        else name
    )
