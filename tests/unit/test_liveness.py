"""What proves a hook alive, what does not, and what is said of it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ebpfwatch.canary import Canary
from ebpfwatch.daemon import Daemon
from ebpfwatch.host.sources import Sources
from ebpfwatch.kernel.session import Ladder
from ebpfwatch.liveness import Liveness
from ebpfwatch.paths import Paths
from ebpfwatch.verdicts.recorder import Recorder
from tests.unit.test_sinks import STATUS


def device(path: Path) -> tuple[int, int]:
    """Of the file system it lies on."""
    dev = path.stat().st_dev
    return os.major(dev), os.minor(dev)


def test_a_file_on_another_file_system_is_no_canary(tmp_path: Path) -> None:
    """One that is mounted over an ext4 would make every hook silent: none of them sees it."""
    canary = Canary(frozenset({"evict"}), False)
    major, minor = device(tmp_path)
    run = canary.fly(str(tmp_path), (major, minor + 1), 1)
    assert run.problem.endswith("another file system is mounted over it") and not canary.flying
    assert not canary.fly(str(tmp_path), (major, minor), 1).problem and canary.flying


def watching_reclaim() -> Liveness:
    """With the hook reclaim alone, on a machine where neither has counted anything new."""
    hooks = [Ladder("reclaim", "raw_tracepoint mm_shrink_slab_start", "")]
    liveness = Liveness(hooks, Paths(), Sources(), Recorder())
    liveness.witness_reclaim(0, 1000)
    liveness.witness_reclaim(0, 1000)
    return liveness


def test_a_silent_reclaim_hook_is_said_like_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    """One line when it falls silent, one when it is back; no canary can help it."""
    liveness = watching_reclaim()
    liveness.witness_reclaim(0, 2000)
    liveness.witness_reclaim(0, 2000)
    liveness.witness_reclaim(0, 3000)
    assert liveness.alive == {"reclaim": False}
    assert "the hook reclaim is SILENT: the kernel scans slabs" in capsys.readouterr().err
    assert liveness.again(300) == 300 and liveness.silent == 0
    liveness.witness_reclaim(1, 4000)
    assert liveness.alive == {"reclaim": True}
    assert "the hook reclaim is alive again" in capsys.readouterr().err


def test_what_came_between_two_readings_is_no_silence(capsys: pytest.CaptureFixture[str]) -> None:
    """The kernel's count is read after ours: a scan in between is seen at the next look."""
    liveness = watching_reclaim()
    liveness.witness_reclaim(0, 2000)
    assert liveness.alive == {"reclaim": None}
    liveness.witness_reclaim(1, 2000)
    liveness.witness_reclaim(1, 3000)
    assert liveness.alive == {"reclaim": True}
    assert capsys.readouterr().err == ""


def test_a_scrape_while_we_stop_gets_what_was() -> None:
    """And reads no fd that may be another's by now."""
    daemon = Daemon.__new__(Daemon)  # neither maps nor programs: reading any would raise
    daemon._status_lock = threading.Lock()
    daemon._started = STATUS.started
    daemon._status, daemon._status_at = STATUS, -float("inf")
    daemon._freeze()
    assert daemon.status().counters == STATUS.counters and not daemon.status().ready
