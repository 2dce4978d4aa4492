"""An independent witness: perf counts the same tracepoints, and never skips a softirq's.

What the hooks in task context must not miss is compared exactly; what the free hook misses is
compared with what the table says it missed, and printed beside the kernel's own recursion_misses.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpfwatch.kernel.session import Session
from tests.live.conftest import load_session
from tests.live.test_storm import STORM, books, run_storms

_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_SET_FILTER = 0x40082406


class Counter:
    """Counts one tracepoint on all CPUs, with an ftrace filter."""

    def __init__(self, tracefs: Path, event: str, condition: str = "") -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        identifier = int((tracefs / "events" / event / "id").read_text())
        attribute = bytearray(128)
        struct.pack_into("<IIQQQQ", attribute, 0, 2, 128, identifier, 1 << 40, 0, 0)
        self._fds = []
        for cpu in range(os.cpu_count() or 1):
            buffer = ctypes.create_string_buffer(bytes(attribute), 128)
            fd = libc.syscall(_PERF_EVENT_OPEN[platform.machine()], buffer, -1, cpu, -1, 8)
            if fd < 0:
                pytest.skip(f"no perf tracepoints here: {os.strerror(ctypes.get_errno())}")
            self._fds.append(fd)
            if condition:
                fcntl.ioctl(fd, _SET_FILTER, condition.encode() + b"\0")

    def read(self) -> int:
        """Total so far."""
        return sum(struct.unpack("<Q", os.read(fd, 8))[0] for fd in self._fds)

    def close(self) -> None:
        """Stop counting."""
        for fd in self._fds:
            os.close(fd)


@pytest.fixture
def tracefs(tmp_path: Path) -> Iterator[Path]:
    """The tracing filesystem, mounted for this test only."""
    mount = tmp_path / "tracefs"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tracefs", "none", mount], check=True)
    yield mount
    subprocess.run(["umount", mount], check=True)


def seen(session: Session) -> tuple[int, int]:
    """(evictions, frees) the hooks saw, once RCU has come to rest."""
    _, _, counters = books(session)
    frees = counters["free"] + counters["free_unmatched"] + counters["free_aborted"]
    return counters["evict"], frees


def test_task_hooks_are_exact_and_missed_frees_are_known(
    ext4: Path, storm: Path, tracefs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evictions: equal. Frees: perf's count is what we saw plus what the table says we missed."""
    session = load_session(ext4)
    evicts = Counter(tracefs, "ext4/ext4_evict_inode")
    frees = Counter(tracefs, "kmem/kmem_cache_free", 'name=="ext4_inode_cache"')
    with contextlib.closing(session), contextlib.closing(evicts), contextlib.closing(frees):
        evicted_before, freed_before = seen(session)
        before = evicts.read(), frees.read()
        processes = run_storms(storm, ext4, STORM // 5, 2)
        for _ in range(5):
            Path("/proc/sys/vm/drop_caches").write_text("2")
            for entry in os.scandir(ext4):
                with contextlib.suppress(FileNotFoundError):
                    entry.stat()
        for process in processes:
            assert process.wait() == 0
        evicted, accounted, counters = books(session)
        freed = seen(session)[1] - freed_before
        truth_evicted, truth_freed = evicts.read() - before[0], frees.read() - before[1]
        assert evicted - evicted_before == truth_evicted
        assert truth_freed == truth_evicted
        missed = (
            counters["free_missed"]
            + counters["forgotten_dying"]
            + session.scan().dying
            - counters["free_unmatched"]
            - counters["free_aborted"]
        )
        assert accounted == evicted
        assert truth_freed - freed == missed
        with capsys.disabled():
            print(
                f"\n  {truth_freed} frees by perf, {freed} seen, {missed} missed and known;"
                f" recursion_misses says {session.misses()['kmem_cache_free']}"
            )
