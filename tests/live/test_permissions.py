"""What the running daemon leaves on the disk: nobody else can write it, nor wait at its names."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.conftest import ROOT, command, write_config
from tests.live.harness import PATIENCE, until

pytestmark = pytest.mark.needs("strace")

#: Directories in which everybody may put a link at a name that can be guessed.
SHARED = ("/tmp", "/var/tmp", "/dev/shm", "/run/lock")
CREATES = "open,openat,creat,mkdir,mkdirat,mknod,mknodat,symlink,symlinkat,link,linkat,rename,renameat,renameat2,chmod,fchmod,fchmodat"  # noqa: E501


@pytest.fixture
def traced(tmp_path: Path, ext4: Path) -> Iterator[tuple[Path, list[str]]]:
    """A daemon under strace and with the worst umask: loaded, a canary done, a finding in each
    sink, a snapshot taken, stopped; its directory and its system calls.
    """
    config = write_config(tmp_path, snapshot="true")
    calls, log = tmp_path / "calls", tmp_path / "log"
    words = ["strace", "-f", "-y", "-qq", "-s", "4096", "-e", f"trace={CREATES}", "-o", str(calls)]
    words += [sys.executable, "-m", "ebpfwatch", "run", "--config", str(config)]
    with open(log, "wb") as stderr:
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env={
                **os.environ,
                "RUNTIME_DIRECTORY": str(tmp_path / "run"),
                "PYTHONDONTWRITEBYTECODE": "1",  # those of a checkout are not the daemon's
            },
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            umask=0,
            start_new_session=True,
        )
    try:
        until(lambda: "ready after" in log.read_text() or process.poll() is not None, log.read_text)
        words = ["selftest", "--timeout", str(PATIENCE)]
        assert command(*words, run_directory=tmp_path / "run").returncode == 0
        until(lambda: list((tmp_path / "state").glob("snapshots/[0-9]*")), log.read_text)
        # A canary's file: without a name where others could wait at one.
        canary = re.compile(r"O_TMPFILE|\.ebpfwatch-canary")
        until(lambda: canary.search(calls.read_text(errors="replace")), log.read_text)
        yield tmp_path, calls.read_text(errors="replace").splitlines()
    finally:
        # The whole session: strace would let the daemon go.
        os.killpg(process.pid, 15)
        process.wait(PATIENCE)


def made(calls: list[str]) -> Iterator[tuple[str, str, str]]:
    """(directory, name, the whole call) of each name that was to be created or moved into place."""
    for call in calls:
        if re.match(r"\d+ +(---|\+\+\+|<\.\.\.)", call):  # signals, ends, the rest of a call
            continue
        if re.search(r" (open|openat)\(", call) and "O_CREAT" not in call:
            continue
        if " fchmod(" in call:  # an open file's own mode; what it ends as is looked at above
            continue
        at = re.search(r'<([^>]*)>, "((?:[^"\\]|\\.)*)"', call)
        path = re.findall(r'"((?:[^"\\]|\\.)*)"', call)
        assert path, call
        full = os.path.join(at.group(1), at.group(2)) if at else path[-1]
        if full.startswith(("/proc/", "/sys/")):
            continue  # where only the kernel makes files
        yield os.path.dirname(full), os.path.basename(full), call


def test_what_it_creates_is_its_own(traced: tuple[Path, list[str]]) -> None:
    """State, findings, boot record, snapshots, lock: root's, without setuid, setgid, or a right to
    write for others; findings may not even be read. No name in a directory that everybody may
    write to; each is new (O_EXCL) and no link, but for the lock, which stays.
    """
    directory, calls = traced
    found = [
        path
        for top in ("state", "run")
        for path in [directory / top, *(directory / top).rglob("*")]
    ]
    names = {str(path.relative_to(directory)) for path in found}
    assert {"state", "state/findings", "state/snapshots", "run", "run/daemon.json"} <= names
    for path in found:
        status = os.lstat(path)
        assert status.st_uid == status.st_gid == 0, path
        assert not status.st_mode & (stat.S_ISUID | stat.S_ISGID | 0o022), (
            path,
            oct(status.st_mode),
        )
        if path.is_file():
            # `ebpfwatch status` is for everybody: it tells what /metrics does.
            mode = 0o644 if path.name == "status.json" else 0o600
            assert stat.S_IMODE(status.st_mode) == mode, (path, oct(status.st_mode))
    created = list(made(calls))
    files = {name for _, name, call in created if "O_CREAT" in call}
    assert {"daemon.json", ".writing-boot.json"} <= files, files
    assert any(name.startswith(".ebpfwatch") for name in files), files  # the canary
    for where, name, call in created:
        assert where not in SHARED, call
        if "O_CREAT" in call:
            assert "O_NOFOLLOW" in call, call
            assert "O_EXCL" in call or name == "daemon.json", call
