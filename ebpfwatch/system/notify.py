"""Words for systemd (sd_notify(3)), through systemd-python; silent where nobody listens."""

from __future__ import annotations

import os

__all__ = ["notify"]


def notify(state: str) -> None:
    """Send one state, like "READY=1"; does nothing without NOTIFY_SOCKET."""
    if "NOTIFY_SOCKET" not in os.environ:
        return
    try:
        from systemd import daemon
    except ImportError:
        return
    daemon.notify(state)
