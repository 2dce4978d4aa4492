"""A restart of the daemon, however it ends, forgets nothing of what this boot found."""

from __future__ import annotations

import dataclasses
import signal
import time
from pathlib import Path

import pytest

from ebpfwatch.paths import Paths
from ebpfwatch.postmortem.last_boot import kernel_boot_id
from ebpfwatch.sinks.store import Store, acknowledge
from tests.live.conftest import DaemonProcess, command, start_daemon
from tests.live.harness import PATIENCE, selftest
from tests.unit.test_verdicts import judged

LABELS = '{confidence="confirmed",kind="effect",verdict="double_free"}'
OPEN = f"ebpfwatch_findings_unacknowledged{LABELS}"
AGE = f"ebpfwatch_finding_age_seconds{LABELS}"
TOTAL = 'ebpfwatch_findings_total{confidence="confirmed",test="%s",verdict="double_free"}'


def ended(daemon: DaemonProcess, how: signal.Signals) -> None:
    """It is gone, in order or not."""
    daemon.process.send_signal(how)
    daemon.process.wait(PATIENCE)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_the_alert_outlives_the_daemon(tmp_path: Path, ext4: Path, how: signal.Signals) -> None:
    """Each start shows what the one before showed; a self-test stays counted, too."""
    finding = dataclasses.replace(
        judged(), boot_id=kernel_boot_id(Paths()), ns=time.monotonic_ns() - 60_000_000_000
    )
    Store(tmp_path / "state", keep=9).write(finding)
    tested = 0.0
    for _ in range(3):
        daemon = start_daemon(tmp_path)
        try:
            first = daemon.metrics()
            assert first[OPEN] == first[TOTAL % "false"] == 1 and 60 <= first[AGE] < 300
            assert first[TOTAL % "true"] == tested
            assert selftest(daemon).returncode == 0
            tested = daemon.settled_metrics()[TOTAL % "true"]
            assert tested >= 1
            page = command("report", "--tests", run_directory=daemon.run_directory)
            assert finding.id in page.stdout, page.stderr
        finally:
            ended(daemon, how)
    assert tested == 3


def test_an_acknowledgement_reaches_the_daemon(tmp_path: Path, ext4: Path) -> None:
    """Within two ticks, and the next start knows it."""
    finding = dataclasses.replace(judged(), boot_id=kernel_boot_id(Paths()))
    Store(tmp_path / "state", keep=9).write(finding)
    for expected in (1.0, 0.0):
        daemon = start_daemon(tmp_path)
        try:
            assert daemon.metrics()[OPEN] == expected
            acknowledge(tmp_path / "state", finding.id, "a test", "")
            daemon.wait_metrics({OPEN: 0, TOTAL % "false": 1, AGE: float("nan")})
        finally:
            ended(daemon, signal.SIGTERM)
