"""The watcher on the running kernel's own log: real messages, forged ones, an overrun."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpfwatch.kernellog.watcher import Batch, Watcher
from ebpfwatch.paths import Paths
from tests.live.conftest import DaemonProcess
from tests.live.harness import PATIENCE

KMSG = Path("/dev/kmsg")
MEMORY = Path("/sys/fs/cgroup/memory")
RATE = Path("/proc/sys/kernel/printk_devkmsg")

#: Written by hand from user space.
FORGED = "kernel BUG at mm/slub.c:294! forged by tests/live/test_kernel_log.py"


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    """At the end of the log."""
    found = Watcher(KMSG)
    assert found.fd >= 0, found.missing
    yield found
    found.close()


def follow(watcher: Watcher, kind: str, seconds: float = PATIENCE) -> Batch:
    """What came until an event of that kind did, or time was up."""
    whole, deadline = Batch(), time.monotonic() + seconds
    while time.monotonic() < deadline:
        batch = watcher.read()
        whole.events += batch.events
        whole.reports += batch.reports
        if any(event.known.kind == kind for event in batch.events):
            break
        time.sleep(0.02)
    return whole


def trigger_fs_error(mount: Path, text: str) -> None:
    """The kernel's own switch: an EXT4-fs error that damages nothing."""
    source = subprocess.run(
        ["findmnt", "-n", "-o", "SOURCE", mount], capture_output=True, text=True, check=True
    )
    switch = Path("/sys/fs/ext4") / Path(source.stdout.strip()).name / "trigger_fs_error"
    if not switch.exists():
        pytest.skip(f"this kernel has no {switch} (Linux 4.4 and later have)")
    switch.write_text(text)


def test_a_real_ext4_error_is_an_event(watcher: Watcher, ext4: Path) -> None:
    """Made by the filesystem itself, on a loop device of ours."""
    trigger_fs_error(ext4, "seen-by-the-watcher")
    batch = follow(watcher, "ext4_error")
    (event,) = [e for e in batch.events if "seen-by-the-watcher" in e.text]
    assert event.known.kind == "ext4_error"
    assert abs(time.monotonic_ns() - event.ns) < 10e9


def test_a_real_oom_kill_is_an_event(watcher: Watcher) -> None:
    """In a memory cgroup of 16 MiB; its victim is a child of this test."""
    group = MEMORY / "ebpfwatch-test"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(16 << 20))
    except OSError as error:
        pytest.skip(f"no memory cgroup of the first version can be made at {group}: {error}")
    try:
        eat = f"echo $$ > {group}/cgroup.procs; exec python3 -c 'x = bytearray(1 << 28)'"
        assert subprocess.run(["sh", "-c", eat]).returncode == -9
        batch = follow(watcher, "oom")
    finally:
        group.rmdir()
    assert [e.known.kind for e in batch.events][0] == "oom"


def test_user_space_cannot_forge_a_message(watcher: Watcher) -> None:
    """What is written into /dev/kmsg is not the kernel's, and that includes our own findings."""
    with open(KMSG, "w") as log:
        log.write(f"<0>{FORGED}\n")
    assert not follow(watcher, "slab_corruption", 1).events
    with open(KMSG, "rb", buffering=0) as log:
        os.set_blocking(log.fileno(), False)
        seen = b"".join(iter(lambda: log.read(8192) or b"", b""))
    assert FORGED.encode() in seen, "but it is in the log"


def test_an_overrun_is_counted(watcher: Watcher) -> None:
    """More than the whole log, written before it is read: the rest is told by numbers."""
    old = RATE.read_text().split()[0]
    try:
        RATE.write_text("on\n")
    except OSError as error:
        pytest.skip(f"{RATE} cannot be set: {error.strerror}")
    size = 0
    try:
        with open(KMSG, "wb", buffering=0) as log:
            for number in range(3000):
                size += log.write(b"<7>ebpfwatch: filling the log: %d " % number + b"x" * 800)
    finally:
        RATE.write_text(f"{old}\n")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and select.select([watcher.fd], [], [], 0)[0]:
        watcher.read()
    assert 100 < watcher.lost < 3000 * 2, f"{size} bytes were written"


def test_a_flood_costs_a_bounded_share(watcher: Watcher) -> None:
    """As many records as can be written for five seconds: the reader takes its budget, and what it
    did not read is counted.
    """
    old = RATE.read_text().split()[0]
    try:
        RATE.write_text("on\n")
    except OSError as error:
        pytest.skip(f"{RATE} cannot be set: {error.strerror}")
    stop = (
        "import sys, time\nend = time.monotonic() + 7\nlog = open('/dev/kmsg', 'wb', buffering=0)\n"
    )
    stop += "while time.monotonic() < end:\n    log.write(b'<7>x: Unknown parameter uuuu')\n"
    try:
        with subprocess.Popen([sys.executable, "-c", stop]) as flood:
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline:  # the burst that is read at once
                watcher.read()
            began, lost = time.process_time(), watcher.lost
            deadline = time.monotonic() + 4
            while time.monotonic() < deadline:
                if watcher.wanted:
                    select.select([watcher.fd], [], [], 0.1)
                else:
                    time.sleep(0.1)
                watcher.read()
            spent = time.process_time() - began
            flood.wait()
    finally:
        RATE.write_text(f"{old}\n")
    assert spent < 0.2, "5 % of a CPU"
    assert watcher.lost > lost


def test_the_daemon_counts_it_and_notes_it(daemon: DaemonProcess, ext4: Path) -> None:
    """From the kernel's log to /metrics; a forged message does not get there."""
    name = 'ebpfwatch_kernel_log_events_total{kind="ext4_error"}'
    before = daemon.metrics()
    assert before["ebpfwatch_early_warning"] == 0
    with open(KMSG, "w") as log:
        log.write(f"<0>{FORGED}\n")
    trigger_fs_error(ext4, "seen-by-the-daemon")
    after = daemon.settled_metrics()
    assert after[name] == before[name] + 1
    forged = 'ebpfwatch_kernel_log_events_total{kind="slab_corruption"}'
    assert after[forged] == before[forged]
    assert re.search(r"ebpfwatch_lost_events_total\{kind=\"kernel_log\"\}", "\n".join(after))


def test_without_permission_it_says_why(tmp_path: Path) -> None:
    """An unprivileged reader where dmesg is restricted: a reason, no traceback."""
    if Path("/proc/sys/kernel/dmesg_restrict").read_text().strip() != "1":
        pytest.skip("kernel.dmesg_restrict is 0: anybody may read the log")
    script = (
        "import os\n"
        "from pathlib import Path\n"
        "from ebpfwatch.kernellog.watcher import Watcher\n"
        "os.setgid(65534); os.setuid(65534)\n"  # who may not read the checkout, perhaps
        "print(Watcher(Path('/dev/kmsg')).missing)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert re.match(r"/dev/kmsg: (Operation not permitted|Permission denied)", done.stdout)
    assert Paths().dev == Path("/dev")
