"""One watcher a machine: a lock file that also tells other commands about the running daemon."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.system.files import open_regular, why_not_ours

__all__ = ["SELFTEST", "Lock", "running_daemon"]

#: In the run directory: the inode number and generation of the self-test's record.
SELFTEST = "selftest"


class Lock:
    """Held for the life of the process; the kernel drops it even after kill -9."""

    def __init__(self, directory: Path) -> None:
        """Take the lock; raises ``EbpfwatchError`` (exit 75) naming who holds it."""
        try:
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            why_not = why_not_ours(directory)
            if why_not:
                raise EbpfwatchError(
                    f"the lock cannot be in {directory}: {why_not}",
                    "whoever can write there decides where root writes; give it to root alone",
                    Exit.CANTCREAT,
                )
            # Not O_EXCL: it stays for the next one, whose lock it is then.
            self._fd = os.open(directory / "daemon.json", flags, 0o600)
        except OSError as error:
            raise EbpfwatchError(
                f"cannot create {directory}/daemon.json: {error.strerror}",
                "run it as root, with a writable /run",
                Exit.NOPERM if error.errno in (1, 13) else Exit.CANTCREAT,
            ) from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = _read(self._fd).get("pid", "unknown")
            os.close(self._fd)
            raise EbpfwatchError(
                f"another ebpfwatch already watches this machine: pid {holder}",
                "stop it first: systemctl stop ebpfwatch, or end that process",
                Exit.TEMPFAIL,
            ) from None
        self.publish({})

    def publish(self, facts: dict[str, Any]) -> None:
        """Tell other commands (root only) what they may want to know of us."""
        data = json.dumps({"pid": os.getpid(), **facts}).encode()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, data, 0)

    def release(self) -> None:
        """Let the next one in."""
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


def running_daemon(directory: Path) -> dict[str, Any]:
    """What the running daemon published; raises ``EbpfwatchError`` (exit 69) if there is none."""
    try:
        fd = open_regular(directory / "daemon.json", os.O_NOFOLLOW)
    except PermissionError:
        raise EbpfwatchError(
            f"{directory}/daemon.json may only be read by root", "run it as root", Exit.NOPERM
        ) from None
    except OSError:
        fd = -1
    try:
        if fd >= 0 and _held(fd):
            return _read(fd)
    finally:
        if fd >= 0:
            os.close(fd)
    raise EbpfwatchError(
        "no ebpfwatch daemon is running",
        "start it: systemctl start ebpfwatch, or `make run` in a checkout",
        Exit.UNAVAILABLE,
    )


def _held(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def _read(fd: int) -> dict[str, Any]:
    try:
        facts = json.loads(os.pread(fd, 65536, 0))
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}
