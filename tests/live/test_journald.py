"""A real journald: the finding with its fields, found again by `report`; and one that dies."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.daemon.precursors import Precursors
from ebpfwatch.daemon.this_boot import ThisBoot
from ebpfwatch.host.zoneinfo import Zone
from ebpfwatch.paths import Paths
from ebpfwatch.sinks import journal
from ebpfwatch.verdicts.recorder import Recorder
from tests.live.conftest import DaemonProcess, command, start_daemon
from tests.live.harness import PATIENCE, selftest, until

JOURNALD = Path("/lib/systemd/systemd-journald")
SOCKET = Path("/run/systemd/journal/socket")


@pytest.fixture
def journald() -> Iterator[subprocess.Popen[bytes] | None]:
    """The machine's own journald, else one started for this test (None: not ours to stop)."""
    if SOCKET.exists():
        yield None
        return
    if not JOURNALD.exists():
        pytest.skip("no journald: apt-get install systemd")
    SOCKET.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [JOURNALD], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until(lambda: SOCKET.exists() or process.poll() is not None)
    assert process.poll() is None
    yield process
    process.send_signal(signal.SIGTERM)
    process.wait(PATIENCE)
    for path in SOCKET.parent.iterdir():
        if path.is_socket():
            path.unlink()


def test_a_finding_is_in_the_journal(
    journald: subprocess.Popen[bytes] | None, tmp_path: Path, ext4: Path
) -> None:
    """Structured fields by journalctl, the same finding by `report --from journal`."""
    daemon = start_daemon(tmp_path)
    outcome = selftest(daemon)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "OK   journal" in outcome.stdout
    listed = subprocess.run(
        [
            "journalctl",
            "-o",
            "json",
            "-n",
            "1",
            f"MESSAGE_ID={Verdict.DOUBLE_FREE.message_id}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    record = json.loads(listed.stdout.splitlines()[-1])
    assert record["EBPFWATCH_VERDICT"] == "double_free"
    assert record["EBPFWATCH_TEST"] == "1"
    assert record["SYSLOG_IDENTIFIER"] == "ebpfwatch"
    shown = command("report", "--from", "journal", "--tests", "--json", "--limit", "1")
    assert json.loads(shown.stdout)["id"] == record["EBPFWATCH_ID"]
    assert daemon.out.read_text() == ""
    if journald is not None:
        journald.send_signal(signal.SIGKILL)
        journald.wait()
        assert command("selftest", run_directory=daemon.run_directory).returncode == 1
        assert json.loads(daemon.out.read_text())["verdict"] == "double_free"
        daemon.wait_metrics({'ebpfwatch_sink_errors_total{sink="journal"}': 1})
    assert daemon.stop() == 0


def test_an_early_warning_is_in_the_journal(
    journald: subprocess.Popen[bytes] | None, tmp_path: Path
) -> None:
    """From a record of the kernel's log to `journalctl`, with its three reasons as fields."""
    this_boot = ThisBoot(tmp_path, "boot")
    precursors = Precursors(Paths(dev=tmp_path), Recorder(), this_boot)
    writer, reader = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    said = f"WARNING: CPU: 2 PID: 67 at fs/dcache.c:338 dentry_free+0x24/0xa8 {time.time_ns()}"
    with writer, reader:
        reader.setblocking(False)
        precursors.watcher.fd = reader.fileno()
        writer.send(f"4,1,1,-;{said}\n".encode())
        precursors.drain()
    mib = 1 << 20
    low = Zone(0, "Normal", 70 * mib, 66 * mib, 84 * mib, 101 * mib, 15000 * mib)
    burst = (time.monotonic(), "reclaim evicted 20000 ext4 inodes")
    precursors.judge((low,), burst, 300, journal.Journal(SOCKET, "auto"))
    assert precursors.active and this_boot.kernel_log["dentry_free"].number == 1
    words = ["journalctl", "-o", "json", "-n", "1", f"MESSAGE_ID={journal.EARLY_ID}"]
    deadline = time.monotonic() + PATIENCE
    record: dict[str, str] = {}
    while said not in record.get("MESSAGE", "") and time.monotonic() < deadline:
        time.sleep(0.1)
        listed = subprocess.run(words, capture_output=True, text=True).stdout.splitlines()
        record = json.loads(listed[-1]) if listed else {}
    assert said in record["EBPFWATCH_PRECURSOR"]
    assert "70 MiB" in record["EBPFWATCH_PRESSURE"] and "20000" in record["EBPFWATCH_BURST"]
    assert record["PRIORITY"] == "3"


def test_a_forged_record_is_not_reported(
    journald: subprocess.Popen[bytes] | None, daemon: DaemonProcess
) -> None:
    """Anybody may write a record with our MESSAGE_ID; `report` believes root's only."""
    assert selftest(daemon).returncode == 0
    body = json.loads(next((daemon.state / "findings").glob("*.json")).read_text())
    forged = {**body, "id": "forged"}
    record = f"MESSAGE_ID={Verdict.DOUBLE_FREE.message_id}\nEBPFWATCH_JSON={json.dumps(forged)}\n"
    send = "import socket, sys; socket.socket(1, 2).sendto(sys.argv[1].encode(), sys.argv[2])"
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    words = [*nobody, "/usr/bin/python3", "-c", send, record, str(SOCKET)]
    subprocess.run(words, check=True, cwd="/")
    whole = ["journalctl", "-o", "json"]
    until(
        lambda: "forged" in subprocess.run(whole, capture_output=True, text=True).stdout,
        lambda: "journald did not take the forged record",
    )
    shown = command("report", "--from", "journal", "--tests", "--json", "--limit", "99")
    ids = [json.loads(line)["id"] for line in shown.stdout.splitlines()]
    assert body["id"] in ids and "forged" not in ids


def test_the_catalog_compiles(tmp_path: Path) -> None:
    """journalctl takes deploy/ebpfwatch.catalog."""
    root = Path(__file__).parents[2]
    target = tmp_path / "usr/lib/systemd/catalog"
    target.mkdir(parents=True)
    (target / "ebpfwatch.catalog").write_text((root / "deploy/ebpfwatch.catalog").read_text())
    done = subprocess.run(
        ["journalctl", "--update-catalog", f"--root={tmp_path}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "var/lib/systemd/catalog/database").stat().st_size > 0


def test_a_full_disk_is_one_line_and_a_count(tmp_path: Path, ext4: Path) -> None:
    """A state directory on a full tmpfs: the finding still reaches stdout and metrics."""
    state = tmp_path / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", state], check=True)
    try:
        daemon = start_daemon(tmp_path)
        with open(state / "filler", "wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(b"x" * 4096)
            except OSError:
                pass
        for _ in range(2):
            assert command("selftest", run_directory=daemon.run_directory).returncode == 1
        metrics = daemon.settled_metrics()
        assert metrics['ebpfwatch_sink_errors_total{sink="store"}'] == 2
        assert daemon.log.read_text().count("cannot write findings") == 1
        assert list((state / "findings").iterdir()) == []
        assert daemon.stop() == 0
    finally:
        subprocess.run(["umount", state], check=True)
