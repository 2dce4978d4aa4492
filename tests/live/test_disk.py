"""A real ext4 whose disk begins to fail: what the daemon's gauges and a finding say of it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpfwatch.host.disks import Disk, DiskReader
from ebpfwatch.paths import Paths
from tests.live.harness import PATIENCE, DaemonProcess, command, selftest, until, watching


@pytest.fixture
def sick(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """An ext4 on a loop device, and where its file lies: there is too little room for it."""
    below, mount = tmp_path / "below", tmp_path / "mnt"
    below.mkdir()
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24M", "none", below], check=True)
    image = below / "image"
    image.touch()
    os.truncate(image, 64 << 20)
    words = ["mke2fs", "-q", "-F", "-t", "ext4", "-e", "remount-ro", str(image)]
    subprocess.run(words, check=True)
    subprocess.run(["mount", "-o", "loop", image, mount], check=True)
    yield below, mount
    subprocess.run(["umount", mount], check=True)
    subprocess.run(["umount", below], check=True)


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
    """Before: there, no error. After it took no data any more: errors in the kernel's log, of this
    device only. After ext4 met an error: read-only, by itself; `check` says FAIL.
    """
    below, mount = sick
    (device,) = (found.device for found in ext4_of(mount))
    with watching(tmp_path) as daemon:
        assert value(daemon, "ebpfwatch_filesystem_turned_read_only", mount) == 0.0
        assert value(daemon, "ebpfwatch_filesystem_device_gone", mount) == 0.0
        before = messages(daemon, mount)
        fill(below / "rest", 32 << 20)
        fill(mount / "data", 20 << 20)
        until(lambda: messages(daemon, mount) > before, daemon.metrics)
        assert messages(daemon, Path("/")) == 0.0
        # The kernel's own switch, as after an error of the structures.
        Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("tests/live/test_disk.py")
        until(lambda: value(daemon, "ebpfwatch_filesystem_turned_read_only", mount))
        lines = json.loads(command("check", "--json").stdout)["advice"]
        told = {line["item"]: line["level"] for line in lines}
        assert told[f"{mount} device"] == told[f"{mount} errors"] == "FAIL"
        assert told["/ device"] == "OK"


def ext4_of(mount: Path) -> list[Disk]:
    """The filesystem that is mounted there."""
    return [disk for disk in DiskReader().read(Paths()) if disk.mount == str(mount)]


def fill(file: Path, size: int) -> None:
    """As much as goes; the disk says only later what it did not take."""
    with contextlib.suppress(OSError), open(file, "wb") as out:
        for _ in range(size >> 20):
            out.write(os.urandom(1 << 20))
            out.flush()
    os.sync()


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
