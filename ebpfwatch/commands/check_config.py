"""``ebpfwatch check-config FILE``: the daemon's own readers, of the web configuration too."""

from __future__ import annotations

import argparse

from ebpfwatch import config
from ebpfwatch.errors import Exit
from ebpfwatch.system.log import say


def configure(parser: argparse.ArgumentParser) -> None:
    """The file."""
    parser.add_argument("file", help="configuration file")


def run(arguments: argparse.Namespace) -> int:
    """Exit 78 with one line if the file is wrong."""
    web_config = config.load(arguments.file).metrics.web_config
    if web_config:
        from ebpfwatch.sinks.web.guard import Guard

        Guard(web_config)
    say(f"{arguments.file} is fine")
    return Exit.OK
