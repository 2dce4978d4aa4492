"""Run a program of the operator's with the finding as JSON on stdin.

No shell and no arguments: the text in a finding was chosen by anybody.  It runs with what the
daemon has left (root without most capabilities, no new privileges), in a session of its own, and is
killed with it when its time is up.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import stat
import subprocess
import time

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.text.printable import printable
from ebpfwatch.verdicts.finding import Finding

__all__ = ["Command"]

_SHOWN = 200  #: bytes of its output that are worth a line
_AFTER_SECONDS = 1.0


class Command:
    """One program."""

    def __init__(self, path: str, seconds: float) -> None:
        """Raises ``EbpfwatchError`` (exit 78) unless it is a program that only root can change."""
        self._path = path
        self._seconds = seconds
        problem = _problem(path)
        if problem:
            raise EbpfwatchError(
                f"actions.command: {path} {problem}",
                "it will run as root: chown root, chmod 755, or leave actions.command empty",
                Exit.CONFIG,
            )

    def run(self, finding: Finding) -> str:
        """Run it to its end; returns what to say. Raises ``OSError`` for one that failed."""
        with os.fdopen(os.memfd_create("finding"), "w+b") as body:
            body.write(json.dumps(finding.to_json(), ensure_ascii=True).encode() + b"\n")
            body.seek(0)
            child = subprocess.Popen(
                [self._path],
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


def _problem(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError as error:
        return f"cannot be run: {error.strerror}"
    if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
        return "is no program"
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        return "can be changed by others than root"
    return ""
