"""Open files that no process has: counted on made /proc trees and on the real one."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from pathlib import Path

import pytest

from ebpfwatch.advice import Level, modules
from ebpfwatch.commands import check
from ebpfwatch.host import ParseError, openfiles
from ebpfwatch.host.sources import Sources
from ebpfwatch.host.state import HostReader, HostState
from ebpfwatch.paths import Paths

ERROR = (os.cpu_count() or 1) * max(32, 2 * (os.cpu_count() or 1))

MAPS = """\
aaaa0000-aaaa1000 r-xp 00000000 fe:00 100 /bin/true
aaab0000-aaab1000 r--p 00001000 fe:00 100 /bin/true
aaac0000-aaac1000 rw-p 00000000 00:00 0 [heap]
bbbb0000-bbbb1000 r--p 00000000 fe:00 101 /lib/libc.so.6
bbbb1000-bbbb2000 r-xp 00001000 fe:00 101 /lib/libc.so.6
bbbc0000-bbbc1000 r--p 00000000 fe:00 101 /lib/libc.so.6
cccc0000-cccc1000 rw-p 00000000 00:00 0
"""


class Machine:
    """A /proc made by hand."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(proc=root / "proc", sys=root / "sys")
        (self.paths.proc / "sys/fs").mkdir(parents=True)
        (self.paths.proc / "self/ns").mkdir(parents=True)
        (self.paths.sys / "block").mkdir(parents=True)
        self.opened(10_000)

    def opened(self, number: int) -> None:
        """What the kernel says."""
        (self.paths.proc / "sys/fs/file-nr").write_text(f"{number}\t0\t99999\n")

    def process(self, pid: int, *targets: str, maps: str = "", threads: int = 1) -> Path:
        """One that has these open."""
        home = self.paths.proc / str(pid)
        for directory in ("fd", "fdinfo", "task"):
            (home / directory).mkdir(parents=True)
        for number, target in enumerate(targets):
            (home / "fd" / str(number)).symlink_to(target)
            (home / "fdinfo" / str(number)).write_text("pos:\t0\nflags:\t02\n")
        (home / "maps").write_text(maps)
        for thread in range(threads):
            (home / "task" / str(pid + thread)).mkdir()
            if not thread:
                (home / "task" / str(pid) / "fd").symlink_to(home / "fd")
            else:
                (home / "task" / str(pid + thread) / "fd").symlink_to(home / "fd")
        return home

    def count(self) -> openfiles.OpenFiles:
        """The count."""
        return openfiles.read(self.paths)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Ten thousand open files, and no process yet."""
    return Machine(tmp_path)


def test_every_owner_is_counted(machine: Machine) -> None:
    """Descriptors, mappings, a loop device, a swap file, a segment; a shared socket once."""
    machine.process(1, "/dev/null", "/dev/null", "socket:[7]", maps=MAPS)
    machine.process(2, "/dev/null", "socket:[7]", "socket:[8]", "pipe:[9]")
    (machine.paths.proc / "swaps").write_text("Filename Type\n/swap file 1 0 -2\n")
    (machine.paths.proc / "sysvipc").mkdir()
    (machine.paths.proc / "sysvipc/shm").write_text("key shmid\n 0 1\n 0 2\n")
    (machine.paths.sys / "block/loop0/loop").mkdir(parents=True)
    (machine.paths.sys / "block/loop0/loop/backing_file").write_text("/disk\n")
    found = machine.count()
    assert (found.descriptors, found.mapped, found.others) == (7, 3, 4)
    assert found.error == ERROR
    assert found.least == 10_000 - ERROR - (7 - 1) - 3 - 4
    # /dev/null, two sockets, a pipe, two mapped files: they are six files at least.
    assert found.most == 10_000 + ERROR - 6 - 4
    assert found.beyond_descriptors == 10_000 - 7


def test_no_more_than_there_are(machine: Machine) -> None:
    """Descriptors that share a file are more than files: nothing is missing for sure."""
    machine.process(1, *["/dev/null"] * 50)
    machine.opened(40)
    found = machine.count()
    assert found.least == 0 and found.most == 40 + ERROR - 1 and found.beyond_descriptors == 0


def test_what_only_a_second_look_sees(machine: Machine) -> None:
    """Files under way in a socket, files of an io_uring, a thread with descriptors of its own."""
    machine.opened(3_000)
    machine.process(5, *[f"/{number}" for number in range(100)])
    before = machine.count().least
    home = machine.process(1, "socket:[7]", "anon_inode:[io_uring]", threads=3)
    (home / "fdinfo/0").write_text("pos:\t0\nscm_fds: 250\n")
    (home / "fdinfo/1").write_text("pos:\t0\nSqMask:\t0x7\nUserFiles:\t500\n    0: x\n")
    own = machine.paths.proc / "thread"
    own.mkdir()
    for number in range(60):
        (own / str(number)).symlink_to(f"/own{number}")
    (home / "task/3/fd").unlink()
    (home / "task/3/fd").symlink_to(own)
    after = machine.count().least
    assert before is not None and after is not None
    assert before - after == 2 + 250 + 500 + 60


def test_seen_from_a_container(machine: Machine) -> None:
    """Other processes have files, too: no number is told."""
    (machine.paths.proc / "self/ns/pid").symlink_to("pid:[4026532000]")
    found = machine.count()
    assert (found.least, found.most, found.beyond_descriptors) == (None, None, None)
    assert "container" in found.why_not


def test_it_gives_up_in_time(machine: Machine) -> None:
    """And tells no number then: half a count would make the other half look like a leak."""
    machine.process(1, *[f"/{number}" for number in range(5)])
    ticks = iter(range(1000))
    found = openfiles.read(machine.paths, 2, lambda: float(next(ticks)))
    assert found.least is None and found.beyond_descriptors is None
    assert "given up after 2 s" in found.why_not


def test_processes_that_come_and_go(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was there for the kernel's number and not for ours widens the error."""
    for pid in range(1, 5):
        machine.process(pid, *[f"/{number}" for number in range(25)])
    listed = os.listdir

    def late(path: str | Path) -> list[str]:
        return listed(path) + (["77", "78"] if Path(path) == machine.paths.proc else [])

    assert machine.count().error == ERROR
    monkeypatch.setattr(os, "listdir", late)
    assert machine.count().error == ERROR + 2 * 2 * 25


@pytest.mark.parametrize("text", ("", "1 2\n", "x 0 9\n"))
def test_a_file_nr_that_is_none(text: str, machine: Machine) -> None:
    """A parse error, as of every source."""
    (machine.paths.proc / "sys/fs/file-nr").write_text(text)
    with pytest.raises(ParseError):
        machine.count()


def test_maps_of_garbage(machine: Machine) -> None:
    """A parse error; a short line is none of ours."""
    machine.process(1, maps="short line\n")
    assert machine.count().mapped == 0
    machine.process(2, maps="a-b r--p zz fe:00 3 /x\n")
    with pytest.raises(ParseError):
        machine.count()


def test_the_real_machine() -> None:
    """Our own descriptors are among those seen, and opening more makes the count rise."""
    before = openfiles.read(Paths())
    files = [open("/dev/null") for _ in range(200)]  # noqa: SIM115
    after = openfiles.read(Paths())
    for file in files:
        file.close()
    assert after.descriptors >= 200 and after.files >= after.error
    assert after.descriptors - before.descriptors > 100
    assert (after.least is None) == bool(after.why_not)


def test_the_daemon_counts_apart_from_its_loop(machine: Machine) -> None:
    """The state has the last count; asking again at once makes no other."""
    machine.process(1, "/dev/null")
    reader = HostReader(machine.paths, Sources(lambda line, level: None))
    assert reader.state().open_files is None
    for _ in range(3):
        reader.count_open_files()
    until = time.monotonic() + 10
    while reader._open_files is None and time.monotonic() < until:
        time.sleep(0.01)
    reader._read_at = -float("inf")
    found = reader.state().open_files
    assert found is not None and found.descriptors == 1
    machine.opened(20_000)
    reader.count_open_files()
    time.sleep(0.05)
    assert reader._open_files is found


def test_a_count_that_hangs_is_not_shown_for_ever(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for again, and none comes: the thread waits in /proc."""
    reader = HostReader(machine.paths, Sources(lambda line, level: None))
    reader._count()
    assert reader.state().open_files is not None
    monkeypatch.setattr(reader._counter, "submit", lambda job: False)
    now = time.monotonic()
    for minutes in range(30):
        monkeypatch.setattr("time.monotonic", lambda minutes=minutes: now + 60 * minutes)
        reader.count_open_files()
    assert reader.state().open_files is None


def test_check_does_not_wait_for_ever(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A /proc that does not answer is a line of its own."""
    hanging = threading.Event()
    monkeypatch.setattr(openfiles, "read", lambda paths, budget: hanging.wait(30))
    state = check._with_open_files(machine.paths, HostState(), 0.1)
    hanging.set()
    (line,) = (one for one in modules.advise(state) if one.item == "files without a process")
    assert line.level is Level.UNKNOWN and "not counted within 0.1 s" in line.value


def test_check_counts(machine: Machine) -> None:
    """Where /proc answers; what cannot be read is said."""
    machine.process(1, "/dev/null")
    state = check._with_open_files(machine.paths, HostState())
    assert state.open_files is not None and state.open_files.descriptors == 1
    (machine.paths.proc / "sys/fs/file-nr").unlink()
    state = check._with_open_files(machine.paths, HostState())
    assert state.open_files is None and "file-nr" in state.problems["open_files"]


@pytest.mark.parametrize(
    ("least", "graphics", "level"),
    [
        (0, False, Level.OK),
        (499, False, Level.OK),
        (2000, False, Level.WARN),
        (2000, True, Level.OK),
        (20_000, True, Level.WARN),
        (None, False, Level.UNKNOWN),
    ],
)
def test_what_is_thought_of_it(
    machine: Machine, least: int | None, graphics: bool, level: Level
) -> None:
    """A graphics driver is not accused of its buffers; what is not known is not called fine."""
    found = dataclasses.replace(machine.count(), least=least, graphics=graphics)
    lines = modules.advise(HostState(open_files=found))
    (line,) = (line for line in lines if line.item == "files without a process")
    assert line.level is level
    if level is Level.WARN:
        assert f"{least} to " in line.value and "suspects" in line.command
