"""``ebpfwatch print-probes``: the first thing to attach to a bug report about a probe."""

from __future__ import annotations

import argparse

from ebpfwatch.errors import Exit
from ebpfwatch.loader import source
from ebpfwatch.paths import PROBES


def configure(parser: argparse.ArgumentParser) -> None:
    """No options but the unit."""
    parser.add_argument(
        "unit",
        nargs="?",
        default="ebpfwatch.c",
        choices=("ebpfwatch.c", "learn.c", "offsets.c", "unlinks.c"),
        help="compilation unit (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print it on stdout."""
    print(source.unit(PROBES, arguments.unit), end="")
    return Exit.OK
