"""Actions: what they do, what bounds them, and that they do no harm."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from ebpfwatch.actions import Actions
from ebpfwatch.actions.command import Command
from ebpfwatch.actions.crash import Crash
from ebpfwatch.actions.snapshot import Snapshot
from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.config import ActionsConfig, Config
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.paths import Paths
from ebpfwatch.verdicts.finding import Confidence, Finding, Severity
from tests.unit.test_verdicts import judged


def program(tmp_path: Path, body: str) -> str:
    """A shell script that only we can change."""
    path = tmp_path / "hook"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_the_command_gets_the_finding(tmp_path: Path) -> None:
    """Whole, on stdin; what it prints is a line; its environment is its own."""
    said = Command(program(tmp_path, f"cat >{tmp_path}/got; env | wc -l; pwd"), 5).run(judged())
    assert json.loads((tmp_path / "got").read_text()) == json.loads(json.dumps(judged().to_json()))
    assert said.endswith("\\x0a/")  # the newline is escaped
    assert int(said.split(": ")[1].split("\\")[0]) <= 4  # PATH, LANG, and the shell's PWD


def test_a_name_is_no_code(tmp_path: Path) -> None:
    """No shell ever sees what a file was called."""
    hostile = dataclasses.replace(judged(), name=f"$(touch {tmp_path}/pwned)`;x")
    Command(program(tmp_path, "cat >/dev/null"), 5).run(hostile)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("exit 3", "ended with 3"),
        ("echo why; exit 1", "ended with 1: why"),
        ("sleep 60", "was killed after 0.5 s"),
        ("sleep 60 & sleep 60", "was killed after 0.5 s"),
        ("exec sleep 60 >/dev/null 2>&1 </dev/null", "was killed after 0.5 s"),
        ("yes", "was killed after 0.5 s: y"),
        ("kill -9 $$", "ended with -9"),
    ],
)
def test_a_command_that_fails_costs_its_time_and_no_more(
    tmp_path: Path, body: str, part: str
) -> None:
    """Killed with its children; its output is bounded, one line."""
    began = time.monotonic()
    with pytest.raises(OSError, match=part) as raised:
        Command(program(tmp_path, f"echo $$ >{tmp_path}/pid; {body}"), 0.5).run(judged())
    assert time.monotonic() - began < 4
    assert len(str(raised.value)) < 1000
    group = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.killpg(group, 0)
            time.sleep(0.02)


def test_what_has_left_the_session_ends_with_the_command(tmp_path: Path) -> None:
    """Nobody waits for the pipe that it inherited; and no process of root's stays behind."""
    began = time.monotonic()
    body = (
        f"setsid sh -c 'setsid sleep 47 & echo $$ >{tmp_path}/pid; sleep 47' &\n"
        f"until [ -s {tmp_path}/pid ]; do sleep 0.1; done"
    )
    Command(program(tmp_path, body), 30).run(judged())
    assert time.monotonic() - began < 30
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert "sleep 47" not in lines.splitlines()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_what_another_thread_starts_meanwhile_is_left_alone(tmp_path: Path) -> None:
    """The loader is a child of the same process."""
    body = f"touch {tmp_path}/runs; until [ -e {tmp_path}/end ]; do sleep 0.1; done"
    command = threading.Thread(target=Command(program(tmp_path, body), 60).run, args=(judged(),))
    command.start()
    while not (tmp_path / "runs").exists():
        time.sleep(0.02)
    with subprocess.Popen(["sleep", "600"]) as other:
        (tmp_path / "end").touch()
        command.join()
        assert other.poll() is None
        other.kill()


@pytest.mark.needs("root")
def test_a_command_in_a_user_s_directory_is_refused(tmp_path: Path) -> None:
    """The file is root's, and he could move it away with its directory and put his own there."""
    theirs = tmp_path / "theirs"
    (theirs / "ours").mkdir(parents=True)
    path = program(theirs / "ours", "true")
    os.chown(theirs, 65534, 65534)
    with pytest.raises(EbpfwatchError, match="theirs belongs to user 65534") as raised:
        Command(path, 1)
    assert raised.value.exit_code is Exit.CONFIG
    # By a link of his, and by one of root's that leads through his directory.
    (theirs / "link").symlink_to("/bin/true")
    (tmp_path / "link").symlink_to(theirs / "link")
    for link in (theirs / "link", tmp_path / "link"):
        with pytest.raises(EbpfwatchError, match="theirs belongs to user 65534"):
            Command(str(link), 1)


@pytest.mark.needs("root")
def test_the_way_to_the_command_is_looked_at_each_time(tmp_path: Path) -> None:
    """What was root's at the start is not run once it is another's."""
    (tmp_path / "bin").mkdir()
    command = Command(program(tmp_path / "bin", f"touch {tmp_path}/ran"), 5)
    command.run(judged())
    (tmp_path / "ran").unlink()
    os.chown(tmp_path / "bin", 65534, 65534)
    with pytest.raises(OSError, match="bin belongs to user 65534"):
        command.run(judged())
    os.chown(tmp_path / "bin", 0, 0)
    os.chown(tmp_path / "bin/hook", 65534, 0)
    with pytest.raises(OSError, match="hook belongs to user 65534"):
        command.run(judged())
    assert not (tmp_path / "ran").exists()


def test_root_s_own_links_are_followed(tmp_path: Path) -> None:
    """As /bin is one on a merged /usr."""
    (tmp_path / "hook.d").mkdir()
    program(tmp_path / "hook.d", "echo ran")
    (tmp_path / "link").symlink_to("hook.d/../hook.d/hook")
    assert Command(str(tmp_path / "link"), 5).run(judged()).endswith(": ran")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(EbpfwatchError, match="Too many levels of symbolic links"):
        Command(str(tmp_path / "loop"), 5)


@pytest.mark.parametrize(
    ("mode", "part"), [(0o777, "by others"), (0o775, "by others"), (0o644, "is no program")]
)
def test_a_command_that_others_can_change_is_refused(tmp_path: Path, mode: int, part: str) -> None:
    """Exit 78, at the start, with what to do."""
    path = Path(program(tmp_path, "true"))
    path.chmod(mode)
    with pytest.raises(EbpfwatchError, match=part) as raised:
        Command(str(path), 1)
    assert raised.value.exit_code is Exit.CONFIG
    with pytest.raises(EbpfwatchError, match="No such file"):
        Command(str(tmp_path / "none"), 1)


def test_a_snapshot_is_whole_and_bounded(tmp_path: Path) -> None:
    """The real /proc and kernel log; so many directories, none half."""
    (tmp_path / "findings").mkdir()
    (tmp_path / "findings/a.json").write_text("{}")
    snapshot = Snapshot(tmp_path, 2, Paths())
    for number in range(4):
        where = Path(snapshot.take(dataclasses.replace(judged(), id=f"2026-{number}")))
    assert sorted(os.listdir(tmp_path / "snapshots")) == ["2026-2", "2026-3"]
    assert {"finding.json", "meminfo", "zoneinfo", "tasks", "kernel-log"} <= set(os.listdir(where))
    assert (where / "findings/a.json").exists()
    assert f"{os.getpid()} (" in (where / "tasks").read_text()
    assert (where / "meminfo").read_text().startswith("MemTotal")
    assert where.stat().st_mode & 0o077 == 0


def test_after_a_clock_step_backwards_the_new_snapshot_stays(tmp_path: Path) -> None:
    """Its name sorts before the older ones, and it is the one that was asked for."""
    snapshot = Snapshot(tmp_path, 2, Paths(proc=tmp_path, dev=tmp_path))
    for day in ("20260103", "20260104", "20260101"):
        snapshot.take(dataclasses.replace(judged(), id=day))
    assert sorted(os.listdir(tmp_path / "snapshots")) == ["20260101", "20260104"]


def test_a_snapshot_on_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a leftover of a killed daemon goes with the next."""
    snapshot = Snapshot(tmp_path, 2, Paths(proc=tmp_path, dev=tmp_path))

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            snapshot.take(judged())
    assert os.listdir(tmp_path / "snapshots") == []
    (tmp_path / "snapshots/.writing-x").mkdir()
    where = snapshot.take(judged())
    assert os.listdir(tmp_path / "snapshots") == [judged().id]
    assert "cannot be read" in (Path(where) / "kernel-log").read_text()


def machine(tmp_path: Path, loaded: str = "1") -> Paths:
    """One that would keep a dump, and whose sysrq-trigger is a file."""
    (tmp_path / "sysrq-trigger").touch()
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel/kexec_crash_loaded").write_text(loaded)
    return Paths(proc=tmp_path, sys=tmp_path)


def triggered(tmp_path: Path) -> str:
    """What was written."""
    return (tmp_path / "sysrq-trigger").read_text()


def test_a_confirmed_crime_crashes_once_a_day(tmp_path: Path) -> None:
    """The mark is on disk before the machine dies; the next boot reads it."""
    paths = machine(tmp_path)
    assert Crash(paths, tmp_path).consider(judged())[0] == "done"
    assert triggered(tmp_path) == "c"
    result, why = Crash(paths, tmp_path).consider(judged())
    assert result == "skipped" and "24 hours" in why
    assert triggered(tmp_path) == "c"
    (tmp_path / "crashed.json").write_text(json.dumps({"time": time.time() - 90_000}))
    assert Crash(paths, tmp_path).consider(judged())[0] == "done"


@pytest.mark.parametrize(
    ("change", "loaded", "mark"),
    [
        ({"confidence": Confidence.PROBABLE}, "1", None),
        ({"confidence": Confidence.UNDECIDABLE}, "1", None),
        ({"verdict": Verdict.FREED_IN_RECLAIM}, "1", None),
        ({"verdict": Verdict.CONCURRENT_UNLINK}, "1", None),
        ({}, "0", None),
        ({}, "1", "not json"),
        ({}, "1", "[]"),
    ],
)
def test_it_does_not_crash(
    tmp_path: Path, change: dict[str, object], loaded: str, mark: str | None
) -> None:
    """Not on a doubt, not for a candidate, not without a dump, not with an unreadable mark."""
    if mark is not None:
        (tmp_path / "crashed.json").write_text(mark)
    crash = Crash(machine(tmp_path, loaded), tmp_path)
    finding = dataclasses.replace(judged(), **change)  # type: ignore[arg-type]
    assert crash.consider(finding)[0] == "skipped"
    assert triggered(tmp_path) == ""


def test_it_does_not_crash_when_the_mark_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: better no dump than a machine that crashes at each boot."""
    crash = Crash(machine(tmp_path), tmp_path)
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "full")))
    assert crash.consider(judged())[0] == "failed"
    assert triggered(tmp_path) == ""


def test_without_sysrq_the_start_fails(tmp_path: Path) -> None:
    """Exit 77 and the key."""
    with pytest.raises(EbpfwatchError, match="actions.crash") as raised:
        Crash(Paths(proc=tmp_path), tmp_path)
    assert raised.value.exit_code is Exit.NOPERM


def acting(tmp_path: Path, **keys: object) -> Actions:
    """Started, with these keys."""
    chosen = ActionsConfig(**keys)  # type: ignore[arg-type]
    settings = Config(state_directory=str(tmp_path), actions=chosen)
    actions = Actions(settings, machine(tmp_path))
    actions.start()
    return actions


def settle(actions: Actions, key: tuple[str, str], count: int) -> None:
    """Wait for the worker."""
    deadline = time.monotonic() + 10
    while actions.counts[key] < count:
        assert time.monotonic() < deadline, actions.counts
        time.sleep(0.01)


def test_by_default_nothing_is_done(tmp_path: Path) -> None:
    """No thread, no file, no crash."""
    threads = threading.active_count()
    actions = acting(tmp_path)
    actions.act(judged())
    assert threading.active_count() == threads
    assert not any(actions.counts.values()) and triggered(tmp_path) == ""
    assert not (tmp_path / "snapshots").exists()


def test_a_flood_runs_the_command_once(tmp_path: Path) -> None:
    """The rest is counted; the self-test has a time of its own, and never crashes the machine."""
    path = program(tmp_path, f"echo x >>{tmp_path}/ran")
    actions = acting(tmp_path, command=path, crash="confirmed")
    test = dataclasses.replace(judged(), test=True)
    for finding in (test, test):
        actions.act(finding)
    assert triggered(tmp_path) == ""
    settle(actions, ("command", "done"), 1)
    for _ in range(50):
        actions.act(judged())
    settle(actions, ("command", "done"), 2)
    assert actions.counts["command", "skipped"] == 50
    assert (tmp_path / "ran").read_text() == "x\nx\n"
    assert triggered(tmp_path) == "c" and actions.counts["crash", "done"] == 1


def test_a_slow_command_never_blocks(tmp_path: Path) -> None:
    """What comes while the worker is busy is counted, at once."""
    actions = acting(tmp_path, command=program(tmp_path, "sleep 1"), every_seconds=1)
    actions.every_seconds = 0
    began = time.monotonic()
    for _ in range(20):
        actions.act(judged())
    assert time.monotonic() - began < 0.5
    assert actions.counts["command", "skipped"] >= 16


def test_a_weak_finding_starts_nothing(tmp_path: Path) -> None:
    """Only severity ERR and worse."""
    actions = acting(tmp_path, snapshot=True)
    actions.act(dataclasses.replace(judged(), severity=Severity.WARNING))
    assert not any(actions.counts.values())


def test_a_defect_of_an_action_costs_that_one(tmp_path: Path) -> None:
    """The worker goes on."""
    actions = acting(tmp_path, snapshot=True, every_seconds=1)
    actions.every_seconds = 0
    took, actions._jobs["snapshot"] = actions._jobs["snapshot"], lambda finding: [""][1]
    actions.act(judged())
    settle(actions, ("snapshot", "failed"), 1)
    actions._jobs["snapshot"] = took
    actions.act(judged())
    settle(actions, ("snapshot", "done"), 1)


def test_a_failure_is_one_count_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The worker goes on."""
    finding: Finding = judged()
    actions = acting(tmp_path, command=program(tmp_path, "exit 9"), snapshot=True)
    actions.act(finding)
    settle(actions, ("command", "failed"), 1)
    settle(actions, ("snapshot", "done"), 1)
    assert capsys.readouterr().err.count("action command failed") == 1
