"""SIGHUP: the configuration is read again, and what cannot change while we run is said."""

from __future__ import annotations

import time

from ebpfwatch import config
from ebpfwatch.errors import EbpfwatchError
from ebpfwatch.system.log import say
from ebpfwatch.system.notify import notify

__all__ = ["read_again"]


def read_again(path: str, old: config.Config) -> config.Config | None:
    """The new configuration; None where the file is wrong, and the old one stays in force."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        new = config.load(path)
    except EbpfwatchError as error:
        say(f"keeping the old configuration: {error}", "err")
        return None
    for key in config.restart_needed(old, new):
        say(f"{key} has changed and takes effect at the next restart", "warning")
    say(f"read {path} again")
    return new
