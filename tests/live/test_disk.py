"""A real ext4 whose disk begins to fail: what the daemon's gauges and a finding say of it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.harness import PATIENCE, DaemonProcess, command, selftest, until, watching


@pytest.fixture
def sick(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """An ext4 on a loop device, and the file that is its disk."""
    image, mount = tmp_path / "image", tmp_path / "mnt"
    image.write_bytes(b"")
    os.truncate(image, 64 << 20)
    mount.mkdir()
    words = ["mke2fs", "-q", "-F", "-t", "ext4", "-e", "remount-ro", str(image)]
    subprocess.run(words, check=True)
    # Direct, or what lies behind the end of its file would be read as zeros (lo_read_simple() in
    # drivers/block/loop.c).
    words = ["losetup", "-f", "--show", "--direct-io=on", str(image)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    device = done.stdout.strip()
    subprocess.run(["mount", device, mount], check=True)
    for number in range(50):
        (mount / str(number)).mkdir()
    subprocess.run(["umount", mount], check=True)  # or its blocks would still be in memory
    subprocess.run(["mount", device, mount], check=True)
    yield image, mount
    subprocess.run(["umount", mount], check=True)
    subprocess.run(["losetup", "-d", device], check=True)


def value(daemon: DaemonProcess, name: str, mount: Path) -> float | None:
    """A gauge of this mount."""
    for sample, number in daemon.metrics().items():
        if sample.startswith(f"{name}{{") and f'mountpoint="{mount}"' in sample:
            return number
    return None


def messages(daemon: DaemonProcess, mount: Path) -> float:
    """Of the kernel about errors of its device, or of an earlier one of the same name."""
    found = value(daemon, "ebpfwatch_disk_error_messages", mount)
    assert found is not None
    return found


def test_a_disk_that_gives_errors(sick: tuple[Path, Path], tmp_path: Path) -> None:
    """Before: there, no error. After its file was cut off: errors in the log and in ext4's count;
    `check` says FAIL, and only of this mount.
    """
    image, mount = sick
    with watching(tmp_path) as daemon:
        assert value(daemon, "ebpfwatch_filesystem_turned_read_only", mount) == 0.0
        assert value(daemon, "ebpfwatch_filesystem_device_gone", mount) == 0.0
        before = messages(daemon, mount)
        # What lies behind the end of its file is an error now (lo_complete_rq(), the same file).
        os.truncate(image, 0)
        Path("/proc/sys/vm/drop_caches").write_text("3")
        for number in range(50):
            try:
                (mount / str(number) / "file").touch()
            except OSError:
                break
        os.sync()
        until(lambda: messages(daemon, mount) > before, daemon.metrics)
        until(lambda: value(daemon, "ebpfwatch_filesystem_turned_read_only", mount))
        assert messages(daemon, Path("/")) == 0.0
        lines = json.loads(command("check", "--json").stdout)["advice"]
        told = {
            line["item"]: line["level"] for line in lines if line["item"].startswith(f"{mount} ")
        }
        assert told[f"{mount} device"] == told[f"{mount} errors"] == "FAIL"
        assert {line["item"]: line["level"] for line in lines}["/ device"] == "OK"


def test_open_files_are_counted(tmp_path: Path, ext4: Path) -> None:
    """By the daemon's own thread, and by `check` as root; descriptors of ours are not the
    kernel's.
    """
    with watching(tmp_path) as daemon:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            beyond = daemon.metrics()["ebpfwatch_files_beyond_descriptors"]
            if beyond == beyond:  # not NaN
                break
            time.sleep(0.5)
        assert beyond == beyond
        assert selftest(daemon).returncode == 0
    host = json.loads(command("check", "--json").stdout)["host"]
    assert host["open_files"]["descriptors"] > 20
