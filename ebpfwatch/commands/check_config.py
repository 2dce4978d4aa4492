"""``ebpfwatch check-config FILE``: the daemon's own readers, of the web configuration too."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ebpfwatch import config
from ebpfwatch.commands.daemon import CONFIG
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.system.files import why_not_ours
from ebpfwatch.system.log import say
from ebpfwatch.text.strictyaml import MAX_BYTES, parse


def configure(parser: argparse.ArgumentParser) -> None:
    """The file."""
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        default=CONFIG,
        help="configuration file (default: %(default)s); - reads standard input",
    )


def run(arguments: argparse.Namespace) -> int:
    """Exit 78 with one line if the file is wrong."""
    settings = _load(arguments.file)
    web_config = settings.metrics.web_config
    if web_config:
        from ebpfwatch.sinks.web.guard import Guard

        Guard(web_config)
    _look_at(Path(settings.state_directory))
    say(f"{arguments.file} is fine")
    return Exit.OK


def _look_at(directory: Path) -> None:
    """What `run` would refuse; raises ``EbpfwatchError``.  It makes the directory if it is not
    there, so only what is there can be wrong.
    """
    try:
        why_not = why_not_ours(directory)
    except OSError:
        return
    if why_not:
        raise EbpfwatchError(
            f"findings cannot go to state_directory {directory}: {why_not}",
            "whoever can write there decides where root writes; give it to root alone",
            Exit.CONFIG,
        )


def _load(file: str) -> config.Config:
    if file != "-":
        return config.load(file)
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    return parse("standard input", data, config.Config, lambda line: say(line, "warning"))
