"""`make hostile`: a user of no rights, made for it, does his worst; then the daemon is asked.

After each: the self-test's finding within a second, the counters add up, nothing found that was not
a test, no hook silent, resident memory bounded.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import http.client
import itertools
import os
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ebpfwatch.system.lock import running_daemon
from tests.live import attacks
from tests.live.balance import DaemonMaps, balance
from tests.live.conftest import ROOT, DaemonProcess, command, write_config
from tests.live.harness import PATIENCE, loop_ext4, until, watching

#: The memory that issue and documentation promise.
_MOST_BYTES = 40e6
_SCRAPES = 100
_SCRAPE_SECONDS = 10  # Prometheus's own default for scrape_timeout
_PASSWORD = "correct horse"
_OFF = "off"
_FINDINGS = re.compile(r'ebpfwatch_findings_total\{.*test="false"')

Record = Any  # pytest's record_property


@pytest.fixture(scope="module")
def hostile() -> Iterator[str]:
    """The user."""
    with attacks.user() as name:
        yield name


@pytest.fixture
def daemon(tmp_path: Path, ext4: Path) -> Iterator[DaemonProcess]:
    """With the example's settings; the journal has tests of its own (test_journald.py)."""
    with watching(tmp_path, journal=_OFF) as running:
        yield running


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A directory that he can reach; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def theirs(open_to_all: Path, hostile: str) -> Iterator[Path]:
    """A directory of his on a watched ext4."""
    with loop_ext4(open_to_all, 256 << 20) as mount:
        place = mount / "theirs"
        place.mkdir()
        subprocess.run(["chown", hostile, place], check=True)
        yield place


def ask_oracle(daemon: DaemonProcess, record: Record, metrics: bool = True) -> None:
    """Does it still see, and is what it says true?"""
    done = command("selftest", run_directory=daemon.run_directory)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"OK +report: (\d+) ms", done.stdout)
    assert found is not None and int(found.group(1)) < 1000, done.stdout
    unrest = ""
    try:
        assert balance(DaemonMaps(running_daemon(daemon.run_directory))).unexplained == 0
    except TimeoutError:  # others work on this machine, too
        unrest = "; the counters were never at rest"
    size = attacks.resident(daemon.process.pid)
    assert size < _MOST_BYTES
    if metrics:
        shown = daemon.settled_metrics()
        assert not [name for name, value in shown.items() if _FINDINGS.match(name) and value]
    log = daemon.log.read_text()
    assert "SILENT" not in log and "Traceback" not in log
    record("figures", f"found after {found.group(1)} ms, {size / 1e6:.1f} MB{unrest}")


def where(daemon: DaemonProcess) -> tuple[str, int]:
    """Host and port of /metrics."""
    host, _, port = daemon.url.rpartition("/")[2].rpartition(":")
    return host, int(port)


def scrape(daemon: DaemonProcess) -> tuple[float, int]:
    """One by the configured scraper: seconds, and the code; 0 where there was none in time."""
    began = time.monotonic()
    word = base64.b64encode(f"prometheus:{_PASSWORD}".encode()).decode()
    connection = http.client.HTTPConnection(*where(daemon), timeout=_SCRAPE_SECONDS)
    code = 0
    try:
        connection.request("GET", "/metrics", headers={"Authorization": f"Basic {word}"})
        answer = connection.getresponse()
        if b"ebpfwatch_ready 1.0" in answer.read():
            code = answer.status
    except (OSError, http.client.HTTPException):
        pass
    finally:
        connection.close()
    seconds = time.monotonic() - began
    return seconds, code if seconds <= _SCRAPE_SECONDS else 0


@pytest.fixture
def guarded(tmp_path: Path, ext4: Path) -> Iterator[DaemonProcess]:
    """A daemon that asks for a password."""
    bcrypt = pytest.importorskip("bcrypt")
    hashed = bcrypt.hashpw(_PASSWORD.encode(), bcrypt.gensalt(10)).decode()
    (tmp_path / "web.yml").write_text(f"basic_auth_users:\n  prometheus: {hashed}\n")
    with watching(tmp_path, web_config=str(tmp_path / "web.yml"), journal=_OFF) as running:
        yield running


def test_500_slow_clients_and_a_password_guesser(
    guarded: DaemonProcess, hostile: str, record_property: Record
) -> None:
    """The scraper that has logged in before is served in 99 of 100 scrapes, in its time."""
    assert scrape(guarded)[1] == 200
    host, port = where(guarded)
    with contextlib.ExitStack() as stack:
        stack.enter_context(attacks.run_as(hostile, attacks.CROWD, host, port, 500))
        stack.enter_context(attacks.run_as(hostile, attacks.GUESSER, host, port))
        times, most = [], 0
        for _ in range(_SCRAPES):
            seconds, code = scrape(guarded)
            times += [seconds] if code == 200 else []
            most = max(most, attacks.resident(guarded.process.pid))
            time.sleep(0.05)
        assert len(times) >= 0.99 * _SCRAPES
        assert most < _MOST_BYTES
        ask_oracle(guarded, lambda *_: None, metrics=False)
        record_property(
            "figures",
            f"{len(times)} of {_SCRAPES} scrapes served, median {statistics.median(times):.3f} s,"
            f" longest {max(times):.3f} s; at most {most / 1e6:.1f} MB",
        )


def test_idle_clients_and_endless_scrapes(
    daemon: DaemonProcess, hostile: str, record_property: Record
) -> None:
    """Without a password: 500 slow clients, and four that scrape without a pause."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(attacks.run_as(hostile, attacks.CROWD, *where(daemon), 500))
        for _ in range(4):
            stack.enter_context(attacks.run_as(hostile, attacks.SCRAPER, *where(daemon)))
        served = [scrape(daemon) for _ in range(30)]
        assert [code for _, code in served] == [200] * 30
        ask_oracle(daemon, record_property)


def test_no_descriptor_is_left(daemon: DaemonProcess, record_property: Record) -> None:
    """A limit just above what is open, and more connections than that: no spinning, and whoever
    asks is answered.
    """
    highest = max(map(int, os.listdir(f"/proc/{daemon.process.pid}/fd")))
    limits = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (highest + 6, limits[1]))
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(socket.create_connection(where(daemon), timeout=5))
        before = cpu_seconds(daemon)
        time.sleep(3)
        assert cpu_seconds(daemon) - before < 0.5
        assert [scrape(daemon)[1] for _ in range(5)] == [200] * 5
    resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, limits)
    ask_oracle(daemon, record_property)


def test_not_one_descriptor_is_left(daemon: DaemonProcess, record_property: Record) -> None:
    """Nothing more can be opened, for a finding neither: what is not kept is counted, nothing
    spins, and once there is room all is as before.
    """
    limits = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
    full = lowest_free_descriptor(daemon.process.pid)
    resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (full, limits[1]))
    try:
        before = cpu_seconds(daemon)
        done = command("selftest", "--timeout", "3", run_directory=daemon.run_directory)
        assert done.returncode != 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
        time.sleep(3)
        assert cpu_seconds(daemon) - before < 1.5
        assert daemon.process.poll() is None, daemon.log.read_text()
    finally:
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, limits)
    ask_oracle(daemon, record_property)


def lowest_free_descriptor(pid: int) -> int:
    """As a limit, it leaves nothing to open: a new descriptor takes the lowest free number, so the
    highest in use would leave each gap below it. The least of a second, because what is open for a
    moment leaves a gap when it is closed.
    """
    found = []
    for _ in range(50):
        used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
        found.append(next(number for number in itertools.count() if number not in used))
        time.sleep(0.02)
    return min(found)


def test_he_fills_the_disk_of_the_findings(
    tmp_path: Path, open_to_all: Path, ext4: Path, hostile: str, record_property: Record
) -> None:
    """No block is left, and none reserved for root: the self-test says why there is no report, the
    other sinks have it, `status` warns; once he has deleted his file all is as before.
    """
    with loop_ext4(open_to_all, 32 << 20, ("-m", "0")) as mount:
        place = mount / "theirs"
        place.mkdir()
        subprocess.run(["chown", hostile, place], check=True)
        state = str(mount / "state")
        with watching(tmp_path, state_directory=state, journal=_OFF) as daemon:
            with attacks.run_as(hostile, attacks.FILLER, place):
                words = ("selftest", "--timeout", "20")
                done = command(*words, run_directory=daemon.run_directory)
                assert done.returncode == 1, done.stdout + done.stderr
                assert "OK   metrics" in done.stdout, done.stdout
                full = re.compile("no room|No space left")
                failed = re.search("FAIL report: .*", done.stdout)
                assert failed is not None and full.search(failed[0]), done.stdout
                until(lambda: full.search(status(daemon)), lambda: status(daemon))
            (place / "full").unlink()
            until(lambda: kept_again(daemon), daemon.log.read_text)
            ask_oracle(daemon, record_property)


def status(daemon: DaemonProcess) -> str:
    """What the command of that name says."""
    return command("status", run_directory=daemon.run_directory).stdout


def kept_again(daemon: DaemonProcess) -> bool:
    """Whether a self-test reaches every sink."""
    return command("selftest", run_directory=daemon.run_directory).returncode == 0


@pytest.mark.parametrize("ends", [False, True], ids=["goes on", "is given up"])
def test_its_loader_is_stopped(
    tmp_path: Path, ext4: Path, record_property: Record, ends: bool
) -> None:
    """SIGSTOP while it compiles.  SIGTERM is heard meanwhile, and nothing stays behind; once it
    goes on, so does the start.
    """
    config = write_config(tmp_path, journal=_OFF)
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ebpfwatch", "run", "--config", config],
            cwd=ROOT,
            env={**os.environ, "RUNTIME_DIRECTORY": str(tmp_path / "run")},
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    said = (tmp_path / "log").read_text
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        child = int(until(lambda: children.read_text().split(), said)[0])
        # Not before it is the loader: vfork(2) would hold up its parent with it.
        until(lambda: b"loader.child" in Path(f"/proc/{child}/cmdline").read_bytes(), said)
        os.kill(child, signal.SIGSTOP)
        time.sleep(3)
        assert process.poll() is None and "ready after" not in said()
        if ends:
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0, said()
            assert "stopped before the probes were loaded" in said()
            until(lambda: not Path(f"/proc/{child}").exists())
            return
        os.kill(child, signal.SIGCONT)
        until(lambda: "ready after" in said() or process.poll() is not None, said)
        assert process.poll() is None, said()
        found = re.search(r"metrics: (\S+)/metrics", said())
        assert found is not None, said()
        at = {name: tmp_path / name for name in ("state", "log", "out")}
        daemon = DaemonProcess(process, tmp_path / "run", config=config, url=found[1], **at)
        ask_oracle(daemon, record_property)
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_a_helper_that_stops_itself(tmp_path: Path, ext4: Path, record_property: Record) -> None:
    """`actions.command` stops for ever, and so does what it started: both are killed in their
    time, it is said, and the watch goes on meanwhile.
    """
    with tempfile.TemporaryDirectory(dir="/run") as directory:
        program = Path(directory) / "stops"
        program.write_text("#!/bin/sh\nsetsid sleep 987654 &\nkill -STOP $!\nkill -STOP $$\n")
        program.chmod(0o755)
        with watching(tmp_path, journal=_OFF, command=str(program), command_seconds="4") as daemon:
            ask_oracle(daemon, lambda *_: None)
            began = time.monotonic()
            daemon.wait_log("was killed after 4 s")
            assert time.monotonic() - began < PATIENCE
            left = subprocess.run(["pgrep", "-f", "sleep 987654"], capture_output=True, text=True)
            assert left.stdout == ""
            ask_oracle(daemon, record_property)


def cpu_seconds(daemon: DaemonProcess) -> float:
    """Spent until now."""
    fields = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_races_in_a_directory_of_his(
    theirs: Path, daemon: DaemonProcess, hostile: str, record_property: Record
) -> None:
    """Four tasks make, link, rename and unlink the same names for ten seconds."""
    with attacks.run_as(hostile, attacks.RACES, theirs, 10) as process:
        process.wait(60)
    time.sleep(2)
    ask_oracle(daemon, record_property)


def test_a_storm_of_unlinks(
    theirs: Path, daemon: DaemonProcess, hostile: str, storm: Path, record_property: Record
) -> None:
    """100,000 files made and deleted, by him."""
    own = theirs / "storm"
    own.write_bytes(storm.read_bytes())
    own.chmod(0o755)
    subprocess.run(
        [own, theirs, "100000"], user=hostile, group=hostile, extra_groups=[], check=True, cwd="/"
    )
    time.sleep(1)
    ask_oracle(daemon, record_property)


def test_he_owns_the_root_of_a_mount(
    tmp_path: Path, open_to_all: Path, hostile: str, record_property: Record
) -> None:
    """And renames whatever appears there: the proofs hold, and nothing of root's stays behind."""
    with loop_ext4(open_to_all, 64 << 20) as mount:
        (mount / "lost+found").rmdir()
        subprocess.run(["chown", hostile, mount], check=True)
        with attacks.run_as(hostile, attacks.THIEF, mount):
            with watching(tmp_path, interval_seconds="1", journal=_OFF) as daemon:
                wait_proofs(daemon, mount, 5)
                ask_oracle(daemon, record_property)
                log = daemon.log.read_text()
        assert list(mount.iterdir()) == [] and "wrong order" not in log


def wait_proofs(daemon: DaemonProcess, mount: Path, count: int) -> None:
    """So many whole lives of canaries on that mount, one after the other."""
    seen: set[float] = set()
    deadline = time.monotonic() + 60
    while len(seen - {0.0}) < count:
        assert time.monotonic() < deadline, (seen, daemon.log.read_text())
        shown = daemon.settled_metrics()
        seen.update(v for n, v in shown.items() if "canary" in n and str(mount) in n)


_UFFD, _UFFDIO_API, _UFFDIO_REGISTER = 323, 0xC018AA3F, 0xC020AA00


@contextlib.contextmanager
def lock_of(directory: Path) -> Iterator[None]:
    """The lock of a directory held for reading: getdents(2) into memory whose page fault nobody
    answers, as a user's own FUSE server would not.
    """
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers of the system calls here are those of x86-64")
    libc = ctypes.CDLL(None, use_errno=True)
    fault = libc.syscall(_UFFD, os.O_CLOEXEC)
    if fault < 0:
        pytest.skip("this kernel has no userfaultfd")
    libc.mmap.restype = ctypes.c_void_p
    page = libc.mmap(None, ctypes.c_size_t(4096), 3, 0x22, -1, ctypes.c_long(0))
    api = (ctypes.c_uint64 * 3)(0xAA, 0, 0)
    assert libc.ioctl(fault, ctypes.c_ulong(_UFFDIO_API), api) == 0
    asked = (ctypes.c_uint64 * 4)(page, 4096, 1, 0)
    assert libc.ioctl(fault, ctypes.c_ulong(_UFFDIO_REGISTER), asked) == 0
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    reader = threading.Thread(
        target=lambda: libc.syscall(217, fd, ctypes.c_void_p(page), 4096), daemon=True
    )
    reader.start()
    time.sleep(0.2)
    assert reader.is_alive()
    try:
        yield
    finally:
        os.close(fault)  # the fault is answered with an empty page
        reader.join(10)
        os.close(fd)


def test_he_holds_the_lock_of_the_root_of_a_mount(tmp_path: Path, record_property: Record) -> None:
    """Nobody can make a file there; the canary goes on."""
    with loop_ext4(tmp_path, 64 << 20) as mount:
        with watching(tmp_path, interval_seconds="1", journal=_OFF) as daemon:
            wait_proofs(daemon, mount, 2)
            with lock_of(mount):
                maker = subprocess.Popen(["touch", mount / "blocked"])
                with pytest.raises(subprocess.TimeoutExpired):
                    maker.wait(1)
                wait_proofs(daemon, mount, 5)
                assert "no canary on" not in daemon.log.read_text()
            assert maker.wait(10) == 0
            ask_oracle(daemon, record_property)


def test_nobody_reads_its_log(tmp_path: Path, ext4: Path, record_property: Record) -> None:
    """A pipe that is full from the start, and a flood of lines: findings are found all the same."""
    reader, writer = os.pipe()
    config = write_config(tmp_path, journal=_OFF)
    process = subprocess.Popen(
        [sys.executable, "-m", "ebpfwatch", "run", "--config", config],
        cwd=ROOT,
        env={**os.environ, "RUNTIME_DIRECTORY": str(tmp_path / "run")},
        stdout=subprocess.DEVNULL,
        stderr=writer,
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(Exception):
                if running_daemon(tmp_path / "run").programs:
                    break
            time.sleep(0.1)
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 4096)
        os.set_blocking(writer, True)
        for _ in range(20):  # each is a line of its own
            process.send_signal(signal.SIGHUP)
            time.sleep(0.02)
        done = command("selftest", run_directory=tmp_path / "run")
        assert done.returncode == 0, done.stdout + done.stderr
        record_property("figures", re.findall(r"OK +report: \d+ ms", done.stdout)[0])
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reader)
        os.close(writer)


def test_a_fifo_in_place_of_the_configuration(
    daemon: DaemonProcess, record_property: Record
) -> None:
    """SIGHUP neither hangs on it nor believes it, and SIGTERM is heard."""
    daemon.config.unlink()
    os.mkfifo(daemon.config)
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_log("keeping the old configuration: cannot read")
    ask_oracle(daemon, record_property)


def test_he_speaks_raw_bytes(daemon: DaemonProcess, record_property: Record) -> None:
    """Half a request, two at once, a reset in the middle: the next one is answered."""
    for data in (b"GET", b"\x16\x03\x01" * 99, b"GET / HTTP/1.1\r\n" * 999, b"\0" * 20_000):
        for reset in (False, True):
            with contextlib.suppress(OSError), socket.create_connection(where(daemon), 5) as client:
                client.sendall(data)
                if reset:
                    linger = (1).to_bytes(4, "little") + bytes(4)
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    assert scrape(daemon)[1] == 200
    ask_oracle(daemon, record_property)


@pytest.mark.parametrize("name", ["BUG: KASAN: x", "BUG a (b): c", "WARNING: [", "JBD2: error"])
def test_his_task_has_the_name_of_a_kernel_message(
    daemon: DaemonProcess, hostile: str, record_property: Record, name: str
) -> None:
    """It crashes, and the kernel's line about it begins with that name: no message of damage."""
    before = kernel_messages(daemon)
    attacks.crash_as(hostile, name)
    time.sleep(1)
    log = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    if f"{name}[" not in log:
        pytest.skip("this kernel does not tell of tasks that crash (debug.exception-trace)")
    assert kernel_messages(daemon) == before
    ask_oracle(daemon, record_property)


def kernel_messages(daemon: DaemonProcess) -> dict[str, float]:
    """What the kernel's log was counted to hold, by kind; and whether there is a warning of it."""
    return {
        name: value
        for name, value in daemon.settled_metrics().items()
        if name.startswith(("ebpfwatch_kernel_log_events", "ebpfwatch_early_warning"))
    }


def test_he_floods_the_log_of_the_kernel(
    daemon: DaemonProcess, hostile: str, record_property: Record
) -> None:
    """From a user namespace, without a pause: no hook is taken off for it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(attacks.run_as(hostile, attacks.FLOOD))
        except AssertionError:
            pytest.skip("he may make no user namespace here")
        time.sleep(20)
        shown = daemon.settled_metrics()
        assert shown["ebpfwatch_governor_step"] == 0
        ask_oracle(daemon, lambda *_: None)
    percent = 100 * shown["ebpfwatch_watcher_cpu_ratio"]
    record_property("figures", f"the watcher used {percent:.1f} % of a CPU, no hook was taken off")
    log = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    assert log.count("uuuu") > 100  # it was a flood
