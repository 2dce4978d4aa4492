"""`ebpfwatch unlinks` against known calls: the path as written, the inode, the result; nothing lost
in silence, and nobody's result under another's name.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tests.live.harness import PATIENCE, ROOT, build, until


class Unlinks:
    """The command for the calls of one process, once it watches; what it prints goes to files."""

    def __init__(self, directory: Path, *options: object, pid: int = 0) -> None:
        self.log, self._out = directory / "log", directory / "out"
        words = [sys.executable, "-m", "ebpfwatch", "unlinks", "--pid", str(pid or os.getpid())]
        with open(self.log, "w") as stderr, open(self._out, "w") as stdout:
            self.process = subprocess.Popen(
                [*words, *map(str, options)], cwd=ROOT, stdout=stdout, stderr=stderr
            )

    def __enter__(self) -> Unlinks:
        until(
            lambda: "watching" in self.log.read_text() or self.process.poll() is not None,
            self.log.read_text,
        )
        assert self.process.poll() is None, self.log.read_text()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> list[list[str]]:
        """SIGTERM; the lines, by field."""
        self.process.send_signal(signal.SIGTERM)
        return self.lines()

    def json(self) -> list[dict[str, Any]]:
        """SIGTERM; the objects."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 0, self.log.read_text()
        return [json.loads(line) for line in self._out.read_text().splitlines()]

    def lines(self) -> list[list[str]]:
        """The lines, by field, once it has ended."""
        assert self.process.wait(PATIENCE) == 0, self.log.read_text()
        return [line.split(None, 6) for line in self._out.read_text().splitlines()[1:]]

    def said(self, pattern: str, seconds: float = 0) -> tuple[int, ...]:
        """The numbers of a line of the log, once it is there."""
        found = until(lambda: re.search(pattern, self.log.read_text()), self.log.read_text, seconds)
        assert found
        return tuple(map(int, found.groups()))


def state_of(task: threading.Thread) -> str:
    """What the kernel says of a thread of ours."""
    stat = Path(f"/proc/self/task/{task.native_id}/stat").read_text()
    return stat.rpartition(")")[2].split()[0]


def test_each_unlink_is_one_line(ext4: Path, tmp_path: Path) -> None:
    """23 files deleted by one process, and two calls that fail; all with their own path."""
    files = [ext4 / f"victim-{number}" for number in range(23)]
    for file in files:
        file.touch()
    inodes = {str(file): str(file.stat().st_ino) for file in files}
    with Unlinks(tmp_path, "--count", 25, "--errors") as watcher:
        for file in files:
            os.unlink(file)
        for missing in ("no-such-file\n\x1b[31m", "/nonexistent/x"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(missing)
        lines = watcher.lines()
    assert len(lines) == 25
    shown = {fields[6]: fields for fields in lines}
    for path, inode in inodes.items():
        assert shown[path][3] == "ok"
        assert shown[path][5] == inode
    assert shown["/nonexistent/x"][3] == "ENOENT"
    missing = os.path.join(os.getcwd(), "no-such-file\\x0a\\x1b[31m")
    assert shown[missing][5] == "-"
    assert all(re.fullmatch(r"20\d\d-\S+T\S+Z", fields[0]) for fields in lines)


def test_what_is_asked_for_is_shown(ext4: Path, tmp_path: Path) -> None:
    """Below a directory, whole paths of relative names, and what failed is counted."""
    (ext4 / "sub").mkdir()
    directory = os.open(ext4 / "sub", os.O_RDONLY)
    for name in ("one", "two"):
        (ext4 / "sub" / name).touch()
    (ext4 / "elsewhere").touch()
    with Unlinks(tmp_path, "--under", ext4 / "sub", "--json") as watcher:
        os.unlink(ext4 / "elsewhere")
        os.unlink(ext4 / "sub/one")
        os.unlink("two", dir_fd=directory)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(ext4 / "sub/nothing")
        bodies = watcher.json()
    os.close(directory)
    assert [body["path"] for body in bodies] == [str(ext4 / "sub/one"), str(ext4 / "sub/two")]
    assert all(body["result"] == "ok" and body["time"].endswith("Z") for body in bodies)
    assert watcher.said(r"(\d+) calls that failed are not shown") == (1,)


def test_it_gives_up_its_privileges(tmp_path: Path) -> None:
    """From /proc, in every thread: no capability, none to be had again, not by what it starts."""
    with Unlinks(tmp_path, "--no-resolve") as watcher:
        for task in Path(f"/proc/{watcher.process.pid}/task").iterdir():
            status = (task / "status").read_text()
            for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert re.search(rf"{name}:\s+0{{16}}\n", status), status
            assert re.search(r"NoNewPrivs:\s+1\n", status)
        os.close(os.open(tmp_path / "victim", os.O_CREAT))
        os.unlink(tmp_path / "victim")
        assert watcher.stop()[0][6] == str(tmp_path / "victim")  # ... and it still works
    assert watcher.log.read_text() == "ebpfwatch: watching; Ctrl-C ends it\n"


def test_calls_that_there_is_no_room_for_are_counted_and_told(ext4: Path, tmp_path: Path) -> None:
    """Twelve calls held up in a frozen file system, and room for four: eight are lost, and said to
    be while they are; the four are shown as what they are.
    """
    files = [ext4 / f"held-{number}" for number in range(12)]
    for file in files:
        file.touch()
    inodes = {str(file): str(file.stat().st_ino) for file in files}
    with Unlinks(tmp_path, "--in-flight", 4) as watcher:
        subprocess.run(["fsfreeze", "--freeze", ext4], check=True)
        try:
            tasks = [threading.Thread(target=os.unlink, args=(file,)) for file in files]
            for task in tasks:
                task.start()
            assert watcher.said(r"(\d+) calls so far are lost: (\d+) more under way", PATIENCE)[
                0
            ] in range(9)
            # All are in the call: what waits for a thaw is in state D (proc_pid_stat(5)).
            until(lambda: all(state_of(task) == "D" for task in tasks))
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", ext4], check=True)
        for task in tasks:
            task.join()
        lines = watcher.stop()
    assert len(lines) == 4
    for _, _, _, result, _, inode, path in lines:
        assert (result, inodes.pop(path)) == ("ok", inode)
    last = r"(\d+) of (\d+) calls are not shown: (\d+) more under way than --in-flight 4\n"
    assert watcher.said(last) == (8, 12, 8)


def test_under_collisions_shown_and_lost_are_the_calls_made(ext4: Path, tmp_path: Path) -> None:
    """Eight tasks crowd into room for one: each line has its own task, inode and result, and what
    is not shown is lost, to the last call.
    """
    tasks, count = 8, 1000
    expected: dict[str, tuple[str, str, str]] = {}
    for task in range(tasks):
        for number in range(count):
            path = ext4 / f"crowd-{task}-{number}"
            expected[str(path)] = (f"crowd-{task}", "ENOENT", "-")
            if number % 2:
                path.touch()
                expected[str(path)] = (f"crowd-{task}", "ok", str(path.stat().st_ino))
    words = [str(build(tmp_path, "crowd")), str(ext4), str(tasks), str(count)]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as crowd:
        with Unlinks(tmp_path, "--errors", "--in-flight", 1, pid=crowd.pid) as watcher:
            crowd.communicate(b"\n")
            lines = watcher.stop()
    assert crowd.returncode == 0
    for _, pid, comm, result, _, inode, name in lines:
        assert expected.pop(name) == (comm, result, inode)
        assert pid == str(crowd.pid)
    lost, made = watcher.said(r"(\d+) of (\d+) calls are not shown")
    assert made == tasks * count
    assert len(lines) + lost == made
    assert 0 < lost < made


def test_what_is_lost_is_told_at_a_bounded_rate(ext4: Path, tmp_path: Path) -> None:
    """A burst that the ring has no room for, its reader stopped meanwhile: one line and a sum."""
    calls = 20000
    with Unlinks(tmp_path, "--errors") as watcher:
        watcher.process.send_signal(signal.SIGSTOP)
        for _ in range(calls):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(ext4 / "not-there")
        watcher.process.send_signal(signal.SIGCONT)
        watcher.said(
            r"(\d+) calls so far are lost: \d+ came faster than they could be read", PATIENCE
        )
        lines = watcher.stop()
    lost, made = watcher.said(r"(\d+) of (\d+) calls are not shown: \d+ came faster")
    assert (made, len(lines) + lost) == (calls, calls)
    assert 0 < lost < calls
    assert watcher.log.read_text().count("\n") == 3  # with the line that it watches
