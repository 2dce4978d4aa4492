"""What nobody may do to the governor."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from tests.live.harness import DaemonProcess, watching

STEP = "ebpfwatch_governor_step"


def scrape(daemon: DaemonProcess, until: float) -> None:
    """As often as one client can."""
    while time.monotonic() < until:
        daemon.metrics()


def test_scrapes_take_no_hook_off(tmp_path: Path, ext4: Path) -> None:
    """Whoever reaches the port could blind the watch: what answering costs, no hook can save."""
    with watching(tmp_path, cpu_percent="5") as daemon:
        until = time.monotonic() + 16  # three ticks
        clients = [threading.Thread(target=scrape, args=(daemon, until)) for _ in range(3)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert daemon.settled_metrics()[STEP] == 0, daemon.log.read_text()
