"""From the kernel to a webhook: the daemon, Prometheus, Alertmanager, all real, all as shipped.

Changed in the copies are only ports and times.
"""

from __future__ import annotations

import queue
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import program
from tests.deploy.stack import SHIPPED, alertmanager, api, prometheus, shipped, webhook
from tests.live.conftest import DaemonProcess, free_port
from tests.live.harness import PATIENCE, selftest, until

RULES = yaml.safe_load((SHIPPED / "ebpfwatch.rules.yml").read_text())
ALERTS = [r for group in RULES["groups"] for r in group["rules"] if "alert" in r]
RECEIVERS = {"critical": "pager", "warning": "tickets", "info": "dashboard", "none": "selftest"}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_the_severity_decides_who_hears_of_it(rule: dict[str, Any]) -> None:
    """By Alertmanager's own router; the self-test reaches only its own receiver."""
    severity = rule["labels"]["severity"]
    labels = [f"alertname={rule['alert']}", f"severity={severity}", "instance=x"]
    config = SHIPPED / "alertmanager.yml"
    routed = subprocess.run(
        [program("amtool")["amtool"], "config", "routes", "test", f"--config.file={config}"]
        + [f"--verify.receivers={RECEIVERS[severity]}", *labels],
        capture_output=True,
        text=True,
    )
    assert routed.returncode == 0, routed.stdout + routed.stderr


def test_a_selftest_wakes_nobody_even_if_a_rule_says_critical() -> None:
    """Its route comes first."""
    labels = ["alertname=EbpfwatchSelftest", "severity=critical", "instance=x"]
    config = SHIPPED / "alertmanager.yml"
    words = [program("amtool")["amtool"], "config", "routes", "test", f"--config.file={config}"]
    routed = subprocess.run([*words, *labels], capture_output=True, text=True, check=True)
    assert routed.stdout.strip() == "selftest"


def test_from_the_kernel_to_the_webhook(daemon: DaemonProcess, tmp_path: Path) -> None:
    """A self-test's finding arrives as EbpfwatchSelftest, a stopped daemon as EbpfwatchDown."""
    hook_port, alert_port = free_port(), free_port()
    target = daemon.url.removeprefix("http://")
    shipped("ebpfwatch.rules.yml", tmp_path, {"for: 3m": "for: 2s"})
    alerts = {"127.0.0.1:9093": f"127.0.0.1:{alert_port}"}
    scrapes = {"interval: 15s": "interval: 1s", "127.0.0.1:9866": target}
    config = shipped("prometheus.yml", tmp_path, {**alerts, **scrapes})
    hooks = {"group_wait: 10s": "group_wait: 1s", "127.0.0.1:9867": f"127.0.0.1:{hook_port}"}
    routes = shipped("alertmanager.yml", tmp_path, hooks)
    with (
        webhook(hook_port) as posted,
        alertmanager(tmp_path, routes, alert_port),
        prometheus(tmp_path, config) as url,
    ):
        scraped = "ebpfwatch_ready == 1"
        until(lambda: api(url, "query", query=scraped)["result"], lambda: api(url, "targets"))
        assert selftest(daemon).returncode == 0
        path, alert = heard(posted)
        assert path == "/selftest"
        assert alert["labels"] == {
            "alertname": "EbpfwatchSelftest",
            "severity": "none",
            "verdict": "double_free",
            "job": "ebpfwatch",
            "instance": target,
        }
        assert f"self-test on {target}" in alert["annotations"]["summary"]
        opened = urllib.parse.urlparse(alert["annotations"]["runbook_url"])
        with urllib.request.urlopen(opened.geturl(), timeout=10) as page:
            assert f"id='{opened.fragment}'" in page.read().decode()
        daemon.stop()
        path, alert = heard(posted)
        assert (path, alert["labels"]["alertname"]) == ("/tickets", "EbpfwatchDown")
        assert posted.empty()


def heard(posted: queue.Queue[tuple[str, dict[str, Any]]]) -> tuple[str, dict[str, Any]]:
    """Where the next notification went, and its one alert."""
    path, body = posted.get(timeout=PATIENCE)
    assert body["status"] == "firing"
    (alert,) = body["alerts"]
    return path, alert
