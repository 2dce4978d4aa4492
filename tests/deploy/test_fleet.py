"""deploy/fleet in the tools it is for, and a finding that travels from a host to a collector."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpfwatch.sinks.journal import fields
from tests.deploy import stack
from tests.deploy.conftest import program
from tests.live.conftest import free_port
from tests.live.harness import PATIENCE, until
from tests.unit.test_sinks import findings

FLEET = Path(__file__).parents[2] / "deploy/fleet"
REMOTE = Path("/lib/systemd/systemd-journal-remote")
UPLOAD = Path("/lib/systemd/systemd-journal-upload")
COLLECTOR = "192.0.2.1"  # RFC 5737: nobody's address, and only in our own namespaces


def test_the_playbook_is_understood(tmp_path: Path) -> None:
    """playbook.yml, by Ansible's own syntax check."""
    words = [program("ansible-playbook")["ansible-playbook"], "-i", "localhost,", "--syntax-check"]
    environment = {**os.environ, "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
    playbook = str(FLEET / "playbook.yml")
    done = subprocess.run([*words, playbook], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "playbook: " in done.stdout, done.stdout + done.stderr


def test_promtool_understands_the_fleet() -> None:
    """prometheus.yml with the rules and the targets it names."""
    words = [program("promtool")["promtool"], "check", "config", str(FLEET / "prometheus.yml")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0 and "rules found" in done.stdout, done.stdout + done.stderr


def test_labels_from_files_reach_the_central_prometheus(tmp_path: Path) -> None:
    """targets.yml gives a series its site; remote_write carries it, and leaves the rest at home;
    a machine that is down is told to the site's Alertmanager, with the site's name.
    """
    ports = {name: free_port() for name in ("site", "centre", "alerts", "nobody", "hook")}
    stack.shipped("ebpfwatch.rules.yml", tmp_path, {"for: 3m": "for: 2s"})
    changes = {
        "../prometheus/ebpfwatch.rules.yml": "ebpfwatch.rules.yml",
        "127.0.0.1:9090": f"127.0.0.1:{ports['centre']}",
        "127.0.0.1:9093": f"127.0.0.1:{ports['alerts']}",
        "15s": "1s",
    }
    config = tmp_path / "prometheus.yml"
    config.write_text(_changed(FLEET / "prometheus.yml", changes))
    # One that answers, and one where nobody listens.
    targets = {
        "'10.0.0.11:9866', '10.0.0.12:9866'": f"'127.0.0.1:{ports['site']}'",
        "'10.0.1.11:9866'": f"'127.0.0.1:{ports['nobody']}'",
    }
    (tmp_path / "targets.yml").write_text(_changed(FLEET / "targets.yml", targets))
    (tmp_path / "centre.yml").write_text("global: {}\n")
    hooks = {"group_wait: 10s": "group_wait: 1s", "127.0.0.1:9867": f"127.0.0.1:{ports['hook']}"}
    routes = stack.shipped("alertmanager.yml", tmp_path, hooks)
    with contextlib.ExitStack() as running:
        posted = running.enter_context(stack.webhook(ports["hook"]))
        running.enter_context(stack.alertmanager(tmp_path, routes, ports["alerts"]))
        centre = running.enter_context(
            _prometheus(
                tmp_path / "centre.yml", ports["centre"], "--web.enable-remote-write-receiver"
            )
        )
        running.enter_context(_prometheus(config, ports["site"]))
        query = 'up{job="ebpfwatch", site="east", role="desktop"}'
        until(lambda: stack.api(centre, "query", query=query)["result"], lambda: "nothing came")
        names = stack.api(centre, "label/__name__/values")
        assert not [name for name in names if name.startswith("prometheus_")]
        path, body = posted.get(timeout=PATIENCE)
    (alert,) = body["alerts"]
    assert path == "/tickets" and alert["labels"]["alertname"] == "EbpfwatchDown"
    assert (alert["labels"]["site"], alert["status"]) == ("west", "firing")


def _changed(file: Path, changes: dict[str, str]) -> str:
    text = file.read_text()
    for old, new in changes.items():
        assert old in text, f"{file} has no {old}"
        text = text.replace(old, new)
    return text


def _prometheus(config: Path, port: int, *more: str) -> contextlib.AbstractContextManager[str]:
    directory = config.parent / f"of-{config.stem}"
    directory.mkdir()
    return stack.running(
        directory / "log",
        f"http://127.0.0.1:{port}",
        program("prometheus")["prometheus"],
        f"--config.file={config}",
        f"--storage.tsdb.path={directory}",
        f"--web.listen-address=127.0.0.1:{port}",
        *more,
    )


@pytest.fixture
def two_hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces on one wire: (host, collector)."""
    program("ip")
    host, collector = f"ebpfwatch-host-{os.getpid()}", f"ebpfwatch-collector-{os.getpid()}"
    for name in (host, collector):
        subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        words = ["ip", "-n", host, "link", "add", "wire", "type", "veth", "peer", "wire"]
        subprocess.run([*words, "netns", collector], check=True)
        for name, address in ((host, "192.0.2.2"), (collector, COLLECTOR)):
            subprocess.run(
                ["ip", "-n", name, "addr", "add", f"{address}/24", "dev", "wire"], check=True
            )
            subprocess.run(["ip", "-n", name, "link", "set", "wire", "up"], check=True)
        yield host, collector
    finally:
        for name in (host, collector):
            subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.mark.skipif(
    not (REMOTE.exists() and UPLOAD.exists()),
    reason="systemd-journal-remote is not installed: sudo make test-deploy",
)
def test_a_finding_reaches_the_collector(two_hosts: tuple[str, str], tmp_path: Path) -> None:
    """Over the wire, by systemd-journal-upload and -remote: every field is there."""
    host, collector = two_hosts
    finding = findings(1)[0]
    journal = tmp_path / "host/local.journal"
    journal.parent.mkdir()
    _write_journal(journal, fields(finding))
    arrived = tmp_path / "collector"
    arrived.mkdir()
    listen = f"http://{COLLECTOR}:19532"
    words = ["ip", "netns", "exec", collector, str(REMOTE), f"--listen-http={COLLECTOR}:19532"]
    remote = subprocess.Popen([*words, f"--output={arrived}", "--split-mode=host"])
    try:
        upload = ["ip", "netns", "exec", host, str(UPLOAD), f"--url={listen}"]
        upload += [f"--directory={journal.parent}", f"--save-state={tmp_path / 'state'}"]
        # It refuses what is not yet listened to, as its unit does until systemd starts it again.
        until(
            lambda: subprocess.run([*upload, "--follow=no"], capture_output=True).returncode == 0,
            lambda: "nothing could be sent",
        )
        until(lambda: _read(arrived, finding.id), lambda: "it did not arrive")
    finally:
        remote.terminate()
        remote.wait(PATIENCE)
    got = _read(arrived, finding.id)
    for name, value in fields(finding).items():
        first, _, _ = value.partition("\n")  # a field may be empty
        assert f"{name}={first}" in got


def _write_journal(file: Path, values: dict[str, str]) -> None:
    """One record, by journald's own export format (Journal Export Formats)."""
    values = {
        "__REALTIME_TIMESTAMP": "1700000000000000",
        "__MONOTONIC_TIMESTAMP": "1000000",
        "_BOOT_ID": "0" * 31 + "1",
        "_MACHINE_ID": "0" * 31 + "2",
        **values,
    }
    record = b""
    for name, value in values.items():
        data = value.encode()
        if b"\n" in data:
            record += name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
        else:
            record += name.encode() + b"=" + data + b"\n"
    subprocess.run([REMOTE, f"--output={file}", "-"], input=record + b"\n", check=True)


def _read(directory: Path, identifier: str) -> str:
    words = ["journalctl", "-D", str(directory), "-o", "verbose", f"EBPFWATCH_ID={identifier}"]
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stdout if identifier in done.stdout else ""
