"""The host's state on real trees, on hostile ones and on none at all."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from typing import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest

from ebpfwatch.host import (
    ParseError,
    blockdev,
    crash,
    disks,
    meminfo,
    pressure,
    slabinfo,
    swaps,
    taint,
    vfs,
    vm,
    vmstat,
    zoneinfo,
)
from ebpfwatch.host.sources import Sources
from ebpfwatch.host.state import SOURCES, HostReader, HostState
from ebpfwatch.paths import Paths
from ebpfwatch.sinks import metrics
from ebpfwatch.sinks.status import Status
from tests.unit.host import FIXTURES, TREES, fixture, tree

PARSERS: dict[str, Callable[[str], object]] = {
    "zoneinfo": lambda text: zoneinfo.parse(text, 4096),
    "meminfo": meminfo.parse,
    "swaps": swaps.parse,
    "pressure/memory": lambda text: pressure.parse(text, "memory"),
    "vmstat": vmstat.parse,
    "slabinfo": lambda text: slabinfo.parse(text, 4096),
    "sys/fs/dentry-state": lambda text: vfs.parse("1 0 2\n", "1 0\n", text),
}


@pytest.mark.parametrize("name", ("x86", "4.19", "6.12"))
def test_a_real_tree_is_read_whole(name: str) -> None:
    """No problem with any source, and figures that fit together."""
    state = fixture(name)
    assert state.problems == {}
    assert state.memory is not None and state.vm is not None and state.slabs is not None
    assert state.memory.free < state.memory.total
    assert sum(zone.free for zone in state.zones) <= state.memory.total
    assert set(state.reclaim) == set(vmstat.RECLAIM)
    assert {cache.name for cache in state.slabs.caches} == set(slabinfo.CACHES)
    for cache in state.slabs.caches:
        assert cache.active <= cache.total <= state.slabs.objects
        assert cache.bytes >= cache.total * cache.object_bytes
    assert state.disks and all(disk.stack.drivers == ("virtio_blk",) for disk in state.disks)
    assert not any(disk.stack.passed for disk in state.disks)
    assert json.loads(json.dumps(state.to_json()))["zones"][0]["level"] == 3


def test_what_differs_between_the_kernels() -> None:
    """4.19 has no PSI and no count of negative dentries; 6.12 has KFENCE, switched off."""
    old, new, host = fixture("4.19"), fixture("6.12"), fixture("x86")
    assert old.pressure == () and [p.resource for p in new.pressure] == ["cpu", "io", "memory"]
    assert old.vfs and old.vfs.dentries_negative is None
    assert new.vfs and new.vfs.dentries_negative == 613
    assert old.crash and old.crash.kfence_ms is None and old.crash.slub_debug == ""
    assert new.crash and new.crash.kfence_ms == 0 and new.crash.panic == -1
    assert host.crash and host.crash.kdump_loaded is None and host.crash.pstore == ""
    assert old.swaps == (swaps.Swap("/mnt/vdb/swap", "file", 67104768, 0, -2),)
    journals = {disk.mount: disk.journal for disk in old.disks}
    assert journals == {
        "/": "ordered",
        "/payload": "ordered",
        "/results": "ordered",
        "/mnt/vdb": "ordered",
        "/mnt/loop": "journal",
    }
    loop = next(disk for disk in old.disks if disk.mount == "/mnt/loop")
    assert loop.stack.layers == ("loop0 (/mnt/vdb/disk)", "vdd")
    assert [disk.journal for disk in host.disks] == ["none"]


def test_the_numbers_of_the_case() -> None:
    """Free just above high in both zones; 373 % committed; seven modules; what it does not tell
    is unknown, not 0."""
    state = fixture("case")
    assert sum(zone.free for zone in state.zones) == 28799 * 4096
    assert [zone.level for zone in state.zones] == [3, 3]
    assert state.memory and state.memory.commit_ratio
    assert round(state.memory.commit_ratio * 100) == 373
    assert state.vm and (state.vm.min_free_kbytes, state.vm.dirty_ratio) == (67584, None)
    assert state.taint and len(state.taint.out_of_tree) == 7 and state.taint.flags == "O"
    assert state.crash and (state.crash.panic, state.crash.panic_on_oops) == (0, 1)
    assert state.crash.kdump_loaded and state.crash.slub_debug is None
    assert [disk.stack.layers for disk in state.disks] == [("vda2", "vda"), ("vdb",)]
    assert set(state.problems) == {"vmstat", "slabinfo", "vfs"}


@pytest.mark.parametrize(
    ("free", "level"), [(9, 0), (10, 1), (19, 1), (20, 2), (29, 2), (30, 3), (99, 3)]
)
def test_where_free_stands(free: int, level: int) -> None:
    """At a watermark is not below it, as in the kernel's own comparison."""
    assert zoneinfo.Zone(0, "Normal", free, 10, 20, 30, 100).level == level


def test_allocstall_is_added_up_over_the_zones() -> None:
    """And pgscan_direct_throttle is another counter."""
    found = vmstat.reclaim(
        {"allocstall_dma": 1, "allocstall_normal": 2, "pgscan_direct_throttle": 9}
    )
    assert found == {"allocstall": 3}


@pytest.mark.parametrize(
    ("flags", "letters"), [(0, ""), (1, "P"), (4096 | 512, "WO"), (1 << 7, "D"), (1 << 40, "?")]
)
def test_taint_letters(flags: int, letters: str) -> None:
    """Those of the kernel's documentation."""
    assert taint.letters(flags) == letters


# -- each source fails for itself


def copied(name: str, directory: Path) -> Paths:
    """A tree that may be damaged."""
    for kind in ("proc", "sys"):
        shutil.copytree(FIXTURES / f"{kind}-{name}", directory / kind, symlinks=True)
    return Paths(proc=directory / "proc", sys=directory / "sys")


DAMAGE = {
    "zoneinfo": "zoneinfo",
    "meminfo": "meminfo",
    "vm": "sys/vm/min_free_kbytes",
    "swaps": "swaps",
    "pressure": "pressure/memory",
    "vmstat": "vmstat",
    "slabinfo": "slabinfo",
    "vfs": "sys/fs/inode-nr",
    "taint": "sys/kernel/tainted",
    "disks": "self/mountinfo",
    "disk_stats": "../sys/dev/block/254:0/stat",
    "crash": "sys/kernel/panic",
    "ext4": "../sys/fs/ext4/vda/errors_count",
}


@pytest.mark.parametrize("source", SOURCES)
def test_one_bad_source_is_no_gap_in_the_rest(source: str, tmp_path: Path) -> None:
    """One counter, one line however often it is read, and all the others as before."""
    paths = copied("6.12", tmp_path)
    (paths.proc / DAMAGE[source]).write_text(
        "Node 0, zone x\n pages free \udcff x\n", "utf-8", "surrogateescape"
    )
    said: list[str] = []
    sources = Sources(lambda line, level: said.append(line))
    reader = HostReader(paths, sources)
    state = reader.state()
    assert list(state.problems) == [source]
    reader._read_at = -float("inf")
    reader.state()
    assert sources.errors == {source: 2}
    assert len(said) == 1 and source in said[0]
    whole, part = fixture("6.12").to_json(), state.to_json()
    names = {"meminfo": "memory", "slabinfo": "slabs", "vmstat": "reclaim", "zoneinfo": "zones"}
    for key, value in whole.items():
        if source == "disks" and key == "disk_stats":
            continue  # they are asked for by the disks
        if key not in (names.get(source, source), "rates"):
            assert part[key] == value, key


def test_nothing_at_all(tmp_path: Path) -> None:
    """A machine without /proc and /sys: problems in words, NaN in the metrics, no exception."""
    reader = HostReader(Paths(proc=tmp_path, sys=tmp_path), Sources(lambda line, level: None))
    state = reader.state()
    assert set(state.problems) == set(SOURCES) - {
        *("swaps", "pressure", "vm", "ext4", "crash", "disk_stats")
    }
    scrape = generate_latest(
        metrics.registry(lambda: Status(started=0, host=state), host="full")
    ).decode()
    assert "ebpfwatch_memory_free_bytes NaN" in scrape
    assert 'ebpfwatch_crash_ready{item="kdump"} NaN' in scrape
    assert json.dumps(HostState().to_json()) == "{}"


def test_the_state_is_read_once_a_second() -> None:
    """However many ask."""
    reader = HostReader(tree("x86"), Sources())
    assert reader.state() is reader.state()


def test_rates_are_of_the_time_between(tmp_path: Path) -> None:
    """Nothing at the first reading, then a second's share."""
    paths = copied("6.12", tmp_path)
    reader = HostReader(paths, Sources())
    assert reader.state().rates == {}
    text = (paths.proc / "vmstat").read_text()
    (paths.proc / "vmstat").write_text(text.replace("slabs_scanned 0", "slabs_scanned 500"))
    reader._read_at -= 10
    rates = reader.state().rates
    assert 40 < rates["slabs_scanned"] <= 50 and rates["oom_kill"] == 0


def test_the_lists_of_all_slabs_are_walked_seldom(tmp_path: Path) -> None:
    """A change is seen after the time is over; a failure at once, and again."""
    paths = copied("6.12", tmp_path)
    reader = slabinfo.SlabReader(seconds=0.2)
    first = reader.read(paths)
    (paths.proc / "slabinfo").write_text("garbage")
    assert reader.read(paths) is first
    time.sleep(0.25)
    for _ in range(2):
        with pytest.raises(ParseError):
            reader.read(paths)


# -- any text


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=200)
@given(data=st.data())
def test_any_text_is_a_value_or_a_parse_error(name: str, data: st.DataObject) -> None:
    """Random text; a real file cut anywhere; a real file with bytes thrown in."""
    real = (FIXTURES / "proc-6.12" / name).read_text()
    position = data.draw(st.integers(0, len(real)))
    text = data.draw(
        st.one_of(
            st.text(max_size=300),
            st.just(real[:position]),
            st.text(max_size=20).map(lambda noise: real[:position] + noise + real[position:]),
        )
    )
    try:
        PARSERS[name](text)
    except ParseError as error:
        assert str(error).startswith("/proc/")


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize("kernel", ("4.19", "6.12", "x86"))
def test_a_text_that_is_cut_gives_no_half_number(name: str, kernel: str) -> None:
    """Cut within a line, also within its last number: an error that names the file."""
    file = FIXTURES / f"proc-{kernel}" / name
    if not file.exists():
        pytest.skip(f"{kernel} has no {name}")
    text = file.read_text()
    PARSERS[name](text)
    for end in range(0, len(text), 1 + len(text) // 500):
        if not text[:end].endswith("\n"):
            with pytest.raises(ParseError, match="/proc/.*(is cut within a line|is empty)"):
                PARSERS[name](text[:end])


@pytest.mark.parametrize("seed", range(12))
def test_a_tree_of_garbage(seed: int, tmp_path: Path) -> None:
    """Every file of a tree cut or replaced: each source a value or a counted failure."""
    paths = copied(TREES[seed % len(TREES)], tmp_path)
    dice = random.Random(seed)
    for file in (*paths.proc.rglob("*"), *paths.sys.rglob("*")):
        if file.is_file() and not file.is_symlink() and dice.random() < 0.7:
            body = file.read_bytes()
            noise = bytes(dice.randrange(256) for _ in range(dice.randrange(200)))
            file.write_bytes(body[: dice.randrange(len(body) + 1)] + noise)
    sources = Sources(lambda line, level: None)
    state = HostReader(paths, sources).state()
    assert set(sources.errors) == set(state.problems) <= set(SOURCES)
    generate_latest(metrics.registry(lambda: Status(started=0, host=state)))


# -- what is behind a mount


class Machine:
    """A /sys made by hand."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(proc=root / "proc", sys=root / "sys")
        (root / "proc/self").mkdir(parents=True)
        (root / "sys/dev/block").mkdir(parents=True)
        self.lines: list[str] = []

    def node(self, place: str, bus: str = "", driver: str = "", **files: str) -> Path:
        """A device directory with its links."""
        directory = self.paths.sys / "devices" / place
        directory.mkdir(parents=True, exist_ok=True)
        for name, target in (("subsystem", f"bus/{bus}"), ("driver", f"drivers/{driver}")):
            if target[-1] != "/":
                (directory / name).symlink_to(target)
        for name, text in files.items():
            (directory / name).write_text(text)
        return directory

    def block(self, place: str, number: str, device: str = "") -> Path:
        """A block device, and what its ``device`` link says."""
        directory = self.node(place, "block")
        (self.paths.sys / "dev/block" / number).symlink_to(directory)
        if device:
            (directory / "device").symlink_to(self.paths.sys / "devices" / device)
        return directory

    def mount(self, number: str, path: str, kind: str = "ext4") -> None:
        """One line of mountinfo."""
        self.lines.append(f"1 1 {number} / {path} rw - {kind} x rw")
        body = "\n".join(self.lines) + "\n"
        (self.paths.proc / "self/mountinfo").write_bytes(body.encode())

    def stack(self) -> blockdev.Stack:
        """Of the only ext4."""
        (disk,) = disks.DiskReader().read(self.paths)
        return disk.stack


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """An empty one."""
    return Machine(tmp_path)


def guest(machine: Machine) -> None:
    """Make it a virtual machine."""
    machine.paths.sys.joinpath("bus/virtio/devices/virtio0").mkdir(parents=True)


def test_lvm_on_a_raid_of_nvme_and_scsi(machine: Machine) -> None:
    """dm over md over a partition of each: both drivers, each layer once."""
    machine.node("pci0/0000:01:00.0", "pci", "nvme", vendor="0x144d")
    machine.node("pci0/0000:01:00.0/nvme/nvme0", "nvme")
    machine.block("pci0/0000:01:00.0/nvme/nvme0/nvme0n1", "259:0", "pci0/0000:01:00.0/nvme/nvme0")
    part = machine.block("pci0/0000:01:00.0/nvme/nvme0/nvme0n1/nvme0n1p1", "259:1")
    (part / "partition").write_text("1")
    machine.node("pci0/0000:02:00.0", "pci", "ahci", vendor="0x8086")
    machine.node("pci0/0000:02:00.0/ata1/host0/0:0:0:0", "scsi", "sd")
    sda = machine.block(
        "pci0/0000:02:00.0/ata1/host0/0:0:0:0/block/sda",
        "8:0",
        "pci0/0000:02:00.0/ata1/host0/0:0:0:0",
    )
    raid = machine.block("virtual/block/md0", "9:0")
    volume = machine.block("virtual/block/dm-0", "252:0")
    for top, below in ((raid, part), (raid, sda), (volume, raid)):
        (top / "slaves").mkdir(exist_ok=True)
        (top / "slaves" / below.name).symlink_to(below)
    machine.mount("252:0", "/")
    stack = machine.stack()
    assert stack.layers == ("dm-0", "md0", "nvme0n1p1", "nvme0n1", "sda")
    assert stack.drivers == ("nvme", "ahci")
    assert stack.passed == (), "no guest, so nothing was passed through"


@pytest.mark.parametrize(
    ("vendor", "subsystem", "passed"),
    [
        ("0x144d", "0x144d", ("0000:01:00.0",)),
        ("0x1b36", "0x1af4", ()),
        ("0x8086", "0x1af4", ()),
    ],
)
def test_vfio_is_told_from_a_made_up_disk(
    machine: Machine, vendor: str, subsystem: str, passed: tuple[str, ...]
) -> None:
    """In a guest: a real NVMe was passed through, QEMU's and its AHCI were not."""
    guest(machine)
    machine.node("pci0/0000:01:00.0", "pci", "nvme", vendor=vendor, subsystem_vendor=subsystem)
    machine.node("pci0/0000:01:00.0/nvme/nvme0", "nvme")
    machine.block("pci0/0000:01:00.0/nvme/nvme0/nvme0n1", "259:0", "pci0/0000:01:00.0/nvme/nvme0")
    machine.mount("259:0", "/")
    assert machine.stack() == blockdev.Stack(("nvme0n1",), ("nvme",), passed)


def test_virtio_scsi_and_no_pci(machine: Machine) -> None:
    """sd is not the answer: who moves the data is virtio_scsi, on an MMIO bus too."""
    guest(machine)
    machine.node("platform/a.virtio_mmio", "platform", "virtio-mmio")
    machine.node("platform/a.virtio_mmio/virtio3", "virtio", "virtio_scsi")
    machine.node("platform/a.virtio_mmio/virtio3/host0/0:0:0:0", "scsi", "sd")
    place = "platform/a.virtio_mmio/virtio3/host0/0:0:0:0"
    machine.block(f"{place}/block/sda", "8:0", place)
    machine.mount("8:0", "/")
    assert machine.stack() == blockdev.Stack(("sda",), ("virtio_scsi",), ())


def test_a_loop_over_its_own_mount_ends(machine: Machine) -> None:
    """A hostile stack: the file lies on the filesystem that it makes."""
    loop = machine.block("virtual/block/loop0", "7:0")
    (loop / "loop").mkdir()
    (loop / "loop/backing_file").write_text("/x/image (deleted)\n")
    machine.mount("7:0", "/x")
    assert machine.stack().layers == ("loop0 (/x/image (deleted))",)


def test_multipath_nvme_and_a_network_disk(machine: Machine) -> None:
    """The subsystem has no driver of its own; nbd has no bus at all."""
    machine.node("pci0/0000:01:00.0", "pci", "nvme", vendor="0x144d")
    controller = machine.node("pci0/0000:01:00.0/nvme/nvme0", "nvme")
    group = machine.node("virtual/nvme-subsystem/nvme-subsys0", "nvme-subsystem")
    (group / "nvme0").symlink_to(controller)
    machine.block(
        "virtual/nvme-subsystem/nvme-subsys0/nvme0n1",
        "259:0",
        "virtual/nvme-subsystem/nvme-subsys0",
    )
    machine.mount("259:0", "/")
    assert machine.stack().drivers == ("nvme",)
    machine.lines.clear()
    machine.block("virtual/block/nbd7", "43:0")
    machine.mount("43:0", "/")
    assert machine.stack().drivers == ("nbd",)


def test_hostile_mount_points(machine: Machine) -> None:
    """Spaces, newlines, carriage returns and other separators; labels stay one line."""
    machine.block("virtual/block/nbd7", "43:0")
    machine.mount("43:0", "/a\\040b\\012c\u2028d\re")
    state = HostReader(machine.paths, Sources(lambda line, level: None)).state()
    assert state.disks[0].mount == "/a b\nc\u2028d\re"
    scrape = generate_latest(metrics.registry(lambda: Status(started=0, host=state))).decode()
    assert 'mountpoint="/a b\\\\x0ac\\\\u2028d\\\\x0de"' in scrape


def test_crash_readiness_of_this_kernel() -> None:
    """The running kernel's own files."""
    found = crash.read(Paths())
    assert found.panic == int(Path("/proc/sys/kernel/panic").read_text())
    assert set(found.ready()) == set(crash.ITEMS)
    assert vm.read(Paths()).min_free_kbytes == int(Path("/proc/sys/vm/min_free_kbytes").read_text())
