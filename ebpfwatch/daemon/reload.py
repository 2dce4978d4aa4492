"""SIGHUP: the configuration is read again, and what cannot change while we run is said."""

from __future__ import annotations

import time

from ebpfwatch import config
from ebpfwatch.errors import EbpfwatchError
from ebpfwatch.system.log import say
from ebpfwatch.system.notify import notify

__all__ = ["read_again"]


def read_again(path: str, old: config.Config, started: config.Config) -> config.Config | None:
    """The new configuration; None where the file is wrong, and the old one stays in force.
    ``started``: the one that we were started with, which what needs a restart still has.
    """
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        new = config.load(path)
    except EbpfwatchError as error:
        say(f"keeping the old configuration: {error}", "err")
        return None
    for key in config.restart_needed(started, new):
        say(f"{key} is another than at the start and takes effect at the next restart", "warning")
    later = config.restart_needed(old, new)
    at_once = [key for key in config.changed(old, new) if key not in later]
    say(f"read {path} again; changed: {', '.join(at_once) or 'nothing that takes effect now'}")
    return new
