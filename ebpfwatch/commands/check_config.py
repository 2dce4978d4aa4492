"""``ebpfwatch check-config FILE``: the daemon's own readers, of the web configuration too."""

from __future__ import annotations

import argparse
import sys

from ebpfwatch import config
from ebpfwatch.commands.daemon import CONFIG
from ebpfwatch.errors import Exit
from ebpfwatch.system.log import say
from ebpfwatch.text.strictyaml import MAX_BYTES, parse


def configure(parser: argparse.ArgumentParser) -> None:
    """The file."""
    parser.add_argument(
        "file",
        nargs="?",
        default=CONFIG,
        help="configuration file (default: %(default)s); - reads standard input",
    )


def run(arguments: argparse.Namespace) -> int:
    """Exit 78 with one line if the file is wrong."""
    web_config = _load(arguments.file).metrics.web_config
    if web_config:
        from ebpfwatch.sinks.web.guard import Guard

        Guard(web_config)
    say(f"{arguments.file} is fine")
    return Exit.OK


def _load(file: str) -> config.Config:
    if file != "-":
        return config.load(file)
    return parse("standard input", sys.stdin.buffer.read(MAX_BYTES + 1), config.Config)
