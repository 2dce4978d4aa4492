"""`ebpfwatch unlinks` against known calls: the path as written, the inode, the result."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.live.conftest import ROOT


def test_each_unlink_is_one_line(ext4: Path) -> None:
    """23 files deleted by one process, and two calls that fail; all with their own path."""
    files = [ext4 / f"victim-{number}" for number in range(23)]
    for file in files:
        file.touch()
    inodes = {str(file): str(file.stat().st_ino) for file in files}
    watcher = subprocess.Popen(
        [sys.executable, "-m", "ebpfwatch", "unlinks", "--pid", str(os.getpid()), "--count", "25"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watcher.stdout is not None
    assert watcher.stdout.readline().startswith("TIME")
    for file in files:
        os.unlink(file)
    for missing in ("no-such-file\n\x1b[31m", "/nonexistent/x"):
        try:
            os.unlink(missing)
        except FileNotFoundError:
            pass
    output = watcher.communicate(timeout=20)[0]
    lines = [line.split(None, 6) for line in output.splitlines()]
    assert len(lines) == 25
    shown = {fields[6]: fields for fields in lines}
    for path, inode in inodes.items():
        assert shown[path][3] == "ok"
        assert shown[path][5] == inode
    assert shown["/nonexistent/x"][3] == "ENOENT"
    assert shown["no-such-file\\x0a\\x1b[31m"][5] == "-"
