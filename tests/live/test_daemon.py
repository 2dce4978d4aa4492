"""The daemon as a user meets it: start, prove, find, reload, stop, and being killed."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import statistics
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from ebpfwatch.commands.selftest import double_free, open_playback
from ebpfwatch.sinks import store
from ebpfwatch.system.lock import running_daemon
from ebpfwatch.system.privileges import CAPABILITIES
from tests.live.conftest import (
    DaemonProcess,
    command,
    loaded_programs,
    selftest,
    start_daemon,
    until,
)
from tests.live.harness import watching
from tests.unit.test_finding import check


def test_it_says_what_it_took(daemon: DaemonProcess) -> None:
    """Rung and reason of each role, memory, /metrics."""
    log = daemon.log.read_text()
    for role in ("alloc", "unlink", "evict", "destroy", "rcu_free", "any_free", "reclaim"):
        assert re.search(rf"hook {role}: \S+", log), role
    assert re.search(r"kernel memory: \d+\.\d MiB", log)
    assert "/metrics" in log


def test_the_canary_proves_the_hooks(daemon: DaemonProcess) -> None:
    """Soon after the start each attached hook is 1; reclaim stays NaN or becomes 1."""
    daemon.wait_proven("unlink", "evict", "rcu_free", "any_free")
    metrics = daemon.settled_metrics()
    assert metrics['ebpfwatch_hook_alive{hook="reclaim"}'] != 0
    proven = {n: v for n, v in metrics.items() if n.startswith("ebpfwatch_canary_last_success")}
    assert max(proven.values()) > 0  # another mount may be read-only


def test_the_canary_is_known_without_the_unlink_hook(tmp_path: Path, ext4: Path) -> None:
    """No note of an unlink tells whose file dies, where the governor or a wish took that hook."""
    with watching(tmp_path, rungs='"unlink=none"') as daemon:
        daemon.wait_proven("evict", "rcu_free", "any_free")
        assert 'hook="unlink"' not in "".join(n for n in daemon.metrics() if "hook_alive" in n)
        assert "SILENT" not in daemon.log.read_text()


def test_reclaim_proves_its_hook(daemon: DaemonProcess, ext4: Path) -> None:
    """A shrinker that runs turns the reclaim hook from unproven to alive."""
    (ext4 / "to-be-dropped").touch()
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("2")
    daemon.wait_proven("reclaim")
    (ext4 / "to-be-dropped").unlink()


def test_selftest_reaches_every_sink(daemon: DaemonProcess) -> None:
    """`ebpfwatch selftest` reaches files, stdout, metrics and report, marked as a test."""
    outcome = selftest(daemon)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "OK   report" in outcome.stdout and "OK   metrics" in outcome.stdout
    body = next(store.read_all(daemon.state))
    assert (body["verdict"], body["test"]) == ("double_free", True)
    assert body["confidence"] in ("confirmed", "probable")
    real = command("report", "--state-directory", daemon.state)
    assert real.stdout.startswith("no findings in ")
    shown = command("report", "--tests", "--state-directory", daemon.state, body["id"])
    assert "freed a second time" in shown.stdout
    listed = command("report", "--tests", "--json", "--state-directory", daemon.state)
    assert [json.loads(line)["id"] for line in listed.stdout.splitlines()] == [body["id"]]
    if not Path("/run/systemd/journal/socket").exists():
        assert json.loads(daemon.out.read_text().splitlines()[0])["id"] == body["id"]
        assert "no journald" in daemon.log.read_text()


def test_a_proven_double_free_is_confirmed(daemon: DaemonProcess) -> None:
    """Once the canary has proven the hooks, no doubt is left, and the evidence is named."""
    daemon.wait_proven()
    assert selftest(daemon).returncode == 0
    body = next(store.read_all(daemon.state))
    assert body["confidence"] == "confirmed", body["reasons"]
    assert any("not allocated since" in reason for reason in body["reasons"])
    assert body["name"] == "ebpfwatch-selftest"
    assert body["first"]["comm"] == "(RCU)" and body["first"]["pid"] == 0
    assert body["path"] == "/made-up/ebpfwatch-selftest"
    assert body["unlinked_by"]["process"]["ppid"] == os.getpid()
    check(body)  # docs/finding.schema.json
    assert [moment["text"].split(" ")[0] for moment in body["timeline"]] == [
        "ext4_unlink",
        "evicted",
        "freed",
        "freed",
    ]


def test_each_of_21_events_reaches_the_disk_by_itself(daemon: DaemonProcess) -> None:
    """No second free waits for the next one, or for a tick (5 s, so 2.5 s on average); how long
    each takes is the bench's.
    """
    bed, took = open_playback(running_daemon(daemon.run_directory)), []
    for number in range(21):
        bed.inode.ino = 1000 + number
        began = double_free(bed)
        daemon.wait_findings(number + 1)
        took.append((time.monotonic_ns() - began) / 1e9)
    assert statistics.median(took) < 1, took


def test_a_second_daemon_says_who_holds_the_machine(daemon: DaemonProcess) -> None:
    """Exit 75 and the pid of the first."""
    second = command("run", "--config", daemon.config, run_directory=daemon.run_directory)
    assert second.returncode == 75
    assert f"pid {daemon.process.pid}" in second.stderr
    assert second.stderr.count("\n") == 1


def test_actions_are_done_with_what_the_daemon_has_left(tmp_path: Path, ext4: Path) -> None:
    """Snapshot and program after privileges are dropped, and the daemon waits for neither."""
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ncat >{tmp_path}/got\ngrep CapEff /proc/self/status; sleep 60\n")
    hook.chmod(0o755)
    daemon = start_daemon(tmp_path, snapshot="true", command=str(hook), command_seconds="15")
    assert selftest(daemon).returncode == 0
    assert "action command failed" not in daemon.log.read_text()  # it still runs
    log = daemon.wait_log("action command failed")
    kept = re.search(r"was killed after 15 s: CapEff:\\x09([0-9a-f]+)", log)
    assert kept is not None and not int(kept.group(1), 16) >> CAPABILITIES["sys_admin"] & 1
    check(json.loads((tmp_path / "got").read_text()))
    (snapshot,) = (daemon.state / "snapshots").iterdir()
    for name in ("slabinfo", "zoneinfo", "kernel-log", "finding.json", "findings"):
        assert (snapshot / name).exists(), name
    assert b"cannot be read" not in (snapshot / "slabinfo").read_bytes()
    daemon.wait_metrics(
        {
            'ebpfwatch_actions_total{action="snapshot",result="done"}': 1,
            'ebpfwatch_actions_total{action="command",result="failed"}': 1,
            'ebpfwatch_actions_total{action="crash",result="done"}': 0,
        }
    )
    assert daemon.stop() == 0


def test_kill_9_leaves_nothing_loaded(tmp_path: Path, ext4: Path) -> None:
    """The links live in the fds: no daemon, no programs."""
    before = loaded_programs()
    daemon = start_daemon(tmp_path)
    assert "ext4_evict_inode"[:15] in {name[:15] for name in loaded_programs()}
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait()
    until(lambda: loaded_programs() == before, lambda: loaded_programs() ^ before)
    again = start_daemon(tmp_path)
    assert again.stop() == 0


def test_reload_applies_a_good_file_and_refuses_a_bad_one(daemon: DaemonProcess) -> None:
    """SIGHUP: the new values, or the old ones and the reason."""
    good = daemon.config.read_text()
    daemon.config.write_text(good.replace("fold_seconds: 60", "fold_second: 60"))
    daemon.process.send_signal(signal.SIGHUP)
    log = daemon.wait_log("keeping the old configuration")
    assert "did you mean findings.fold_seconds?" in log
    daemon.config.write_text(good.replace("table_slots: 32768", "table_slots: 1024"))
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_log("kernel.table_slots is another than at the start")
    daemon.wait_log("changed: nothing that takes effect now")
    daemon.wait_metrics({'ebpfwatch_config_last_reload_successful{file="main"}': 1})
    # Back to what runs: nothing waits for a restart any more.
    daemon.config.write_text(good.replace("keep: 1000", "keep: 999"))
    daemon.process.send_signal(signal.SIGHUP)
    log = daemon.wait_log("changed: findings.keep")
    assert log.count("takes effect at the next restart") == 1


def test_the_page_and_the_health_checks_answer(daemon: DaemonProcess) -> None:
    """/ shows the hooks, /-/ready and /-/healthy say so, everything else is 404."""
    with urllib.request.urlopen(f"{daemon.url}/") as answer:
        page = answer.read().decode()
    assert "any_free" in page and "None since this machine booted" in page
    for path in ("/-/ready", "/-/healthy"):
        with urllib.request.urlopen(daemon.url + path) as answer:
            assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError) as missing:
        urllib.request.urlopen(f"{daemon.url}/nothing")
    missing.value.close()
    assert missing.value.code == 404


def test_watermarks_are_those_of_zoneinfo(daemon: DaemonProcess) -> None:
    """min, low, high and managed, to the byte."""
    metrics = daemon.metrics()
    page = os.sysconf("SC_PAGE_SIZE")
    zones = re.findall(
        r"Node (\d+), zone\s+(\S+)\n(?:.*\n)*?\s+min\s+(\d+)\n\s+low\s+(\d+)\n\s+high\s+(\d+)\n"
        r"(?:.*\n)*?\s+managed\s+(\d+)",
        Path("/proc/zoneinfo").read_text(),
    )
    checked = 0
    for node, zone, *pages in zones:
        if pages[3] == "0":
            continue
        for name, value in zip(("min", "low", "high", "managed"), pages):
            series = f'ebpfwatch_zone_{name}_bytes{{node="{node}",zone="{zone}"}}'
            assert metrics[series] == int(value) * page
            checked += 1
    assert checked
    assert not math.isnan(metrics["process_resident_memory_bytes"])


def test_it_gives_up_what_it_does_not_need(daemon: DaemonProcess) -> None:
    """From /proc: only what the banner says, no way to get more, in every thread; the one that
    answers HTTP has what the maps need, and no more.
    """
    kept = re.search(r"capabilities kept: (.+)", daemon.log.read_text())
    assert kept is not None
    mask = sum(1 << CAPABILITIES[name] for name in kept.group(1).split(", "))
    assert not mask >> CAPABILITIES["sys_admin"] & 1
    tasks = list(Path(f"/proc/{daemon.process.pid}/task").iterdir())
    assert len(tasks) >= 2
    for_maps = mask & (1 << CAPABILITIES["bpf"])
    least = 0
    for task in tasks:
        status = (task / "status").read_text()
        shed = f"CapEff:\t{for_maps:016x}\n" in status
        least += shed
        own = for_maps if shed else mask
        for name, wanted in (("CapEff", own), ("CapPrm", own), ("CapBnd", mask)):
            assert re.search(rf"{name}:\s+{wanted:016x}\n", status), status
        assert re.search(r"NoNewPrivs:\s+1\n", status)
    assert least == 1  # before 3.14 Python gives its threads no name that /proc could show
