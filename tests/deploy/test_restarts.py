"""An alert that somebody is woken for, over restarts of the real daemon: it never resolves.

Prometheus scrapes and judges each second; what it then holds is asked for each second that passed.
Changed in the copies of the shipped files are only ports and the interval.
"""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpfwatch.paths import Paths
from ebpfwatch.postmortem.last_boot import kernel_boot_id
from ebpfwatch.sinks.store import Store, acknowledge
from tests.deploy.stack import api, prometheus, shipped
from tests.live.conftest import ROOT, DaemonProcess, free_port, start_daemon
from tests.live.harness import PATIENCE, until
from tests.unit.test_verdicts import judged

FIRING = 'ALERTS{alertname="EbpfwatchDamage",alertstate="firing"}'
DOWN = 'up{job="ebpfwatch"} == 0'
#: How the daemon ends, and how many seconds it is away.
ENDS = (
    (signal.SIGKILL, 0.0),
    (signal.SIGTERM, 0.0),
    (signal.SIGKILL, 8.0),
    (signal.SIGTERM, 8.0),
)


@dataclasses.dataclass
class Scraped:
    """A daemon on an address of its own, and the Prometheus that scrapes it."""

    directory: Path
    listen: str
    url: str
    daemon: DaemonProcess

    def start(self) -> None:
        """Once more."""
        self.daemon = start_daemon(self.directory, listen=self.listen)

    def holds(self, query: str) -> bool:
        """Whether it has a value now."""
        return bool(api(self.url, "query", query=query)["result"])

    def seconds(self, query: str, start: float, end: float) -> set[int]:
        """In which whole seconds of that time it had one."""
        times = {"start": str(int(start)), "end": str(int(end)), "step": "1"}
        found = api(self.url, "query_range", query=query, **times)["result"]
        return {int(at) for series in found for at, _ in series["values"]}


@pytest.fixture
def scraped(tmp_path: Path, ext4: Path) -> Iterator[Scraped]:
    """With the shipped rules, each second."""
    listen = f"127.0.0.1:{free_port()}"
    shipped("ebpfwatch.rules.yml", tmp_path, {})
    # Both intervals: of the scrapes and of the rules.
    each = {"interval: 15s": "interval: 1s", "127.0.0.1:9866": listen}
    with prometheus(tmp_path, shipped("prometheus.yml", tmp_path, each)) as url:
        found = Scraped(tmp_path, listen, url, start_daemon(tmp_path, listen=listen))
        try:
            until(lambda: found.holds("ebpfwatch_ready == 1"))
            yield found
        finally:
            found.daemon.stop()


def test_the_alert_stays_over_every_restart(scraped: Scraped) -> None:
    """Stopped or killed, started at once or later: not one second without the alert, from the first
    scrape of the finding until somebody acknowledges it.
    """
    finding = dataclasses.replace(judged(), boot_id=kernel_boot_id(Paths()), ns=time.monotonic_ns())
    assert not scraped.holds(FIRING)
    # The daemon ends at its finding, as one does whose machine is damaged, before any scrape.
    scraped.daemon.process.send_signal(signal.SIGKILL)
    scraped.daemon.process.wait(PATIENCE)
    state = scraped.directory / "state"
    Store(state, keep=9).write(finding)
    scraped.start()
    until(lambda: scraped.holds(FIRING), lambda: api(scraped.url, "rules"))
    began = time.time()
    for how, away in ENDS:
        scraped.daemon.process.send_signal(how)
        scraped.daemon.process.wait(PATIENCE)
        time.sleep(away)
        scraped.start()
        until(lambda: scraped.holds("ebpfwatch_ready == 1"))
    # And killed while it starts, at moments of which none is chosen.
    config = str(scraped.daemon.config)
    for _ in range(4):
        scraped.daemon.process.send_signal(signal.SIGKILL)
        scraped.daemon.process.wait(PATIENCE)
        with subprocess.Popen(
            [sys.executable, "-m", "ebpfwatch", "run", "--config", config],
            cwd=ROOT,
            env={**os.environ, "RUNTIME_DIRECTORY": str(scraped.daemon.run_directory)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as starting:
            time.sleep(random.uniform(0.1, 5))
            starting.kill()
        scraped.start()
        until(lambda: scraped.holds("ebpfwatch_ready == 1"))
    ended = time.time()
    wanted = set(range(int(began) + 1, int(ended)))
    assert wanted - scraped.seconds(FIRING, began, ended) == set()
    # It was really away, and seen to be.
    assert len(scraped.seconds(DOWN, began, ended)) >= 10
    acknowledge(state, finding.id, "a test", "")
    until(lambda: not scraped.holds(FIRING), lambda: scraped.daemon.log.read_text())
