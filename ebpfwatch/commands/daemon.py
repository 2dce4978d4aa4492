"""Where the daemon of this machine keeps its things, for the other commands."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ebpfwatch import config
from ebpfwatch.errors import EbpfwatchError
from ebpfwatch.system.lock import Running, running_daemon

__all__ = [
    "CONFIG",
    "add_config",
    "add_run_directory",
    "add_state_directory",
    "default_run",
    "settings",
    "running",
    "state_directory",
]

CONFIG = "/etc/ebpfwatch/config.yaml"
_RUN = "/run/ebpfwatch"


def default_run() -> Path:
    """The directory of the daemon's lock, where nobody gives another: systemd tells the unit."""
    return Path(os.environ.get("RUNTIME_DIRECTORY", _RUN))


def add_run_directory(parser: argparse.ArgumentParser) -> None:
    """The option that names the directory of the daemon's lock."""
    parser.add_argument(
        "--run-directory",
        type=Path,
        default=default_run(),
        metavar="DIR",
        help="where the daemon's lock is (default: %(default)s)",
    )


def add_state_directory(parser: argparse.ArgumentParser) -> None:
    """The option that names the directory of the findings."""
    parser.add_argument(
        "--state-directory",
        type=Path,
        metavar="DIR",
        help="where the daemon keeps its files (default: the running daemon's, else that of"
        f" {CONFIG})",
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """The option that names the configuration file."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"configuration file (default: {CONFIG}, or the defaults where it is not)",
    )


def settings(file: str | None) -> tuple[config.Config, str]:
    """The configuration, and the file that it is, or would be, in; raises ``EbpfwatchError``."""
    if file is None and not os.path.exists(CONFIG):
        return config.Config(), CONFIG
    file = file or CONFIG
    return config.load(file), file


def running(run_directory: Path) -> Running | None:
    """What the running daemon says of itself; None where none runs, or we may not ask."""
    try:
        return running_daemon(run_directory)
    except EbpfwatchError:
        return None


def state_directory(arguments: argparse.Namespace) -> Path:
    """The one that was given, the running daemon's, the configured one, or the default."""
    if arguments.state_directory is not None:
        return Path(arguments.state_directory)
    daemon = running(default_run())
    if daemon is not None and daemon.state_directory:
        return Path(daemon.state_directory)
    try:
        return Path(settings(None)[0].state_directory)
    except EbpfwatchError:
        return Path(config.Config().state_directory)
