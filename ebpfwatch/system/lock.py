"""One watcher a machine: a lock file that also tells other commands about the running daemon."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from pathlib import Path

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.system.files import open_regular, why_not_ours
from ebpfwatch.text.records import from_json, to_json

__all__ = ["LOCK", "SELFTEST", "Lock", "Running", "running_daemon"]

#: In the run directory: the lock, which stays when its holder has ended.
LOCK = "daemon.json"

#: In the run directory: the inode number and generation of the self-test's record.
SELFTEST = "selftest"


@dataclasses.dataclass(frozen=True)
class Running:
    """What a daemon tells other commands of root's; only ``pid`` while it is still loading.

    ``url`` is "off" without metrics.  ``programs`` and ``maps``: name to the kernel's id;
    ``offsets`` and ``learned``: the constants of probes/ by their names there, and the fields of
    ``kernel.protocol.Learned``.
    """

    pid: int
    version: str = ""
    url: str = "off"
    state_directory: str = ""
    journal: bool = False
    programs: dict[str, int] = dataclasses.field(default_factory=dict)
    maps: dict[str, int] = dataclasses.field(default_factory=dict)
    offsets: dict[str, int] = dataclasses.field(default_factory=dict)
    learned: dict[str, int] = dataclasses.field(default_factory=dict)


class Lock:
    """Held for the life of the process; the kernel drops it even after kill -9."""

    def __init__(self, directory: Path) -> None:
        """Take the lock; raises ``EbpfwatchError`` (exit 75) naming who holds it."""
        try:
            _make(directory)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            why_not = why_not_ours(directory)
            if why_not:
                raise EbpfwatchError(
                    f"the lock cannot be in {directory}: {why_not}",
                    "whoever can write there decides where root writes; give it to root alone",
                    Exit.CANTCREAT,
                )
            # Not O_EXCL: it stays for the next one, whose lock it is then.
            self._fd = os.open(directory / LOCK, flags, 0o600)
        except OSError as error:
            raise EbpfwatchError(
                f"cannot create {directory / LOCK}: {error.strerror}",
                "run it as root, with a writable /run",
                Exit.NOPERM if error.errno in (1, 13) else Exit.CANTCREAT,
            ) from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = _read(self._fd).pid or "unknown"
            os.close(self._fd)
            raise EbpfwatchError(
                f"another ebpfwatch already watches this machine: pid {holder}",
                "stop it first: systemctl stop ebpfwatch, or end that process",
                Exit.TEMPFAIL,
            ) from None
        self.publish(Running(os.getpid()))

    def publish(self, running: Running) -> None:
        """Tell other commands (root only) what they may want to know of us."""
        data = json.dumps(to_json(running)).encode()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, data, 0)

    def release(self) -> None:
        """Let the next one in."""
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


def _make(directory: Path) -> None:
    """For all to read, whatever the umask: any user may ask how the machine is (status.json)."""
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        return
    directory.chmod(0o755)


def running_daemon(directory: Path) -> Running:
    """What the running daemon published; raises ``EbpfwatchError`` (exit 69) if there is none."""
    try:
        fd = open_regular(directory / LOCK, os.O_NOFOLLOW)
    except PermissionError:
        raise EbpfwatchError(
            f"{directory / LOCK} may only be read by root", "run it as root", Exit.NOPERM
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


def _read(fd: int) -> Running:
    """Only the pid where another version wrote it; 0 while it is being written."""
    said = None
    try:
        said = json.loads(os.pread(fd, 65536, 0))
        return from_json(Running, said)
    except ValueError:
        pid = said.get("pid") if isinstance(said, dict) else 0
        return Running(pid if isinstance(pid, int) else 0)
