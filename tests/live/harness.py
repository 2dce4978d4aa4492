"""What the live tests, the faults and the soak share: a daemon of their own, an ext4, a storm.

No pytest in here: the soak runs in guests, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from ebpfwatch.kernel import session as kernel_session
from ebpfwatch.kernel.pending import start_loader
from ebpfwatch.kernel.protocol import LoadRequest
from ebpfwatch.kernel.session import Session

__all__ = [
    "PATIENCE",
    "ROOT",
    "DaemonProcess",
    "build",
    "build_storm",
    "command",
    "free_port",
    "load_session",
    "loaded_programs",
    "loop_ext4",
    "selftest",
    "start_daemon",
    "until",
    "watching",
    "write_config",
]

ROOT = Path(__file__).parents[2]

#: Seconds that a test waits for what must come. Long: waiting costs nothing where it comes at once,
#: and the machine may have other things to do. A test that something is fast measures that by
#: itself, against what the same machine does at the same time.
PATIENCE = 120.0

_T = TypeVar("_T")


def until(done: Callable[[], _T], why: Callable[[], object] = str, seconds: float = PATIENCE) -> _T:
    """Wait until ``done`` is true, and return what it says; fails with ``why`` if it never is."""
    deadline = time.monotonic() + seconds
    while not (result := done()):
        assert time.monotonic() < deadline, why()
        time.sleep(0.02)
    return result


def build_storm(directory: Path) -> Path:
    """The create+unlink storm, compiled."""
    return build(directory, "storm")


def build(directory: Path, name: str) -> Path:
    """A program of this directory, compiled."""
    binary = directory / name
    source = ROOT / f"tests/live/{name}.c"
    subprocess.run(["gcc", "-O2", "-Wall", "-pthread", "-o", binary, source], check=True)
    return binary


@contextlib.contextmanager
def loop_ext4(
    directory: Path, size: int = 1 << 30, options: tuple[str, ...] = ()
) -> Iterator[Path]:
    """A fresh ext4 filesystem on a loop device, unmounted at the end."""
    image, mount = directory / "image", directory / "mnt"
    mount.mkdir()
    with open(image, "wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-F", *options, image], check=True)
    subprocess.run(["mount", "-o", "loop", image, mount], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=PATIENCE) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def settled_metrics(self) -> dict[str, float]:
        """A scrape that is newer than this call: snapshots live for a second."""
        time.sleep(1.1)
        return self.metrics()

    def wait_metrics(self, expected: dict[str, float], seconds: float = PATIENCE) -> None:
        """Until one scrape shows them all; fails with what it shows instead."""
        # As text: NaN, too, is what was waited for.
        wanted = {series: str(float(value)) for series, value in expected.items()}
        deadline = time.monotonic() + seconds
        while True:
            metrics = self.settled_metrics()
            if (now := {series: str(metrics[series]) for series in wanted}) == wanted:
                return
            assert time.monotonic() < deadline, now

    def wait_log(self, text: str, seconds: float = PATIENCE) -> str:
        """The log once it contains the text; fails with the log if it never does."""
        read = self.log.read_text
        until(lambda: text in read(), lambda: f"{text!r} did not appear in:\n{read()}", seconds)
        return read()

    def wait_proven(self, *roles: str, seconds: float = PATIENCE) -> None:
        """Until the canary has proven these hooks; all that it can prove if none is named."""
        roles = roles or ("evict", "rcu_free", "any_free")
        series = {f'ebpfwatch_hook_alive{{hook="{role}"}}': 1.0 for role in roles}
        self.wait_metrics(series, seconds)

    def wait_findings(self, count: int = 1) -> list[Path]:
        """The files of the findings, once there are that many."""
        files = self.state / "findings"
        until(lambda: len(list(files.glob("*.json"))) >= count, self.log.read_text)
        return sorted(files.glob("*.json"))

    def stop(self) -> int:
        """SIGTERM and wait."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


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
        timeout=2 * PATIENCE,
    )


def selftest(daemon: DaemonProcess) -> subprocess.CompletedProcess[str]:
    """`ebpfwatch selftest` of a daemon whose sinks all work."""
    return command("selftest", "--timeout", PATIENCE, run_directory=daemon.run_directory)


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


def start_daemon(directory: Path, wrapper: Sequence[str] = (), **changes: str) -> DaemonProcess:
    """Start a daemon, by a command that becomes it, and wait until it says that it is ready."""
    config = write_config(directory, **changes)
    run_directory = directory / "run"
    log, out = directory / "log", directory / "out"
    with open(log, "wb") as stderr, open(out, "wb") as stdout:
        process = subprocess.Popen(
            [*wrapper, sys.executable, "-m", "ebpfwatch", "run", "--config", config],
            cwd=ROOT,
            env={**os.environ, "RUNTIME_DIRECTORY": str(run_directory)},
            stdout=stdout,
            stderr=stderr,
        )
    state = Path(changes.get("state_directory", directory / "state"))
    daemon = DaemonProcess(process, run_directory, state, config, log, out, "")
    deadline = time.monotonic() + PATIENCE
    while "ready after" not in log.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()  # or the next tests share the machine with it
            process.wait()
            raise AssertionError(f"the daemon is not ready:\n{log.read_text()}")
        time.sleep(0.01)
    found = re.search(r"metrics: (\S+)/metrics", log.read_text())
    daemon.url = found.group(1) if found else ""
    return daemon


@contextlib.contextmanager
def watching(
    directory: Path, wrapper: Sequence[str] = (), **changes: str
) -> Iterator[DaemonProcess]:
    """A daemon that must stop in order, and is gone in any case."""
    daemon = start_daemon(directory, wrapper, **changes)
    try:
        yield daemon
        assert daemon.stop() == 0, daemon.log.read_text()
    finally:
        if daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait()


def load_session(ext4: Path, **changes: object) -> Session:
    """The watcher without the daemon, for tests that look into the maps."""
    request = LoadRequest(
        "ebpfwatch.c",
        alloc="always",
        any_free="always",
        table_slots=32768,
        note_slots=4096,
        ring_bytes=262144,
        mounts=(str(ext4),),
    )
    changed = dataclasses.replace(request, **changes)  # type: ignore[arg-type]
    return kernel_session.load(start_loader(changed))


def loaded_programs() -> set[str]:
    """Names of all BPF programs in the kernel, by id."""
    listing = subprocess.run(["bpftool", "prog"], capture_output=True, text=True, check=True)
    return set(re.findall(r"^\d+: \w+ .*?name (\w+)", listing.stdout, re.MULTILINE))
