"""What proves a hook alive, what does not, and what is said of it."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from pathlib import Path

import pytest

from ebpfwatch.catalogue.roles import Hook
from ebpfwatch.daemon import canary as canary_module
from ebpfwatch.daemon.canary import Canary, Life, Run
from ebpfwatch.daemon.liveness import Liveness
from ebpfwatch.daemon.snapshot import Snapshots
from ebpfwatch.events.wire import StepEvent
from ebpfwatch.host.sources import Sources
from ebpfwatch.kernel.hook import LoadedHook
from ebpfwatch.paths import Paths
from ebpfwatch.sinks.status import Status
from ebpfwatch.system.grace import force_grace_period, on_one_cpu
from ebpfwatch.verdicts.recorder import Recorder
from tests.unit.test_sinks import STATUS
from tests.unit.test_verdicts import RM


def device(path: Path) -> tuple[int, int]:
    """Of the file system it lies on."""
    dev = path.stat().st_dev
    return os.major(dev), os.minor(dev)


def begun(canary: Canary, mount: Path, dev: tuple[int, int]) -> Run:
    """A run, once it is known whether it could begin."""
    canary.start_proofs(str(mount), dev, time.monotonic_ns())
    deadline = time.monotonic() + 10
    while True:
        canary.tend(time.monotonic_ns())
        if settled := canary.settled():
            return settled[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def proof_round(liveness: Liveness) -> None:
    """One canary on every mount, until it is known of each whether it could begin."""
    liveness.start_proofs()
    deadline = time.monotonic() + 10
    while liveness._round:
        liveness.judge(600)
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_file_on_another_file_system_is_no_canary(tmp_path: Path) -> None:
    """One that is mounted over an ext4 would make every hook silent: none of them sees it."""
    canary = Canary(frozenset({"evict"}), False)
    major, minor = device(tmp_path)
    run = begun(canary, tmp_path, (major, minor + 1))
    assert run.problem.endswith("another file system is mounted over it")
    assert canary.finished(time.monotonic_ns(), 1) == [] and not canary.proof_pending
    assert not begun(canary, tmp_path, (major, minor)).problem and canary.proof_pending


@pytest.mark.parametrize(
    ("directory", "owner", "mode", "named", "closed"),
    [
        ("lost+found", 0, 0o700, True, True),
        ("root", 0, 0o700, True, True),
        ("lost+found", 65534, 0o700, False, False),
        ("lost+found", 0, 0o755, False, False),
        ("", 0, 0o755, False, False),
    ],
)
def test_it_flies_where_nobody_else_can_open(
    tmp_path: Path, directory: str, owner: int, mode: int, named: bool, closed: bool
) -> None:
    """Else its file has no name: nothing to wait at, and no lock of another's directory."""
    if os.geteuid() != 0:
        pytest.skip("needs root: to give a directory away")
    if directory:
        (tmp_path / directory).mkdir()
        (tmp_path / directory).chmod(mode)
        os.chown(tmp_path / directory, owner, owner)
    run = begun(Canary(frozenset({"evict", "unlink"}), False), tmp_path, device(tmp_path))
    assert [(life.named, life.closed) for life in run.lives] == [(named, closed)]
    assert ("unlink" in run.proves) == named
    assert not list(tmp_path.rglob("*canary*"))


@pytest.mark.needs("root")  # only root's directories are closed to others
def test_our_own_directory_comes_first(tmp_path: Path) -> None:
    """The state directory is in use all the time, so that finding it asks for no lock."""
    home = tmp_path / "state"
    home.mkdir(mode=0o750)
    canary = Canary(frozenset({"evict"}), False, str(home))
    before = home.stat().st_mtime_ns
    time.sleep(0.02)
    assert begun(canary, tmp_path, device(tmp_path)).lives[0].closed
    assert home.stat().st_mtime_ns > before


def test_without_such_a_directory_it_has_a_name_in_root_s(tmp_path: Path) -> None:
    """From the second round on; in another user's directory never."""
    canary = Canary(frozenset({"unlink"}), False)
    canary.open_names = True
    tmp_path.chmod(0o755)
    assert begun(canary, tmp_path, device(tmp_path)).lives[0].named
    tmp_path.chmod(0o777)
    assert not begun(canary, tmp_path, device(tmp_path)).lives[0].named


def test_steps_that_come_before_the_thread_are_matched(tmp_path: Path) -> None:
    """The kernel may tell of the file before we know which it was."""
    canary = Canary(frozenset({"evict", "destroy"}), False)
    dev = device(tmp_path)
    run = Run(str(tmp_path), dev, 1)
    canary._pending.append(run)
    run.asked_ns = 1
    packed = dev[0] << 20 | dev[1]
    for ns, hook in ((5, Hook.EVICT), (6, Hook.DESTROY)):
        canary.feed(StepEvent(ns, hook, False, 9, 77, 1, packed, RM))
    canary._landed.append((run, Life(4, dev, 77)))
    canary.tend(10)
    assert canary.finished(11, 1000) == [run]


@pytest.mark.slow
def test_hanging_mounts_hold_few_threads_and_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three hundred that never answer and one that does: the loop does not wait for any, four
    threads at most are held, and the one that answers is proven first the next time.
    """
    gate = threading.Event()

    def slow(mount: str, *_: object) -> Life:
        if mount != str(tmp_path):
            gate.wait(60)
        return Life(time.monotonic_ns(), device(tmp_path), 1, closed=True)

    monkeypatch.setattr(canary_module, "_live", slow)
    before = threading.active_count()
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    lines = [f"25 1 7:{n} / {tmp_path}/{n} rw - ext4 /dev/x rw\n" for n in range(300)]
    own = f"25 1 {device(tmp_path)[0]}:{device(tmp_path)[1]} / {tmp_path} rw - ext4 /dev/x rw\n"
    (proc / "self/mountinfo").write_text(own + "".join(lines))
    hooks = [LoadedHook("evict", "kprobe")]
    liveness = Liveness(hooks, Paths(proc=proc), Sources(), Recorder())
    try:
        for _ in range(2):
            longest = 0.0
            deadline = time.monotonic() + 10
            liveness.start_proofs()
            while liveness._round:
                began = time.monotonic()
                liveness.judge(600)
                longest = max(longest, time.monotonic() - began)
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert longest < 0.5
            assert threading.active_count() <= before + 4
            assert liveness._problems[str(tmp_path)] == ""
            liveness.success[str(tmp_path)] = 1.0
        said = capsys.readouterr().err
        assert said.count("does not answer (frozen?)") == 3
        assert said.count("no canary on 297 mounts: other file systems do not answer") == 1
    finally:
        gate.set()


@pytest.mark.slow
def test_a_failing_try_comes_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the speed of the loop."""
    calls: list[str] = []
    canary = Canary(frozenset({"evict"}), False)
    begun(canary, tmp_path, device(tmp_path))

    def fail(mount: str, *_: object) -> Life:
        calls.append(mount)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(canary_module, "_live", fail)
    began = time.monotonic()
    while time.monotonic() < began + 2.5:
        now_ns = time.monotonic_ns()
        canary.tend(now_ns)
        canary.finished(now_ns, 60_000_000_000)
        time.sleep(0.005)
    assert 1 <= len(calls) <= 3


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
    proof_round(liveness)
    assert liveness.success == {str(mount): 0}
    proven: dict[str, bool | None] = {"evict": True, "destroy": False, "reclaim": True}
    liveness.alive = proven
    mounted(proc, mount, minor + 1)
    proof_round(liveness)
    assert liveness.alive == proven and liveness.again(300) == 15
    mounted(proc, mount, minor)
    proof_round(liveness)
    assert liveness.again(300) == 300
    mounted(proc, mount, minor + 1)
    proof_round(liveness)
    assert liveness.alive == {"evict": True, "destroy": False, "reclaim": True}
    proof_round(liveness)
    assert liveness.alive == {"evict": None, "destroy": False, "reclaim": True}
    assert "no longer PROVEN alive" in capsys.readouterr().err
    (proc / "self/mountinfo").write_text(f"25 1 0:1 / {mount} rw - tmpfs none rw\n")
    proof_round(liveness)
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


def test_a_grace_period_is_asked_for_on_the_canarys_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lazy RCU would free the file after the time in which its free must be seen; and nobody waits
    for the grace period: the file is told before.
    """
    asked: list[tuple[set[int], bool]] = []
    canary = Canary(frozenset({"evict"}), False)

    def force() -> bool:
        asked.append((os.sched_getaffinity(0), bool(canary._landed)))
        return True

    monkeypatch.setattr(canary_module, "force_grace_period", force)
    canary.start_proofs(str(tmp_path), device(tmp_path), time.monotonic_ns())
    deadline = time.monotonic() + 10
    while not asked:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    ((cpus, told),) = asked
    assert len(cpus) == 1 and told


def test_the_kernel_grants_a_grace_period() -> None:
    """By membarrier(), unless it is one that has nohz_full=."""
    with on_one_cpu():
        assert len(os.sched_getaffinity(0)) == 1
        began = time.monotonic()
        assert force_grace_period() or time.monotonic() - began < 1
    assert len(os.sched_getaffinity(0)) > 1 or os.cpu_count() == 1
