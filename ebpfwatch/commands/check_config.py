"""``ebpfwatch check-config FILE``: the same reader as the daemon's."""

from __future__ import annotations

import argparse

from ebpfwatch import config
from ebpfwatch.errors import Exit, say


def configure(parser: argparse.ArgumentParser) -> None:
    """The file."""
    parser.add_argument("file", help="configuration file")


def run(arguments: argparse.Namespace) -> int:
    """Exit 78 with one line if the file is wrong."""
    config.load(arguments.file)
    say(f"{arguments.file} is fine")
    return Exit.OK
