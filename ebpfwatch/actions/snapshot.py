"""Save what tells of the machine's state beside a finding: one directory, whole or not at all.

Bounded: so many bytes of each file, so many files, so many directories; the oldest goes first.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

from ebpfwatch.paths import Paths
from ebpfwatch.system import durable
from ebpfwatch.system.files import read_regular
from ebpfwatch.verdicts.finding import Finding

__all__ = ["FILES", "Snapshot"]

#: Below /proc; what this kernel does not have is left out.
FILES = (
    "buddyinfo",
    "cmdline",
    "diskstats",
    "interrupts",
    "loadavg",
    "locks",
    "meminfo",
    "modules",
    "pressure/cpu",
    "pressure/io",
    "pressure/memory",
    "self/mountinfo",
    "slabinfo",
    "softirqs",
    "stat",
    "swaps",
    "sys/fs/dentry-state",
    "sys/fs/file-nr",
    "sys/fs/inode-state",
    "sys/kernel/tainted",
    "uptime",
    "version",
    "vmstat",
    "zoneinfo",
)

_LONGEST = 1 << 20  #: bytes of one file
_FINDINGS = 20
_TASKS = 1000
_LOG_BYTES = 256 << 10


class Snapshot:
    """The directory ``snapshots`` below the state directory."""

    def __init__(self, state: Path, keep: int, paths: Paths) -> None:
        self._findings = state / "findings"
        self._directory = state / "snapshots"
        self._keep = keep
        self._paths = paths

    def take(self, finding: Finding) -> str:
        """Write one; returns where it is. Raises ``OSError`` and then leaves nothing."""
        self._directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        for leftover in self._directory.glob(f"{durable.PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        target = self._directory / finding.id
        partial = self._directory / f"{durable.PREFIX}{finding.id}"
        try:
            partial.mkdir(mode=0o700)
            body = json.dumps(finding.to_json(), ensure_ascii=True).encode() + b"\n"
            durable.write(partial / "finding.json", body)
            self._copy_all(partial)
            partial.rename(target)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        # Names sort by time; after a clock step backwards the new one is not the greatest.
        others = sorted(path for path in self._directory.iterdir() if path != target)
        for old in others[: max(0, len(others) + 1 - self._keep)]:
            shutil.rmtree(old, ignore_errors=True)
        return str(target)

    def _copy_all(self, partial: Path) -> None:
        for name in FILES:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                data = _head(self._paths.proc / name)
                durable.write(partial / name.replace("/", "-"), data)
        durable.write(partial / "tasks", self._tasks().encode())
        durable.write(partial / "kernel-log", _kernel_log(self._paths.dev / "kmsg"))
        newest = sorted(self._findings.glob("*.json"))[-_FINDINGS:]
        if newest:
            (partial / "findings").mkdir(mode=0o700)
        for file in newest:
            with contextlib.suppress(FileNotFoundError):  # the store keeps so many only
                durable.write(partial / "findings" / file.name, _head(file))

    def _tasks(self) -> str:
        """The line of /proc/PID/stat of each process."""
        pids = sorted(int(p.name) for p in self._paths.proc.iterdir() if p.name.isdigit())
        lines = []
        for pid in pids[:_TASKS]:
            with contextlib.suppress(OSError):
                stat = self._paths.proc / str(pid) / "stat"
                lines.append(stat.read_text(errors="backslashreplace"))
        return "".join(lines)


def _head(path: Path) -> bytes:
    """The file; errors of reading are its content, so that one of them does not cost the rest."""
    try:
        return read_regular(path, _LONGEST)
    except FileNotFoundError:
        raise
    except OSError as error:
        return f"cannot be read: {error.strerror}\n".encode()


def _kernel_log(path: Path) -> bytes:
    """The end of the kernel's log, in the format of /dev/kmsg, a record a read."""
    records: list[bytes] = []
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return f"cannot be read: {error.strerror}\n".encode()
    try:
        while True:
            try:
                record = os.read(fd, 8192)
            except BrokenPipeError:  # overwritten while we read: the next one is there
                continue
            except OSError:
                break
            if not record:
                break
            records.append(record)
    finally:
        os.close(fd)
    return b"".join(records)[-_LOG_BYTES:]
