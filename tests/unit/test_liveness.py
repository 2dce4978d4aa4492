"""What proves a hook alive, what does not, and what is said of it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from ebpfwatch.daemon.canary import Canary
from ebpfwatch.daemon.liveness import Liveness
from ebpfwatch.daemon.snapshot import Snapshots
from ebpfwatch.host.sources import Sources
from ebpfwatch.kernel.hook import LoadedHook
from ebpfwatch.paths import Paths
from ebpfwatch.sinks.status import Status
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
    run = canary.start_proofs(str(tmp_path), (major, minor + 1), 1)
    assert (
        run.problem.endswith("another file system is mounted over it") and not canary.proof_pending
    )
    assert (
        not canary.start_proofs(str(tmp_path), (major, minor), 1).problem and canary.proof_pending
    )


def mounted(proc: Path, mount: Path, minor: int) -> None:
    """The kernel's list of mounts: this directory as an ext4 of that device."""
    major = device(mount)[0]
    (proc / "self").mkdir(parents=True, exist_ok=True)
    line = f"25 1 {major}:{minor} / {mount} rw - ext4 /dev/x rw\n"
    (proc / "self/mountinfo").write_text(line)


def test_a_proof_that_cannot_be_renewed_expires(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the second canary in a row that can begin nowhere, and not by one busy moment; then the
    next is tried soon.  What no canary had proven stays as it was.
    """
    proc, mount = tmp_path / "proc", tmp_path / "mount"
    mount.mkdir()
    minor = device(mount)[1]
    hooks = [LoadedHook(role, "kprobe", "f") for role in ("evict", "destroy", "reclaim")]
    liveness = Liveness(hooks, Paths(proc=proc), Sources(), Recorder())
    mounted(proc, mount, minor)
    liveness.start_proofs()
    assert liveness.success == {str(mount): 0}
    proven: dict[str, bool | None] = {"evict": True, "destroy": False, "reclaim": True}
    liveness.alive = proven
    mounted(proc, mount, minor + 1)
    liveness.start_proofs()
    assert liveness.alive == proven and liveness.again(300) == 15
    mounted(proc, mount, minor)
    liveness.start_proofs()
    assert liveness.again(300) == 300
    mounted(proc, mount, minor + 1)
    liveness.start_proofs()
    assert liveness.alive == {"evict": True, "destroy": False, "reclaim": True}
    liveness.start_proofs()
    assert liveness.alive == {"evict": None, "destroy": False, "reclaim": True}
    assert "no longer PROVEN alive" in capsys.readouterr().err
    (proc / "self/mountinfo").write_text(f"25 1 0:1 / {mount} rw - tmpfs none rw\n")
    liveness.start_proofs()
    assert liveness.success == {} and liveness.again(300) == 15 and liveness.again(0) > 1e9
    assert capsys.readouterr().err == ""


def watching_reclaim() -> Liveness:
    """With the hook reclaim alone, on a machine where neither has counted anything new."""
    hooks = [LoadedHook("reclaim", "raw_tracepoint", "mm_shrink_slab_start")]
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
    states = iter([STATUS])
    snapshots = Snapshots(lambda: next(states))  # once: another look would raise
    assert snapshots.status() is snapshots.status() is STATUS
    snapshots.outdate()
    snapshots.freeze(STATUS.started)
    assert snapshots.status().kernel is STATUS.kernel and not snapshots.status().ready
    early = Snapshots(lambda: next(states))
    early.freeze(STATUS.started)
    assert early.status() == Status(STATUS.started)


def test_what_has_happened_is_in_the_next_snapshot() -> None:
    """A finding is not a second late."""
    states = iter([STATUS, dataclasses.replace(STATUS, ready=False)])
    snapshots = Snapshots(lambda: next(states))
    assert snapshots.status().ready
    snapshots.outdate()
    assert not snapshots.status().ready
