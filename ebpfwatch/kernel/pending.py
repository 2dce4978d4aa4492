"""The loader child at work, seen from who started it.

It is started before there is anything to ask, so that its Python starts while the daemon's does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, TypeVar

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.kernel import handoff
from ebpfwatch.kernel.protocol import Examined, Go, Loaded, LoadRequest
from ebpfwatch.system.log import say
from ebpfwatch.text.printable import printable

__all__ = ["Pending", "build", "probe", "start_loader"]

_Reply = TypeVar("_Reply", Loaded, Examined)
_WAIT_SECONDS = 0.2
_END_SECONDS = 2.0
_TELL_SECONDS = 3.0

#: Compiling and attaching took 1 s on x86-64, half a minute on an emulated arm64; the unit's
#: TimeoutStartSec is longer, so that the reason is in the log before systemd's axe falls.
LOADER_SECONDS = 300.0

#: Where this very package is, so that the child runs the same code from any directory.
_PYTHONPATH = os.pathsep.join(
    filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")))
)


class Pending:
    """A loader child: start it early, ask when all is known, collect when its fds are needed."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # The child's stderr while it loads.  LLVM ends the process by itself (exit(1) in
        # report_fatal_error()); then these are the only words that are left.
        self._stderr = os.memfd_create("loader-stderr")
        with theirs:
            try:
                self._child = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "ebpfwatch.loader.child",
                        str(theirs.fileno()),
                        str(os.getpid()),
                        str(self._stderr),
                    ],
                    pass_fds=(theirs.fileno(), self._stderr),
                    env={**os.environ, "PYTHONPATH": _PYTHONPATH},
                    # `-m` looks for modules in the working directory first, and that may be
                    # anybody's.
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                )
            except OSError as error:
                self._close()
                raise EbpfwatchError(
                    f"the loader cannot be started: {error}",
                    "see what is missing there: a chroot needs /dev, /proc and /sys",
                    Exit.OSERR,
                ) from None

    def ask(self, request: LoadRequest) -> Pending:
        """Say what to load; raises ``EbpfwatchError`` where the child is gone already."""
        return self._say(request)

    def go(self) -> Pending:
        """Let it attach what it has loaded; raises ``EbpfwatchError`` as ``ask``."""
        return self._say(Go())

    def _say(self, record: LoadRequest | Go) -> Pending:
        try:
            handoff.send(self._connection, record)
        except OSError:
            self.collect(Loaded, _END_SECONDS)  # raises what it had to say before it ended
        return self

    def wait(self, stop: Callable[[], bool], seconds: float = LOADER_SECONDS) -> bool:
        """Until the child has an answer; False if ``stop`` says so before.

        Raises ``EbpfwatchError`` if that takes longer.
        """
        deadline = time.monotonic() + seconds
        told = False
        while not stop():
            if select.select([self._connection], [], [], _WAIT_SECONDS)[0]:
                return not stop()
            if time.monotonic() > deadline:
                raise self._too_late(seconds)
            if not told and time.monotonic() > deadline - seconds + _TELL_SECONDS:
                told = True
                say("still loading: the first start under a kernel compiles the programs")
        return False

    def collect(
        self, kind: type[_Reply], seconds: float = LOADER_SECONDS
    ) -> tuple[_Reply, list[int]]:
        """The reply and the fds; raises ``EbpfwatchError`` with the child's own words."""
        self._connection.settimeout(seconds)
        try:
            reply, fds = handoff.receive(self._connection, kind)
        except socket.timeout:
            raise self._too_late(seconds) from None
        except (EOFError, OSError) as error:
            status = self._end()
            raise EbpfwatchError(
                f"the loader child died (status {status}): {_last_line(self._stderr) or error}",
                "out of memory? compiling takes some 130 MB for a second",
                Exit.OSERR,
            ) from None
        finally:
            self._close()
        self._child.wait()
        return reply, fds

    def abandon(self) -> None:
        """Stop the child; nothing stays loaded."""
        self._close()
        self._end()

    def _close(self) -> None:
        self._connection.close()
        if self._stderr >= 0:
            os.close(self._stderr)
        self._stderr = -1

    def _too_late(self, seconds: float) -> EbpfwatchError:
        where = _waits_in(self._child.pid)
        self.abandon()
        return EbpfwatchError(
            f"compiling and attaching did not end within {seconds:g} s{where}",
            "see `ebpfwatch check --verbose`",
            Exit.OSERR,
        )

    def _end(self) -> int | None:
        """Its exit status; None if it does not end, as in the middle of a write to a frozen disk:
        then it is gone with what it waits for.
        """
        self._child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(_END_SECONDS)
        return self._child.returncode


def _last_line(file: int) -> str:
    """The last words of a child that died, "" if it left none."""
    with contextlib.suppress(OSError):
        size = os.fstat(file).st_size
        lines = os.pread(file, 4096, max(0, size - 4096)).decode("utf-8", "replace").splitlines()
        return next((printable(line.strip()) for line in reversed(lines) if line.strip()), "")
    return ""


def _waits_in(pid: int) -> str:
    """For the message: the kernel function a process sleeps in, "" if it runs or none knows."""
    with contextlib.suppress(OSError):
        place = Path(f"/proc/{pid}/wchan").read_text()
        return f": it waits in {place}" if place not in ("", "0") else ": it is still running"
    return ""


def start_loader(request: LoadRequest) -> Pending:
    """Start compiling and attaching in a child; see ``Session`` for what comes back."""
    return Pending().ask(request).go()


def probe(request: LoadRequest, seconds: float = LOADER_SECONDS) -> Examined:
    """What this kernel offers and takes of what ``request`` wants: everything is loaded once,
    nothing is attached or kept; raises ``EbpfwatchError``.
    """
    pending = start_loader(dataclasses.replace(request, verify=True))
    return pending.collect(Examined, seconds)[0]


def build(request: LoadRequest, seconds: float = LOADER_SECONDS) -> Examined:
    """Compile and keep for the next start, attach nothing; raises ``EbpfwatchError``."""
    pending = start_loader(dataclasses.replace(request, build=True))
    return pending.collect(Examined, seconds)[0]
