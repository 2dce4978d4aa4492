"""What others may have prepared or damaged: directories, files of ours, names, the clock."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpfwatch.commands.report import _text
from ebpfwatch.daemon.boot_record import BootWatch
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.host.sources import Sources
from ebpfwatch.kernel.symbols import Symbols
from ebpfwatch.paths import Paths
from ebpfwatch.postmortem.last_boot import BootRecord
from ebpfwatch.sinks.store import Store, read_all
from ebpfwatch.system import durable
from ebpfwatch.system.lock import Lock
from ebpfwatch.system.log import defect, say
from ebpfwatch.system.worker import Worker
from ebpfwatch.verdicts.correlator import later
from tests.unit.test_verdicts import judged

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)


def wait_for(gate: threading.Event) -> None:
    """As a disk that does not answer, for a while."""
    gate.wait(9)


def names(store: Store) -> list[str]:
    """The finding files, by name."""
    return sorted(os.listdir(store.directory))


def test_after_a_clock_step_backwards_the_new_finding_stays(tmp_path: Path) -> None:
    """A full directory of findings from the future: the oldest of them goes, not the new one."""
    store = Store(tmp_path, 3)
    for number in range(3):
        store.write(dataclasses.replace(judged(), id=f"20360101T00000{number}Z-0001"))
    store = Store(tmp_path, 3)
    for number in range(2):
        store.write(dataclasses.replace(judged(), id=f"20260101T00000{number}Z-0001"))
    assert names(store) == [
        "20260101T000000Z-0001.json",
        "20260101T000001Z-0001.json",
        "20360101T000002Z-0001.json",
    ]


def test_the_newest_finding_sorts_last_whatever_the_clock_says(tmp_path: Path) -> None:
    """After the clock was ahead, and after a restart then: ids go on from the last one."""
    store = Store(tmp_path, 3)
    for number in range(3):
        store.write(dataclasses.replace(judged(), id=f"20360101T00000{number}.000000Z-0001"))
    last = Store(tmp_path, 3).newest
    assert last == "20360101T000002.000000Z-0001"
    for number in range(2, 5):
        last = later(f"20260101T000000.000000Z-{number:04x}", last)
        store.write(dataclasses.replace(judged(), id=last))
    bodies = list(read_all(tmp_path))
    assert [body["id"][-4:] for body in bodies] == ["0004", "0003", "0002"]
    assert later("20400101T000000.000000Z-0009", last) == "20400101T000000.000000Z-0009"
    assert later("20260101T000000.000000Z-0009", "") == "20260101T000000.000000Z-0009"
    assert later("2026-0009", "99999999T999999-1") == "2026-0009"


def test_a_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    """The findings' own, its parent, and one above both; a link is judged by where it leads."""
    Store(tmp_path, 3)
    for place in (tmp_path / "findings", tmp_path):
        place.chmod(0o777)
        with pytest.raises(EbpfwatchError, match="can be written by others") as raised:
            Store(tmp_path, 3)
        assert raised.value.exit_code is Exit.CANTCREAT
        place.chmod(0o750)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "open")
    with pytest.raises(EbpfwatchError, match="open can be written by others"):
        Store(tmp_path / "link/state", 3)


def test_a_lock_where_others_can_write_is_refused(tmp_path: Path) -> None:
    """They could put a second name of root's files there, and the lock would empty them."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    with pytest.raises(EbpfwatchError, match="run can be written by others") as raised:
        Lock(tmp_path / "run")
    assert raised.value.exit_code is Exit.CANTCREAT
    assert os.listdir(tmp_path / "run") == []
    (tmp_path / "run").chmod(0o755)
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "run/daemon.json").symlink_to(tmp_path / "victim")
    with pytest.raises(EbpfwatchError, match="cannot create"):
        Lock(tmp_path / "run")
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.needs("root")  # to give a directory away
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    """Whoever owns it can exchange what is in it."""
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 65534, 65534)
    with pytest.raises(EbpfwatchError, match="belongs to user 65534"):
        Store(tmp_path / "theirs/state", 3)


def test_a_link_at_a_name_that_is_written_is_not_followed(tmp_path: Path) -> None:
    """Neither the temporary name nor the final one."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in (f"{durable.PREFIX}file", "file"):
        (tmp_path / name).symlink_to(victim)
    durable.write(tmp_path / "file", b"ours")
    assert victim.read_text() == "precious"
    assert (tmp_path / "file").read_bytes() == b"ours"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


@given(body=st.dictionaries(st.sampled_from(list(judged().to_json())), JSON))
def test_a_damaged_finding_is_shown_as_one(body: dict[str, object]) -> None:
    """Any field may hold anything: a text without control characters, never a traceback."""
    shown = _text({**judged().to_json(), **body})
    assert all(line.isprintable() or not line.isascii() for line in shown.splitlines())


def test_a_file_of_brackets_is_no_finding(tmp_path: Path) -> None:
    """Nested deeper than Python likes; the next one is read all the same."""
    store = Store(tmp_path, 9)
    store.write(judged())
    (store.directory / "99990101.json").write_text("[" * 100_000)
    assert [body["verdict"] for body in read_all(tmp_path)] == ["double_free"]


FIELDS = ("boot_id", "release", "started", "clean", "text", "test_page", "modules", "armed", "x")


@given(body=st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_a_damaged_boot_record_is_none_or_whole(
    body: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What it says can be compared and printed, or it is not there."""
    file = tmp_path_factory.mktemp("boot") / "boot.json"
    whole = dataclasses.asdict(BootRecord("id", "6.1", 1.0))
    file.write_text(json.dumps({**whole, **body}))
    record = BootRecord.read(file)
    if record is not None:
        assert isinstance(record.started, float) and isinstance(record.name(1 << 60), str)


def test_the_setting_of_a_killed_daemon_is_still_put_back(tmp_path: Path) -> None:
    """ftrace_dump_on_oops was set by one that was killed: the next one in this boot knows."""
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").write_text("this-boot\n")
    paths = Paths(proc=tmp_path, sys=tmp_path, pstore=tmp_path / "no", crash=tmp_path / "no")

    def watch(armed: bool) -> BootWatch:
        made = BootWatch(tmp_path, paths, Symbols(tmp_path / "no"), 1.0, range(0), armed)
        made.look_back(Sources())
        return made

    assert watch(True).armed
    successor = watch(False)
    assert successor.armed
    successor.remember(clean=True)
    assert not watch(False).armed


def test_what_is_said_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    """No name can end a line of the log, or move the cursor of who reads it."""
    say("a\nb\x1b[2Jc\u202ed\udcff\x00")
    assert capfd.readouterr().err == "ebpfwatch: a\\x0ab\\x1b[2Jc\\u202ed\\udcff\\x00\n"


def test_a_defect_says_where() -> None:
    """Type, message, file and line: enough for a bug report, on one line."""
    try:
        int("x")
    except ValueError as error:
        assert defect(error).startswith("ValueError: invalid literal")
        assert "(test_trust.py:" in defect(error)


def test_a_worker_keeps_the_order_and_its_bound() -> None:
    """What is too much is refused, and what was taken is done."""
    worker, gate, done = Worker("test", 3), threading.Event(), list[int]()
    worker.submit(functools.partial(wait_for, gate))
    deadline = time.monotonic() + 5
    while not worker._busy and time.monotonic() < deadline:
        time.sleep(0.001)
    taken = [worker.submit(lambda n=n: done.append(n)) for n in range(5)]  # type: ignore[misc]
    assert taken == [True, True, True, False, False]
    assert not worker.finish(0.01)
    gate.set()
    assert worker.finish(5)
    assert done == [0, 1, 2]


def test_a_defect_in_a_job_costs_that_job(capsys: pytest.CaptureFixture[str]) -> None:
    """The disk's thread must not die of one finding: all later ones would be lost."""
    worker, done = Worker("test"), list[int]()
    worker.submit(lambda: [][1])
    worker.submit(lambda: done.append(1))
    assert worker.finish(5) and done == [1]
    assert "a job of the thread test failed: IndexError" in capsys.readouterr().err


def test_a_thread_that_could_not_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The unit's TasksMax was reached: the job waits, nobody dies of it, and it is done later."""
    done: list[int] = []
    worker = Worker("test")

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert worker.submit(lambda: done.append(1))
        worker.tend()
        assert not worker.finish(0.05)
    worker.tend()
    assert worker.finish(5) and done == [1]


def test_nothing_in_the_daemon_waits_for_the_kernels_entropy() -> None:
    """os.urandom() and what stands on it hang a 4.19 guest: only random_bytes.py draws."""
    package = Path(__file__).parents[2] / "ebpfwatch"
    waiting = re.compile(r"os\.urandom\(|^\s*(?:import|from) (?:secrets|uuid|tempfile)\b", re.M)
    modules = {file.name: file.read_text() for file in package.rglob("*.py")}
    # Only where it says why not.
    assert [name for name in modules if waiting.search(modules[name])] == ["random_bytes.py"]


def test_nothing_of_ours_has_a_name_in_a_directory_of_all() -> None:
    """The package and its scripts name /tmp and its like only to look at, or to talk about them."""
    root = Path(__file__).parents[2]
    shared = re.compile(r"(?<![\w>])/(?:var/tmp|tmp|dev/shm|run/lock)\b")
    scripts = [root / "deploy/ebpfwatch-generator", root / "deploy/debian/ebpfwatch.postrm"]
    files = [*(root / "ebpfwatch").rglob("*.py"), *(root / "deploy").rglob("*.sh"), *scripts]
    named = {str(f.relative_to(root)) for f in files if shared.search(f.read_text())}
    assert named == {
        "ebpfwatch/advice/plans.py",  # judges a swap file there
        "ebpfwatch/host/room.py",  # which filesystem it is on
        "deploy/image/build.sh",  # mktemp
    }
