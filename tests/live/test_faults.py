"""What may happen around the daemon: it goes on, says so, and leaves nothing behind.

Fast samples; the thousands are `make faults` (tests/trust/faults.py).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from ebpfwatch.commands.selftest import double_free, open_playback
from ebpfwatch.errors import EbpfwatchError
from ebpfwatch.system.lock import Running, running_daemon
from tests.live.balance import DaemonMaps, balance
from tests.live.conftest import (
    ROOT,
    DaemonProcess,
    command,
    loaded_programs,
    selftest,
    start_daemon,
    until,
    write_config,
)
from tests.live.harness import PATIENCE, loop_ext4, watching
from tests.trust.faults import loaded_ids

TESTS = 'ebpfwatch_findings_total{confidence="confirmed",test="true",verdict="double_free"}'
RUN = [sys.executable, "-m", "ebpfwatch", "run", "--config"]


def start(
    directory: Path, stdout: IO[bytes] | int, stderr: IO[bytes] | int
) -> subprocess.Popen[bytes]:
    """A daemon with streams of the test's choice."""
    return subprocess.Popen(
        [*RUN, str(write_config(directory))],
        cwd=ROOT,
        env={**os.environ, "RUNTIME_DIRECTORY": str(directory / "run")},
        stdout=stdout,
        stderr=stderr,
    )


def wait_published(directory: Path) -> Running:
    """What the daemon tells other commands, once it has loaded."""

    def published() -> Running | None:
        with contextlib.suppress(EbpfwatchError):
            daemon = running_daemon(directory / "run")
            return daemon if daemon.programs else None
        return None

    daemon = until(published)
    assert daemon is not None
    return daemon


def test_a_log_that_cannot_be_written_costs_nothing_else(tmp_path: Path, ext4: Path) -> None:
    """stdout and stderr on a full device: the finding is on disk and counted, the exit is 0."""
    with open("/dev/full", "wb") as full:
        process = start(tmp_path, full, full)
    facts = wait_published(tmp_path)
    assert command("selftest", run_directory=tmp_path / "run").returncode == 0
    assert facts.url != "off"
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0


def test_nothing_is_imported_from_the_working_directory(tmp_path: Path) -> None:
    """Root starts it where anybody has put modules of the names that we import."""
    trap, bait = tmp_path / "trap", tmp_path / "bait"
    bait.mkdir()
    for name in ("bcc", "json", "socket", "ebpfwatch"):
        (bait / f"{name}.py").write_text(f"open({str(trap)!r}, 'w').close()\n")
    script = tmp_path / "ebpfwatch"
    script.write_text("import sys; from ebpfwatch.commands import main; sys.exit(main())")
    done = subprocess.run(
        [sys.executable, script, "check"],
        cwd=bait,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert "the watcher can" in done.stdout, done.stderr
    assert not trap.exists()


@contextlib.contextmanager
def frozen(mount: Path) -> Iterator[None]:
    """A file system on which every write waits: what a snapshot does, or a dying disk."""
    subprocess.run(["fsfreeze", "-f", mount], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "-u", mount], check=True)


def test_a_frozen_file_system_blinds_nobody(tmp_path: Path) -> None:
    """State directory and a canary's mount frozen: findings still come out; the files
    follow when it thaws.
    """
    with loop_ext4(tmp_path, 64 << 20) as mount, contextlib.ExitStack() as stack:
        state = mount / "state"
        state.mkdir()
        changes = {"state_directory": str(state), "interval_seconds": "1"}
        daemon = stack.enter_context(watching(tmp_path, **changes))
        bed = open_playback(running_daemon(daemon.run_directory))
        with frozen(mount):
            daemon.wait_log(f"no canary on {mount}: the file system does not answer")
            for number in range(3):
                bed.inode.ino = 100 + number
                double_free(bed)
            daemon.wait_metrics({TESTS: 3})
            if not Path("/run/systemd/journal/socket").exists():
                assert len(daemon.out.read_text().splitlines()) == 3
            assert list((state / "findings").iterdir()) == []
        daemon.wait_findings(3)


def test_a_proof_that_cannot_be_renewed_expires(ext4: Path) -> None:
    """Every ext4 read-only, for the daemon alone: its hooks fire, and nothing shows it."""
    private = ("unshare", "--mount", "--propagation", "private")
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as name,  # what it writes to stays writable
        watching(Path(name), private, interval_seconds="1") as daemon,
    ):
        proven = 'ebpfwatch_hook_alive{hook="evict"}'
        daemon.wait_metrics({proven: 1})
        inside = ["nsenter", "--mount", "--target", str(daemon.process.pid), "mount", "-o"]
        table = Path(f"/proc/{daemon.process.pid}/mountinfo").read_text()
        there = [line.split() for line in table.splitlines() if " - ext4 " in line]
        mounts = [words[4] for words in there]
        for mount in mounts:
            subprocess.run([*inside, "remount,bind,ro", mount], check=True)
        daemon.wait_metrics({proven: math.nan})
        log = daemon.wait_log("the hooks are no longer PROVEN alive")
        for device in {words[2] for words in there}:  # one mount of each is tried
            said = [f"no canary on {w[4]}: Read-only file system" for w in there if w[2] == device]
            assert any(line in log for line in said), log
        for mount in mounts:
            subprocess.run([*inside, "remount,bind,rw", mount], check=True)
        daemon.wait_metrics({proven: 1})
        assert "SILENT" not in daemon.log.read_text()


def test_a_disk_that_never_answers_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    """SIGTERM while the state directory is frozen: the probes are gone while it still is; the
    unit's TimeoutStopSec is longer than what the daemon grants a disk (tests/unit/test_deploy.py).
    """
    with loop_ext4(tmp_path, 64 << 20) as mount:
        state = mount / "state"
        state.mkdir()
        daemon = start_daemon(tmp_path, state_directory=str(state))
        ours = set(running_daemon(daemon.run_directory).programs.values())
        assert ours <= loaded_ids()
        with frozen(mount):
            daemon.process.send_signal(signal.SIGTERM)
            log = daemon.wait_log("stopped; the probes are unloaded")
            assert "the disk does not answer" in log
            until(lambda: not ours & loaded_ids())  # the kernel frees them after a grace period
        assert daemon.process.wait(PATIENCE) == 0


def test_sigterm_while_loading_is_a_stop_in_order(tmp_path: Path, ext4: Path) -> None:
    """At any moment of the start, to the whole group as systemd does: exit 0, nothing left, and
    sooner than the start would have ended.
    """
    before = loaded_programs()
    began = time.monotonic()
    with watching(tmp_path):
        start_takes = time.monotonic() - began
    moments = random.Random(9)
    for _ in range(6):
        with open(tmp_path / "log", "wb") as log:
            process = subprocess.Popen(
                [*RUN, str(write_config(tmp_path))],
                cwd=ROOT,
                env={**os.environ, "RUNTIME_DIRECTORY": str(tmp_path / "run")},
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        wait_handlers(process.pid)
        time.sleep(moments.uniform(0, 1.5))
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGTERM)
        said = (tmp_path / "log").read_text
        assert process.wait(PATIENCE) == 0, said()
        assert time.monotonic() - began < max(5, start_takes), said()
        assert "stopped" in said() and "died" not in said()
        # The kernel frees them after a grace period.
        until(lambda: loaded_programs() <= before, lambda: loaded_programs() - before)


def wait_handlers(pid: int) -> None:
    """Until the process handles SIGTERM; before that it is a process like any other."""

    def caught() -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        mask = next(line for line in status.splitlines() if line.startswith("SigCgt"))
        return int(mask.split()[1], 16) >> (signal.SIGTERM - 1) & 1

    until(caught)


def test_kill_9_while_loading_takes_the_child_along(tmp_path: Path, ext4: Path) -> None:
    """The compiler does not outlive its daemon, and nothing stays attached."""
    before = loaded_programs()
    process = start(tmp_path, subprocess.DEVNULL, subprocess.DEVNULL)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    pids = until(lambda: children.read_text().split())
    time.sleep(0.3)  # any moment of its work will do
    process.kill()
    process.wait()

    def left() -> list[str]:
        return [pid for pid in pids if lives(pid)] + sorted(loaded_programs() - before)

    until(lambda: not left(), left)


def lives(pid: str) -> bool:
    """Whether a process still runs; one that nobody has reaped does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def fill(sender: socket.socket) -> int:
    """Send to journald's socket until that would block; how many went through."""
    sender.setblocking(False)
    sender.connect("/run/systemd/journal/socket")
    for number in itertools.count():
        try:
            sender.send(b"MESSAGE=noise\n")
        except BlockingIOError:
            return number
    return 0


def test_a_hung_journald_holds_nobody_up(tmp_path: Path, ext4: Path) -> None:
    """Its socket is full because nobody reads: findings go to stdout and files, and are counted."""
    address = Path("/run/systemd/journal/socket")
    if address.exists():
        pytest.skip("a journald of this machine's own is running; it is not ours to stop")
    address.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(address))
        try:
            with watching(tmp_path) as daemon, contextlib.ExitStack() as senders:
                while fill(senders.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))):
                    pass
                bed = open_playback(running_daemon(daemon.run_directory))
                double_free(bed)
                daemon.wait_findings()
                daemon.wait_metrics({'ebpfwatch_sink_errors_total{sink="journal"}': 1})
                assert json.loads(daemon.out.read_text())["verdict"] == "double_free"
        finally:
            address.unlink()


def test_mounts_come_and_go_under_load(daemon: DaemonProcess, tmp_path: Path, storm: Path) -> None:
    """ext4 mounted, stormed and unmounted ten times: no finding, no hook silent, no mount held."""
    for number in range(10):
        directory = tmp_path / f"mount-{number}"
        directory.mkdir()
        with loop_ext4(directory, 32 << 20) as mount:
            process = subprocess.Popen([storm, mount, "2000"])
            daemon.process.send_signal(signal.SIGHUP)
            assert process.wait() == 0
    metrics = daemon.settled_metrics()
    found = {n: v for n, v in metrics.items() if n.startswith("ebpfwatch_findings") and v}
    assert found == {}
    assert "SILENT" not in daemon.log.read_text()
    assert not any("mount-" in series for series in metrics)


def test_a_storm_of_reloads_changes_nothing_but_the_configuration(daemon: DaemonProcess) -> None:
    """300 SIGHUPs, every third with a broken file: alive, no fd and no thread more."""
    fds = Path(f"/proc/{daemon.process.pid}/fd")
    good = daemon.config.read_text()
    daemon.settled_metrics()
    before = len(list(fds.iterdir()))
    for number in range(300):
        daemon.config.write_text(good if number % 3 else good.replace("hooks:", "hoks:"))
        daemon.process.send_signal(signal.SIGHUP)
        time.sleep(0.002)
    daemon.config.write_text(good)
    assert selftest(daemon).returncode == 0
    until(lambda: len(list(fds.iterdir())) <= before + 1)


def test_a_daemon_stopped_in_a_storm_accounts_for_every_verdict(
    tmp_path: Path, ext4: Path, storm: Path
) -> None:
    """SIGSTOP for 10 s, two storms, a ring of one page, 64 slots, 200 crimes played meanwhile:
    each is a finding or a counted loss, and no innocent inode is accused.
    """
    with watching(tmp_path, ring_bytes="4096", table_slots="64") as daemon:
        daemon.wait_proven()
        facts = running_daemon(daemon.run_directory)
        bed, maps = open_playback(facts), DaemonMaps(facts)
        before, told = maps.counters(), sum_findings(daemon)
        daemon.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        try:
            storms = [
                subprocess.Popen([storm, ext4, "20000", f"stop-{number}"]) for number in range(2)
            ]
            for number in range(200):
                bed.inode.ino = 5000 + number
                double_free(bed)
            for process in storms:
                assert process.wait() == 0
            time.sleep(max(0.0, began + 10 - time.monotonic()))
        finally:
            daemon.process.send_signal(signal.SIGCONT)
        after = maps.counters()
        verdicts = after["verdict"] - before["verdict"]
        assert 100 < verdicts <= 200  # the storms make the table forget some first frees
        lost = after["submit"] - before["submit"]
        # A canary's steps may be among what was lost.
        until(lambda: sum_findings(daemon)["true"] - told["true"] >= verdicts - lost)
        found = sum_findings(daemon)
        assert found["false"] == 0
        assert lost > 0 and found["true"] - told["true"] <= verdicts
        assert balance(maps).unexplained == 0
        daemon.wait_metrics({'ebpfwatch_lost_events_total{kind="submit"}': after["submit"]})


def sum_findings(daemon: DaemonProcess) -> dict[str, float]:
    """Findings by test="true" and "false", over all verdicts; context is none."""
    totals = {"true": 0.0, "false": 0.0}
    for series, value in daemon.settled_metrics().items():
        label = re.search(r'findings_total{.*test="(\w+)",verdict="(\w+)"', series)
        if label and label[2] not in ("concurrent_unlink", "freed_in_reclaim"):
            totals[label[1]] += value
    return totals


def test_a_frozen_file_system_holds_up_no_start(tmp_path: Path, ext4: Path) -> None:
    """What the loader must learn it learns from another one."""
    other = tmp_path / "other"
    other.mkdir()
    with loop_ext4(other, 64 << 20) as mount:
        with frozen(mount):
            daemon = start_daemon(tmp_path)
            daemon.wait_log(f"no canary on {mount}: the file system does not answer")
        assert daemon.stop() == 0
