"""Parsers of /proc on real and on hostile text."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpfwatch.host import ParseError, memory, mounts, vmstat, zoneinfo
from ebpfwatch.host.place import place
from ebpfwatch.host.process import process
from ebpfwatch.paths import Paths

FIXTURES = Path(__file__).parents[1] / "fixtures"


def test_zones_of_a_4_19_machine_like_the_case() -> None:
    """From the case's numbers; the per-CPU "high:" is no watermark, empty zones are out."""
    text = (FIXTURES / "proc-case/zoneinfo").read_text()
    dma32, normal = zoneinfo.parse(text, 4096)
    assert dma32 == zoneinfo.Zone(
        0, "DMA32", 9215 << 12, 4209 << 12, 5261 << 12, 6313 << 12, 745046 << 12
    )
    assert (normal.zone, normal.free, normal.high) == ("Normal", 19584 << 12, 19029 << 12)
    assert dma32.free + normal.free == 28799 << 12  # the case's free pages


def test_zones_of_a_real_6_18_machine() -> None:
    """Copied from the machine this was written on."""
    zones = zoneinfo.parse((FIXTURES / "proc-x86/zoneinfo").read_text(), 4096)
    assert zones
    for zone in zones:
        assert 0 < zone.min <= zone.low <= zone.high <= zone.managed
    assert vmstat.parse((FIXTURES / "proc-x86/vmstat").read_text())["slabs_scanned"] >= 0


@pytest.mark.parametrize("cut", range(40, 400, 37))
def test_truncated_zoneinfo_says_where(cut: int) -> None:
    """A zone or a complaint; never half a zone."""
    text = (FIXTURES / "proc-case/zoneinfo").read_text()[:cut]
    try:
        for zone in zoneinfo.parse(text, 4096):
            assert zone.managed
    except ParseError as error:
        assert "zoneinfo" in str(error)


MOUNTINFO = r"""
23 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
40 23 7:0 / /mnt/with\040space rw - ext4 /dev/loop0 rw
41 23 7:0 /sub /srv/bind ro - ext4 /dev/loop0 rw
42 23 7:1 / /ro ro - ext4 /dev/loop1 ro
43 23 0:5 / /proc rw - proc proc rw
"""


def test_one_mount_a_device_and_a_writable_one_if_there_is_one(tmp_path: Path) -> None:
    """Octal escapes undone, other filesystems left out."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self/mountinfo").write_text(MOUNTINFO.strip() + "\n")
    found = {m.path: m for m in mounts.ext4_mounts(Paths(proc=tmp_path))}
    assert set(found) == {"/", "/mnt/with space", "/ro"}
    assert (found["/ro"].read_only, found["/"].read_only) == (True, False)
    assert (found["/"].major, found["/"].minor) == (254, 0)
    assert "discard" in found["/"].options


def test_mounts_that_this_process_cannot_see(tmp_path: Path) -> None:
    """/sys/fs/ext4 names what the kernel has mounted: a chroot is no machine without ext4."""
    paths = Paths(sys=tmp_path)
    assert mounts.ext4_elsewhere(paths) == ()
    for name in ("features", "vdb", "dm-0"):
        (tmp_path / "fs/ext4" / name).mkdir(parents=True)
    assert mounts.ext4_elsewhere(paths) == ("dm-0", "vdb")
    what, remedy = mounts.none_visible(("dm-0", "vdb"))
    assert "(dm-0, vdb)" in what and "chroot" in what and "outside" in remedy
    assert mounts.none_visible(())[0].startswith("no ext4 filesystem is mounted")


@given(st.text(max_size=400))
def test_garbage_is_a_parse_error(text: str) -> None:
    """Every parser: a value or a ParseError that names its file."""
    for parse in (
        lambda: zoneinfo.parse(text, 4096),
        lambda: vmstat.parse(text),
        lambda: mounts.parse(text),
    ):
        try:
            parse()
        except ParseError as error:
            assert "/proc/" in str(error)


@given(st.lists(st.sampled_from(["Node 0, zone Normal", "pages free 1", "min 2", "min x", "a"])))
def test_zoneinfo_in_any_order(lines: list[str]) -> None:
    """Plausible lines in an implausible order."""
    try:
        zoneinfo.parse("\n".join(lines), 4096)
    except ParseError:
        pass


def test_own_size() -> None:
    """Some megabytes, not pages and not kilobytes."""
    assert 5e6 < memory.own_rss(Paths()) < 2e9


STAT = "7 (evil) (x) S 1 7 7 0 -1 4194560 1 0 0 0 2 3 0 0 20 0 1 0 {ticks} 1 1 184467 0\n"


def _proc(tmp_path: Path, ticks: int, cgroup: str) -> Paths:
    for pid, comm in ((7, "evil) (x"), (1, "systemd")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "comm").write_text(comm + "\n")
    (tmp_path / "7/stat").write_text(STAT.format(ticks=ticks))
    (tmp_path / "7/cgroup").write_text(cgroup)
    (tmp_path / "7/exe").symlink_to("/opt/evil")
    return Paths(proc=tmp_path)


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/x.service\n", "x.service"),
        ("0::/user.slice/user@1000.service/app.slice/app-y.scope\n", "app-y.scope"),
        ("12:pids:/a\n1:name=systemd:/system.slice/old.service\n0::/\n", "old.service"),
        ("0::/\n", ""),
        ("", ""),
    ],
)
def test_a_living_process(tmp_path: Path, cgroup: str, unit: str) -> None:
    """Its parent, executable and unit, under both kinds of cgroups and whatever it is called."""
    found = process(_proc(tmp_path, 100, cgroup), 7, time.monotonic_ns())
    assert found is not None
    assert (found.exe, found.ppid, found.parent, found.unit) == ("/opt/evil", 1, "systemd", unit)


def test_who_took_over_the_number_is_not_asked(tmp_path: Path) -> None:
    """A process that began after the step is another one; one that is gone is none."""
    paths = _proc(tmp_path, 10**9, "")
    assert process(paths, 7, 1_000_000_000) is None
    assert process(paths, 8, 1) is None
    (tmp_path / "7/stat").write_text("nonsense")
    assert process(paths, 7, 1) is None


def test_this_very_process() -> None:
    """The real /proc."""
    found = process(Paths(), os.getpid(), time.monotonic_ns())
    assert found is not None
    assert (found.ppid, found.exe) == (os.getppid(), os.path.realpath(sys.executable))


def test_a_device_has_a_name_and_a_place(tmp_path: Path) -> None:
    """The mount of the whole filesystem, not of a part; nothing where there is none."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self/mountinfo").write_text(
        "1 0 254:16 /data /srv/bind rw - ext4 /dev/vdb rw\n"
        "2 0 254:16 / /mnt/with\\040space rw - ext4 /dev/vdb rw\n"
        "3 0 254:32 /only /part rw - ext4 /dev/vdc rw\n"
    )
    (tmp_path / "dev/block").mkdir(parents=True)
    (tmp_path / "dev/block/254:16").symlink_to("../../devices/virtual/block/vdb")
    paths = Paths(proc=tmp_path, sys=tmp_path)
    assert place(paths, 254, 16) == ("vdb", "/mnt/with space")
    assert place(paths, 254, 32) == ("", "")
