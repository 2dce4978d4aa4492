"""The real thing: this kernel, real ext4 on a loop device, the daemon as a process of its own.

What a test lacks here is named in its skip reason, never passed over in silence.
"""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpfwatch.kernel import session as kernel_session
from ebpfwatch.kernel.session import Session

ROOT = Path(__file__).parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is live; without root nothing of it can run."""
    for item in items:
        item.add_marker(pytest.mark.live)
        if os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root: sudo make live"))


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def storm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The create+unlink storm, compiled."""
    binary = tmp_path_factory.mktemp("bin") / "storm"
    source = ROOT / "tests/live/storm.c"
    subprocess.run(["gcc", "-O2", "-Wall", "-o", binary, source], check=True)
    return binary


@pytest.fixture(scope="session")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh ext4 filesystem on a loop device."""
    directory = tmp_path_factory.mktemp("ext4")
    image, mount = directory / "image", directory / "mnt"
    mount.mkdir()
    with open(image, "wb") as file:
        file.truncate(1 << 30)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, mount], check=True)
    yield mount
    subprocess.run(["umount", mount], check=True)


@dataclasses.dataclass
class DaemonProcess:
    """A running daemon and where it keeps things."""

    process: subprocess.Popen[bytes]
    run_directory: Path
    state: Path
    config: Path
    log: Path
    out: Path
    url: str

    def metrics(self) -> dict[str, float]:
        """One scrape, by series."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def settled_metrics(self) -> dict[str, float]:
        """A scrape that is newer than this call: snapshots live for a second."""
        time.sleep(1.1)
        return self.metrics()

    def wait_log(self, text: str, seconds: float = 10) -> str:
        """The log once it contains the text; fails with the log if it never does."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            log = self.log.read_text()
            if text in log:
                return log
            time.sleep(0.02)
        pytest.fail(f"{text!r} did not appear in:\n{self.log.read_text()}")

    def stop(self) -> int:
        """SIGTERM and wait."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


def command(*words: object, run_directory: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run one ebpfwatch command to its end."""
    env = dict(os.environ)
    if run_directory:
        env["RUNTIME_DIRECTORY"] = str(run_directory)
    return subprocess.run(
        [sys.executable, "-m", "ebpfwatch", *map(str, words)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )


def write_config(directory: Path, **changes: str) -> Path:
    """The example configuration with a port and a state directory of its own."""
    text = (ROOT / "config.example.yaml").read_text()
    changes = {
        "state_directory": str(directory / "state"),
        "listen": f"127.0.0.1:{free_port()}",
        **changes,
    }
    for key, value in changes.items():
        text, count = re.subn(rf"(?m)^(\s*{key}:)\s*\S+", rf"\1 {value}", text)
        assert count == 1, key
    path = directory / "config.yaml"
    path.write_text(text)
    return path


def start_daemon(directory: Path, **changes: str) -> DaemonProcess:
    """Start a daemon and wait until it says that it is ready."""
    config = write_config(directory, **changes)
    run_directory = directory / "run"
    log, out = directory / "log", directory / "out"
    with open(log, "wb") as stderr, open(out, "wb") as stdout:
        process = subprocess.Popen(
            [sys.executable, "-m", "ebpfwatch", "run", "--config", config],
            cwd=ROOT,
            env={**os.environ, "RUNTIME_DIRECTORY": str(run_directory)},
            stdout=stdout,
            stderr=stderr,
        )
    daemon = DaemonProcess(process, run_directory, directory / "state", config, log, out, "")
    deadline = time.monotonic() + 30
    while "ready after" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    found = re.search(r"metrics: (\S+)/metrics", log.read_text())
    daemon.url = found.group(1) if found else ""
    return daemon


@pytest.fixture
def daemon(tmp_path: Path, ext4: Path) -> Iterator[DaemonProcess]:
    """A daemon with the example's settings."""
    running = start_daemon(tmp_path)
    yield running
    assert running.stop() == 0, running.log.read_text()


def load_session(ext4: Path, **changes: object) -> Session:
    """The watcher without the daemon, for tests that look into the maps."""
    request: dict[str, object] = {
        "unit": "ebpfwatch.c",
        "alloc": True,
        "strict": True,
        "table_slots": 32768,
        "note_slots": 4096,
        "ring_bytes": 262144,
        "mounts": [str(ext4)],
        **changes,
    }
    return kernel_session.load(kernel_session.start_loader(request))


def loaded_programs() -> set[str]:
    """Names of all BPF programs in the kernel, by id."""
    listing = subprocess.run(["bpftool", "prog"], capture_output=True, text=True, check=True)
    return set(re.findall(r"^\d+: \w+ .*?name (\w+)", listing.stdout, re.MULTILINE))
