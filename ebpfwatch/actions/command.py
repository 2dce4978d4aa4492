"""Run a program of the operator's with the finding as JSON on stdin.

No shell and no arguments: the text in a finding was chosen by anybody.  It runs with what the
daemon has left (root without most capabilities, no new privileges).  Everything that it started
ends with it, also what has left its session.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.system.files import resolved
from ebpfwatch.text.printable import printable
from ebpfwatch.verdicts.finding import Finding

__all__ = ["Command"]

_SHOWN = 200  #: bytes of its output that are worth a line
_AFTER_SECONDS = 1.0
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class Command:
    """One program."""

    def __init__(self, path: str, seconds: float) -> None:
        """Raises ``EbpfwatchError`` (exit 78) unless it is a program that only root can change or
        exchange.
        """
        self._path = path
        self._seconds = seconds
        try:
            _program(path)
        except OSError as error:
            raise EbpfwatchError(
                f"actions.command: {path} cannot be run: {error.strerror}",
                "it will run as root: root must own it and every directory above it, and nobody"
                " else may write there; or leave actions.command empty",
                Exit.CONFIG,
            ) from None

    def run(self, finding: Finding) -> str:
        """Run it to its end; returns what to say. Raises ``OSError`` for one that failed, or that
        others can change or exchange by now.
        """
        program = _program(self._path)
        with os.fdopen(os.memfd_create("finding"), "w+b") as body, _gathered():
            body.write(json.dumps(finding.to_json(), ensure_ascii=True).encode() + b"\n")
            body.seek(0)
            child = subprocess.Popen(
                [program],
                stdin=body,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd="/",
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
                start_new_session=True,
            )
            output, in_time = self._wait(child)
        said = printable(output.decode("utf-8", "backslashreplace").strip())
        said = f": {said}" if said else ""
        if not in_time:
            raise OSError(f"{self._path} was killed after {self._seconds:g} s{said}")
        if child.returncode:
            raise OSError(f"{self._path} ended with {child.returncode}{said}")
        return f"{self._path}{said}"

    def _wait(self, child: subprocess.Popen[bytes]) -> tuple[bytes, bool]:
        """The beginning of its output, and whether it ended by itself."""
        assert child.stdout is not None
        deadline = time.monotonic() + self._seconds
        output, open_ = b"", True
        with child.stdout:
            while open_ and child.poll() is None and (left := deadline - time.monotonic()) > 0:
                # Not for longer: a grandchild may hold the pipe when the child has gone.
                if select.select([child.stdout], [], [], min(left, 0.2))[0]:
                    chunk = os.read(child.stdout.fileno(), 65536)
                    output, open_ = (output + chunk)[:_SHOWN], bool(chunk)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
            in_time = child.poll() is not None
            if select.select([child.stdout], [], [], 0)[0]:
                output = (output + os.read(child.stdout.fileno(), 65536))[:_SHOWN]
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_AFTER_SECONDS)
        return output, in_time


def _program(path: str) -> str:
    """The program without symbolic links on the way; raises ``OSError`` where it is none, or where
    somebody else could change or exchange it.
    """
    program = resolved(path)
    status = os.stat(program)
    if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
        raise OSError(0, "is no program", path)
    return program


@contextlib.contextmanager
def _gathered() -> Iterator[None]:
    """What is started inside becomes our own child when its parent ends (prctl(2),
    PR_SET_CHILD_SUBREAPER), and is killed at the end.
    """
    before = _children()
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        deadline = time.monotonic() + _AFTER_SECONDS
        # One generation in each round: the children of whoever is killed become ours.
        while (left := _children() - before) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            for pid in left:
                with contextlib.suppress(ChildProcessError):
                    if not os.waitpid(pid, os.WNOHANG)[0]:
                        time.sleep(0.002)
                        os.waitpid(pid, os.WNOHANG)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _children() -> set[int]:
    """Our children in sessions other than ours: the command's, which was started in one of its own
    that nobody can leave for ours. What another thread of ours starts is in our session.

    By the fields after the name in /proc/PID/stat: the file "children" of
    proc_pid_task_children(5) is not there in every kernel.
    """
    found = set()
    own, ours = os.getpid(), os.getsid(0)
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                stat_line = Path(f"/proc/{name}/stat").read_text(errors="replace")
                _, parent, _, session = stat_line.rpartition(")")[2].split()[:4]
                if int(parent) == own and int(session) != ours:
                    found.add(int(name))
    return found
