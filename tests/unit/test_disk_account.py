"""The disk's account: what the kernel says of a device, on made trees, and what is made of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ebpfwatch.advice import Advice, Level, storage
from ebpfwatch.daemon.this_boot import ThisBoot
from ebpfwatch.host import ParseError
from ebpfwatch.host.account import account, errors_of
from ebpfwatch.host.blockdev import Stack
from ebpfwatch.host.disks import Disk
from ebpfwatch.host.diskstat import DiskStat, DiskStatReader
from ebpfwatch.host.ext4 import Ext4Errors
from ebpfwatch.host.mounts import parse
from ebpfwatch.host.state import HostState
from ebpfwatch.kernellog.known import DISK_ERROR, disk_of, recognise
from ebpfwatch.paths import Paths

STACK = Stack(("vdd",), ("virtio_blk",))
DISK = Disk("/mnt", "vdd", False, "ordered", ("rw",), STACK, "254:48")
HEALTHY = DiskStat("254:48", True, 1000, 2.0, 0, 0.002)
MOUNTED = "102 27 254:48 / /mnt {own} shared:8 - ext4 /dev/vdd {shared}\n"


class Machine:
    """One block device, whose stat file is written by hand."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(proc=root / "proc", sys=root / "sys")
        self.device = self.paths.sys / "dev/block/254:48"
        self.device.mkdir(parents=True)
        self.now = 100.0
        self.reader = DiskStatReader(lambda: self.now)

    def look(self, *fields: int, seconds: float = 5.0) -> DiskStat:
        """What is read after some time, with these fields in the file."""
        self.now += seconds
        (self.device / "stat").write_text(" ".join(f"{field:8}" for field in fields) + "\n")
        (found,) = self.reader.read(self.paths, [DISK])
        return found


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """It has done nothing yet."""
    return Machine(tmp_path)


def test_latency_is_that_of_the_requests_since_the_last_look(machine: Machine) -> None:
    """Reads and writes; the sum since the boot stays apart; no request is no latency."""
    first = machine.look(100, 0, 800, 1000, 50, 0, 400, 500, 0, 900, 1500)
    assert (first.requests, first.request_seconds, first.latency_seconds) == (150, 1.5, None)
    second = machine.look(104, 0, 800, 1600, 56, 0, 400, 900, 0, 900, 2500)
    assert second.latency_seconds == pytest.approx(0.1)
    assert machine.look(104, 0, 800, 1600, 56, 0, 400, 900, 0, 9, 9).latency_seconds is None


def test_discards_and_flushes_are_requests_too(machine: Machine) -> None:
    """Seventeen fields since Linux 5.5."""
    ordinary = (10, 0, 0, 100, 10, 0, 0, 100, 0, 0, 0)
    found = machine.look(*ordinary, 5, 0, 0, 1000, 2, 800)
    assert (found.requests, found.request_seconds) == (27, 2.0)


def test_a_disk_that_does_not_answer(machine: Machine) -> None:
    """Requests wait and none is completed: the time grows until one is, or none waits."""
    machine.look(10, 0, 0, 10, 0, 0, 0, 0, 2, 0, 0)
    assert machine.look(10, 0, 0, 10, 0, 0, 0, 0, 3, 0, 0).stalled_seconds == 5.0
    assert machine.look(10, 0, 0, 10, 0, 0, 0, 0, 3, 0, 0, seconds=30).stalled_seconds == 35.0
    assert machine.look(11, 0, 0, 40_010, 0, 0, 0, 0, 2, 0, 0).stalled_seconds == 0.0
    assert machine.look(11, 0, 0, 40_010, 0, 0, 0, 0, 2, 0, 0).stalled_seconds == 5.0
    assert machine.look(11, 0, 0, 40_010, 0, 0, 0, 0, 0, 0, 0).stalled_seconds == 0.0


def test_a_device_that_went(machine: Machine) -> None:
    """Mounted still, and not in /sys any more."""
    assert machine.look(1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0).present
    (machine.device / "stat").unlink()
    machine.device.rmdir()
    (found,) = machine.reader.read(machine.paths, [DISK])
    assert found == DiskStat("254:48", False)


def test_a_stat_file_that_is_none(machine: Machine) -> None:
    """A parse error that names the file."""
    (machine.device / "stat").write_text("1 2 3\n")
    with pytest.raises(ParseError, match="254:48/stat"):
        machine.reader.read(machine.paths, [DISK])


@pytest.mark.parametrize(
    ("own", "shared", "read_only", "turned"),
    [
        ("rw,relatime", "rw", False, False),
        ("ro,relatime", "ro", True, False),
        ("ro,relatime", "rw", True, False),
        ("rw,relatime", "ro,errors=remount-ro", True, True),
        ("rw,relatime", "rw,errors=remount-ro", False, False),
        ("rw,relatime", "rw,emergency_ro", True, True),
        ("rw,relatime", "rw,shutdown", True, True),
    ],
)
def test_who_made_it_read_only(own: str, shared: str, read_only: bool, turned: bool) -> None:
    """A mount that somebody made read-only is no error."""
    (mount,) = parse(MOUNTED.format(own=own, shared=shared))
    assert (mount.read_only, mount.turned_read_only) == (read_only, turned)


def line(state: HostState, item: str) -> Advice:
    """The only line of that item."""
    (found,) = (one for one in storage.advise(state) if one.item == item)
    return found


@pytest.mark.parametrize(
    ("disk", "stat", "level", "says"),
    [
        (DISK, HEALTHY, Level.OK, "1000 requests of 2.0 ms"),
        (DISK, DiskStat("254:48", True), Level.OK, "0 requests of 0.0 ms"),
        (DISK, DiskStat("254:48", False), Level.FAIL, "254:48 is gone"),
        (
            dataclasses.replace(DISK, turned_read_only=True),
            HEALTHY,
            Level.FAIL,
            "ext4 has made itself read-only",
        ),
        (
            DISK,
            dataclasses.replace(HEALTHY, in_flight=3, stalled_seconds=40.0),
            Level.WARN,
            "3 requests in flight, none completed for 40 s",
        ),
    ],
)
def test_what_check_says(disk: Disk, stat: DiskStat, level: Level, says: str) -> None:
    """One line a filesystem."""
    found = line(HostState(disks=(disk,), disk_stats=(stat,)), "/mnt device")
    assert found.level is level and says in found.value


def test_check_says_what_kind_of_error_ext4_noted() -> None:
    """A failing disk is not a damaged structure."""
    noted = Ext4Errors("vdd", 3, 0, 1_700_000_000, "ext4_find_entry", 2, last_code=2)
    found = line(HostState(disks=(DISK,), ext4=(noted,)), "/mnt errors")
    assert found.value.endswith("in ext4_find_entry (I/O error)")


@pytest.mark.parametrize(
    ("change", "errors", "says"),
    [
        ({}, 0, "it answers; ext4 has noted no errors; no messages of its errors in the kernel"),
        ({}, 7, "7 messages of its errors"),
        ({"disk_stats": (DiskStat("254:48", False),)}, 0, "it is gone, and its filesystem"),
        (
            {"disk_stats": (dataclasses.replace(HEALTHY, stalled_seconds=12.0),)},
            0,
            "it has completed no request for 12 s",
        ),
        (
            {"disks": (dataclasses.replace(DISK, turned_read_only=True),)},
            0,
            "ext4 has made itself read-only after an error",
        ),
        (
            {"ext4": (Ext4Errors("vdd", 2, 0, last_code=5),)},
            0,
            "ext4 has noted 2 errors (the last: damaged structure)",
        ),
    ],
)
def test_the_line_in_a_finding(change: dict[str, object], errors: int, says: str) -> None:
    """What was known at the last look, by the device of the finding."""
    healthy = HostState(disks=(DISK,), disk_stats=(HEALTHY,), ext4=(Ext4Errors("vdd", 0, 0),))
    state = dataclasses.replace(healthy, **change)  # type: ignore[arg-type]
    told = account(state, "254:48", {"vdd": errors, "vda": 3})
    assert told.startswith("254:48 (vdd): ") and says in told
    assert account(state, "254:49", {"vdd": errors}) == ""


@pytest.mark.parametrize(
    ("message", "disk"),
    [
        ("I/O error, dev vdb, sector 8 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2", "vdb"),
        ("print_req_error: I/O error, dev sda, sector 12", "sda"),
        ("blk_update_request: critical medium error, dev nvme0n1, sector 1", "nvme0n1"),
        ("critical space allocation error, dev loop3, sector 1 op 0x1:(WRITE)", "loop3"),
        ("device offline error, dev sdb, sector 1 op 0x1:(WRITE)", "sdb"),
        ("Buffer I/O error on dev dm-0, logical block 3, lost async page write", "dm-0"),
        ("sd 0:0:0:0: [sda] tag#3 FAILED Result: hostbyte=DID_OK driverbyte=DRIVER_SENSE", "sda"),
        ("nvme nvme0: I/O 5 QID 2 timeout, aborting", ""),
        ("ata3: failed command: READ FPDMA QUEUED", ""),
    ],
)
def test_which_disk_a_message_is_about(message: str, disk: str) -> None:
    """As the kernels print them; each is known as a disk's error."""
    known = recognise(message)
    assert known is not None and known.kind == DISK_ERROR
    assert disk_of(message) == disk


def test_errors_of_every_layer_below() -> None:
    """The log names the disk, and the filesystem lies on its partition."""
    stack = Stack(("dm-0", "vdd1", "vdd"), ("virtio_blk",))
    disk = dataclasses.replace(DISK, device="dm-0", stack=stack)
    assert errors_of(disk, {"vdd": 2, "dm-0": 1, "vda": 50, "": 4}) == 3
    state = HostState(disks=(disk,), disk_stats=(HEALTHY,), disk_errors={"vdd": 2})
    found = line(state, "/mnt device")
    assert found.level is Level.WARN and found.value.startswith("2 messages of its errors")


def test_the_count_of_this_boot_outlives_a_restart(tmp_path: Path) -> None:
    """And does not grow without bound."""
    first = ThisBoot(tmp_path, "boot")
    first.disk_failed("vdd")
    first.disk_failed("vdd", 2)
    for number in range(1000):
        first.disk_failed(f"sd{number}")
    first.save()
    second = ThisBoot(tmp_path, "boot")
    second.look_back()
    assert second.disk_errors["vdd"] == 3 and len(second.disk_errors) <= 257
    assert sum(second.disk_errors.values()) == 1003
    assert second.state().disk_errors == second.disk_errors


def test_a_log_that_is_not_read_says_nothing() -> None:
    """No message seen is not "no error"."""
    state = HostState(disks=(DISK,), disk_stats=(HEALTHY,))
    assert account(state, "254:48", None) == "254:48 (vdd): it answers"
