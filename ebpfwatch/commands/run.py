"""``ebpfwatch run``: the daemon, in the foreground (systemd keeps it there, too)."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ebpfwatch import config
from ebpfwatch.errors import Exit
from ebpfwatch.paths import Paths


def configure(parser: argparse.ArgumentParser) -> None:
    """Where the configuration is."""
    parser.add_argument(
        "--config",
        default="/etc/ebpfwatch/config.yaml",
        help="configuration file (default: %(default)s)",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="show what the compiler says while loading"
    )


def run(arguments: argparse.Namespace) -> int:
    """Watch until SIGTERM or SIGINT."""
    # Whatever we were started with: directories above those with a mode of their own get it, too.
    os.umask(0o077)
    settings = config.load(arguments.config)
    from ebpfwatch.daemon.loop import Daemon

    run_directory = Path(os.environ.get("RUNTIME_DIRECTORY", "/run/ebpfwatch"))
    Daemon(settings, arguments.config, Paths(run=run_directory), arguments.verbose).run()
    return Exit.OK
