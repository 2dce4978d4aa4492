"""Must hold: storms and reclaim end with no finding, and the counts balance to the last inode."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.live.balance import balance
from tests.live.conftest import DaemonProcess, load_session

STORM = int(os.environ.get("EBPFWATCH_STORM", "100000"))


def run_storms(storm: Path, mount: Path, count: int, threads: int) -> list[subprocess.Popen[bytes]]:
    """Start that many storms side by side."""
    return [
        subprocess.Popen([storm, mount, str(count // threads), f"{os.getpid()}-{thread}"])
        for thread in range(threads)
    ]


def test_a_storm_balances_exactly_and_finds_nothing(ext4: Path, storm: Path) -> None:
    """evicted == freed + still queued + counted losses, exactly; no verdict."""
    session = load_session(ext4)
    for process in run_storms(storm, ext4, STORM, 2):
        assert process.wait() == 0
    reading = balance(session)
    counters = reading.counters
    session.consume()
    assert counters["evict"] >= STORM
    assert reading.unexplained == 0, counters
    assert counters["verdict"] == 0, list(session.records)
    assert counters["submit"] == 0
    session.close()


def test_reclaim_under_load_balances_and_is_counted(ext4: Path, storm: Path) -> None:
    """drop_caches during a storm: it balances again, and the frees are known to be reclaim's."""
    session = load_session(ext4)
    for number in range(2000):
        (ext4 / f"cached-{number}").touch()
    os.sync()
    processes = run_storms(storm, ext4, STORM // 5, 2)
    for _ in range(5):
        Path("/proc/sys/vm/drop_caches").write_text("2")
        for entry in os.scandir(ext4):
            try:
                entry.stat()
            except FileNotFoundError:
                pass  # the storm was faster
    for process in processes:
        assert process.wait() == 0
    Path("/proc/sys/vm/drop_caches").write_text("2")
    reading = balance(session)
    counters = reading.counters
    assert reading.unexplained == 0, counters
    assert counters["verdict"] == 0
    assert counters["evict_in_reclaim"] >= 2000
    assert counters["free_in_reclaim"] > 0
    assert counters["shrink_start"] == counters["shrink_end"] > 0
    session.close()
    for number in range(2000):
        (ext4 / f"cached-{number}").unlink()


def test_a_tiny_table_forgets_but_never_lies(ext4: Path, storm: Path) -> None:
    """64 slots under two storms and reclaim: everything forgotten is counted, nothing is found."""
    session = load_session(ext4, table_slots=64)
    for number in range(3000):
        (ext4 / f"many-{number}").touch()
    os.sync()
    processes = run_storms(storm, ext4, STORM // 10, 2)
    Path("/proc/sys/vm/drop_caches").write_text("2")
    for process in processes:
        assert process.wait() == 0
    reading = balance(session)
    counters = reading.counters
    assert counters["forgotten_dying"] > 0
    assert counters["free_unmatched"] > 0
    assert reading.unexplained == 0, counters
    assert counters["verdict"] == 0
    session.close()
    for number in range(3000):
        (ext4 / f"many-{number}").unlink()


def test_the_daemon_stays_small_and_silent_in_a_storm(
    daemon: DaemonProcess, ext4: Path, storm: Path
) -> None:
    """0 findings, at most 32 MB resident after load, at most 8 MB in the kernel."""
    for process in run_storms(storm, ext4, max(STORM // 5, 20000), 2):
        assert process.wait() == 0
    for _ in range(20):
        daemon.metrics()
    metrics = daemon.settled_metrics()
    found = {name: n for name, n in metrics.items() if name.startswith("ebpfwatch_findings") and n}
    assert found == {}
    assert metrics["process_resident_memory_bytes"] <= 32e6
    assert 0 < metrics["ebpfwatch_kernel_memory_bytes"] <= 8e6
    assert metrics['ebpfwatch_lifecycle_events_total{event="evict"}'] >= 20000
