"""``ebpfwatch check``: a doctor. Reads, loads the real programs without attaching them, and changes
nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import textwrap
from collections.abc import Iterable
from typing import Any

from ebpfwatch import config
from ebpfwatch.advice import Advice, Level, hooks, memory, modules, plans, storage, survival
from ebpfwatch.catalogue.ladder import wishes
from ebpfwatch.commands.daemon import CONFIG, settings
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.host import openfiles, room
from ebpfwatch.host.sources import Sources
from ebpfwatch.host.state import HostReader, HostState
from ebpfwatch.kernel.dry_run import DryRun
from ebpfwatch.kernel.hook import LoadedHook
from ebpfwatch.kernel.pending import probe
from ebpfwatch.kernel.protocol import Examined, LoadRequest
from ebpfwatch.kernellog.watcher import Watcher
from ebpfwatch.paths import Paths
from ebpfwatch.sinks import statusfile
from ebpfwatch.sinks.summary import armed_in_words
from ebpfwatch.system.log import say
from ebpfwatch.system.worker import Worker
from ebpfwatch.text.printable import printable

_ABOUT = {
    "hooks": "what the watcher can see here",
    "survival": "what a crash would leave behind",
    "memory": "how near reclaim is, where the inodes of this bug die",
    "storage": "the ext4 filesystems",
    "modules": "whose code runs in this kernel",
    "plans": "what people try against this bug, judged for this machine; nothing of it was done",
}


_CANNOT = (Exit.UNAVAILABLE, Exit.SOFTWARE)


@dataclasses.dataclass
class _Hooks:
    """What trying the hooks gave, or the error that says why nothing was tried."""

    found: Examined | None = None
    failure: EbpfwatchError | None = None

    @property
    def dry_run(self) -> DryRun:
        """What came of loading, nothing if nothing was tried."""
        return self.found.dry_run if self.found else DryRun()

    @property
    def hooks(self) -> tuple[LoadedHook, ...]:
        """One a role, none if nothing was tried."""
        return self.found.hooks if self.found else ()

    @property
    def error(self) -> EbpfwatchError | None:
        """Why not everything was tried."""
        return self.failure or self.dry_run.error

    @property
    def usable(self) -> bool:
        return self.error is None and hooks.usable(self.hooks, self.dry_run)


def configure(parser: argparse.ArgumentParser) -> None:
    """Output form."""
    parser.add_argument("--json", action="store_true", help="one JSON object, with every line")
    parser.add_argument(
        "--all", action="store_true", help="show what is fine and the plans, too; by section"
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"whose programs are tried (default: {CONFIG}, or the defaults where it is not)",
    )
    parser.add_argument("--btf", metavar="FILE", help="instead of hooks.btf: this kernel's BTF")
    parser.add_argument(
        "--rungs", type=_wishes, help='instead of hooks.rungs: "alloc=kprobe destroy=none"'
    )
    parser.add_argument("--verbose", action="store_true", help="show what the loader says")


def _wishes(text: str) -> str:
    try:
        wishes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def run(arguments: argparse.Namespace) -> int:
    """Exit 0 if all is well, 1 if a line says FAIL, 69 if the watcher cannot work here, 77 if what
    we may see is not enough to tell.
    """
    tried, paths = _try_hooks(arguments), Paths()
    host = _host(paths)
    advice = [*_of_hooks(tried), *_of_daemon(paths), *_of_host(host)]
    code = _exit_code(tried, host, advice)
    if arguments.json:
        print(json.dumps(_body(tried, host, advice)))
    else:
        _print(tried, advice, arguments.all)
    if tried.error is not None:
        say(str(tried.error), "err")
    return code


def _try_hooks(arguments: argparse.Namespace) -> _Hooks:
    try:
        return _Hooks(probe(_request(arguments)))
    except EbpfwatchError as error:
        return _Hooks(failure=error)


def _request(arguments: argparse.Namespace) -> LoadRequest:
    """What the daemon would ask of the loader."""
    request = config.loader_request(settings(arguments.config)[0])
    return dataclasses.replace(
        request,
        btf=request.btf if arguments.btf is None else arguments.btf,
        rungs=request.rungs if arguments.rungs is None else arguments.rungs,
        verbose=arguments.verbose,
    )


def _host(paths: Paths) -> HostState:
    """The state; a source that fails is a line of advice, so nothing is logged."""
    sources = Sources(lambda line, level: None)
    state = HostReader(paths, sources).state()
    found = sources.read("room", lambda: room.read(paths, state.disks), None)
    state = dataclasses.replace(state, room=found, disk_errors=_disk_errors(paths))
    return _with_open_files(paths, state)


def _with_open_files(paths: Paths, state: HostState, seconds: float = 20.0) -> HostState:
    """Counted by a thread: the mappings of a task that waits in the kernel with its mmap_lock held
    cannot be read until it goes on, as on a machine whose disk does not answer.
    """
    counted: list[openfiles.OpenFiles] = []
    problems = dict(state.problems)

    def count() -> None:
        try:
            counted.append(openfiles.read(paths, seconds / 2))
        except (OSError, ValueError) as error:
            problems["open_files"] = str(error)

    worker = Worker("open files")
    worker.submit(count)
    if not worker.finish(seconds):
        problems["open_files"] = f"not counted within {seconds:g} s: /proc does not answer"
    return dataclasses.replace(state, open_files=next(iter(counted), None), problems=problems)


def _disk_errors(paths: Paths) -> dict[str, int] | None:
    """What the kernel's log still holds of disk errors, by device; None where it cannot be read."""
    watcher = Watcher(paths.dev / "kmsg")
    if watcher.missing:
        return None
    os.close(watcher.fd)
    return watcher.disk_errors_before


def _of_hooks(tried: _Hooks) -> list[Advice]:
    error = tried.failure
    if error is None:
        return hooks.advise(tried.found) if tried.found else []
    # A refusal of the system, a defect: something is wrong. No permission, no answer: who knows.
    level = Level.FAIL if error.exit_code in _CANNOT else Level.UNKNOWN
    return [Advice("hooks", "all", level, error.message, error.hint)]


def _of_daemon(paths: Paths) -> list[Advice]:
    """What the running daemon has attached for a reason; nothing where none runs."""
    try:
        body, _age = statusfile.read(paths.run)
        armed = armed_in_words(body)
    except (OSError, ValueError, KeyError):
        return []
    if not armed:
        return []
    return [Advice("hooks", "armed", Level.WARN, armed, "docs/contracts.md: What is armed")]


def _of_host(host: HostState) -> list[Advice]:
    sections = (survival, memory, storage, modules, plans)
    return [line for section in sections for line in section.advise(host)]


def _exit_code(tried: _Hooks, host: HostState, advice: Iterable[Advice]) -> Exit:
    """The plans are not what is, so they do not count."""
    if tried.error is not None:
        return tried.error.exit_code
    no_ext4 = not host.disks and "disks" not in host.problems
    if not tried.usable or no_ext4:
        return Exit.UNAVAILABLE
    failed = any(line.level is Level.FAIL and line.section != "plans" for line in advice)
    return Exit.FAILED if failed else Exit.OK


def _body(tried: _Hooks, host: HostState, advice: Iterable[Advice]) -> dict[str, Any]:
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "usable": tried.usable,
        "hooks": [{"role": h.role, "rung": h.name, "reason": h.why} for h in tried.hooks],
        "dry_run": _dry_run(tried),
        "features": vars(tried.found.features) if tried.found else {},
        "mounts": [disk.mount for disk in host.disks],
        "advice": [{**vars(line), "level": line.level.value} for line in advice],
        "host": host.to_json(),
    }


def _dry_run(tried: _Hooks) -> dict[str, Any]:
    error = tried.dry_run.error
    return {
        "programs": [vars(program) for program in tried.dry_run.programs],
        "left_out": {hook.role: hook.left_out for hook in tried.hooks if hook.left_out},
        "instead": tried.dry_run.instead,
        "error": error and {"message": error.message, "hint": error.hint},
        "exit": int(error.exit_code) if error else 0,
    }


def _print(tried: _Hooks, advice: list[Advice], all_: bool) -> None:
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    print(f"Linux {platform.release()} {platform.machine()}")
    shown = advice if all_ else _problems(advice)
    section = ""
    for line in shown:
        if all_ and line.section != section:
            section = line.section
            print(f"\n{section}: {_ABOUT[section]}")
        _print_line(line, width, "" if all_ else f"{line.section}: ")
    levels = [line.level for line in shown]
    sums = ", ".join(f"{levels.count(level)} {level.value}" for level in _WORST if level in levels)
    print(f"\n{sums or 'no problems'}; {_conclusion(tried)}")
    hidden = len(advice) - len(shown)
    if hidden:
        plans = sum(line.section == "plans" for line in advice)
        print(f"not shown: {hidden - plans} lines that are OK, {plans} judged plans; see --all")


#: The worst first.
_WORST = (Level.FAIL, Level.UNKNOWN, Level.WARN, Level.OK)


def _problems(advice: list[Advice]) -> list[Advice]:
    """What is not fine, the worst first; plans are what might be done, and no problem."""
    found = [line for line in advice if line.level is not Level.OK and line.section != "plans"]
    return sorted(found, key=lambda line: _WORST.index(line.level))


def _conclusion(tried: _Hooks) -> str:
    if tried.error is not None and tried.error.exit_code is not Exit.UNAVAILABLE:
        return "the watcher may or may not be able to do its work here"
    if not tried.usable:
        return "the watcher cannot do its work here"
    if tried.dry_run.refused:
        return f'the watcher can do its work here only with hooks.rungs: "{tried.dry_run.instead}"'
    return "the watcher can do its work here"


def _print_line(line: Advice, width: int, section: str = "") -> None:
    head = f"  {line.level.value:<8}{section}{printable(line.item)}: {printable(line.value)}"
    for text, indent in ((head, 10), (printable(line.why), 10)):
        first = "" if text is head else " " * indent
        for part in textwrap.wrap(
            text,
            width,
            initial_indent=first,
            subsequent_indent=" " * indent,
            break_on_hyphens=False,
        ):
            print(part)
    if line.command:
        print(f"{'':10}$ {printable(line.command)}")  # in one piece, so that it can be copied
