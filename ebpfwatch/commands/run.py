"""``ebpfwatch run``: the daemon, in the foreground (systemd keeps it there, too)."""

from __future__ import annotations

import argparse
import os

from ebpfwatch import config
from ebpfwatch.commands.daemon import add_config, default_run
from ebpfwatch.commands.daemon import settings as chosen
from ebpfwatch.daemon.request import load_request
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.kernel.pending import Pending
from ebpfwatch.paths import Paths
from ebpfwatch.system.files import why_not_roots
from ebpfwatch.system.imports import require
from ebpfwatch.system.lock import Lock
from ebpfwatch.system.log import say


def configure(parser: argparse.ArgumentParser) -> None:
    """Where the configuration is."""
    add_config(parser)
    parser.add_argument(
        "--verbose", action="store_true", help="show what the compiler says while loading"
    )


def run(arguments: argparse.Namespace) -> int:
    """Watch until SIGTERM or SIGINT."""
    # Whatever we were started with: directories above those with a mode of their own get it, too.
    os.umask(0o077)
    settings, file = chosen(arguments.config)
    if os.path.exists(file):
        _judge_hands(os.path.abspath(file), settings)
    else:
        say(f"{file} is not there: every key has its default")
    if settings.metrics.listen:
        # Before anything is made or loaded.
        require("prometheus_client", ', or set metrics.listen: ""')
    paths = Paths(run=default_run())
    lock = Lock(paths.run)
    loader = Pending()
    try:
        loader.ask(load_request(settings, paths, arguments.verbose))
        # While the child loads: importing the daemon takes as long.
        from ebpfwatch.daemon.loop import Daemon

        Daemon(settings, file, paths).run(lock, loader)
    finally:
        loader.abandon()
    return Exit.OK


def _judge_hands(path: str, settings: config.Config) -> None:
    """A file that others can exchange is said; it must not make root run or crash anything."""
    try:
        why_not = why_not_roots(path)
    except OSError as error:
        why_not = error.strerror or str(error)
    if not why_not:
        return
    if settings.actions.command or settings.actions.crash != "never":
        raise EbpfwatchError(
            f"{path} asks for actions, and others could have written it: {why_not}",
            "move it to where only root can write, or leave actions.command empty and"
            " actions.crash never",
            Exit.CONFIG,
        )
    say(f"others than root could change {path}: {why_not}; no action is set, so that does no harm")
