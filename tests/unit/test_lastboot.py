"""How the last boot ended: read back from what guests really left on their consoles."""

# ruff: noqa: E501 - lines as the kernel printed them

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpfwatch.host.modules import Module
from ebpfwatch.kernel import tracebuffer
from ebpfwatch.kernellog.traced import traced
from ebpfwatch.paths import Paths
from ebpfwatch.postmortem.last_boot import BootRecord, ended

# Consoles of the guests of tests/vm, scenario "again": the free that kills in RCU's softirq.
CONSOLE_4_19 = """\
[   56.036000] kernel BUG at mm/slub.c:294!
[   56.056001] Dumping ftrace buffer:
[   56.056101] ---------------------------------
[   56.057342]   <idle>-0       0d.s3 56045890us : 0: ebpfwatch verdict=3 ino=12 obj=ffff80002cc310c0
[   56.058095]   <idle>-0       0d.s3 56046408us : 0: ebpfwatch caller=ffff00000089b4ac gen=186 dev=fe00030
[   56.059229]   <idle>-0       0d.s3 56046503us : 0: ebpfwatch first pid=0 ns=557 caller=ffff0000081273d4
[   56.060216]   <idle>-0       0dns3 56046790us : 0: ebpfwatch evicted pid=1290 by rm
[   56.070000] ---------------------------------
[   56.090000] Kernel panic - not syncing: Fatal exception in interrupt
"""
CONSOLE_6_1 = """\
[   45.939646]    sleep-212       1d.s.1 45934982us : bpf_trace_printk: ebpfwatch verdict=3 ino=12 obj=ffff6392064f52a0
[   45.939646]
[   45.940058]    sleep-212       1d.s.1 45935437us : bpf_trace_printk: ebpfwatch caller=ffffa5eafbfd8504 gen=421 dev=fe00030
[   45.940402]    sleep-212       1d.s.1 45935496us : bpf_trace_printk: ebpfwatch first pid=212 ns=45 caller=ffffa5eb075c6ff4
[   45.940744]    sleep-212       1d.s.1 45935574us : bpf_trace_printk: ebpfwatch evicted pid=210 by rm
"""
CRIME = Module("crime", 0xFFFF00000089B000, 0xFFFF00000089F000, "OE")
BOOT = BootRecord(
    "b-1", "4.19.78", 1000.0, text=0xFFFF000008080000, test_page=(0x10, 0x20), modules=(CRIME,)
)


def _paths(tmp_path: Path) -> Paths:
    for name in ("sys/fs/pstore", "pstore", "crash"):
        (tmp_path / name).mkdir(parents=True)
    return Paths(sys=tmp_path / "sys", pstore=tmp_path / "pstore", crash=tmp_path / "crash")


@pytest.mark.parametrize("console", [CONSOLE_4_19, CONSOLE_6_1])
def test_a_dumped_verdict_is_read_back(console: str) -> None:
    """Both forms of the dump, and both contexts in it."""
    (verdict,) = traced(console.splitlines())
    assert (verdict.verdict, verdict.ino, verdict.dev) == ("double_free", 12, 0xFE00030)
    assert verdict.caller and verdict.first_caller and verdict.evicted_by == "rm"
    assert verdict.softirq and "now in a softirq on cpu" in verdict.text()


def test_the_modules_of_a_dumped_stack_are_named() -> None:
    """A tracepoint and a fentry program have no caller; the module stands behind the kernel's own."""
    line = "   sh-227   1.N... 403231336us : bpf_trace_printk: ebpfwatch "
    console = [
        line + "verdict=9 ino=12 obj=ffff0b7f0a062480",
        line + "caller=0 gen=3555 dev=fe00030",
        line + "stack ffff000008080010 ffff00000089b4ac ffff000008080020",
        line + "stack ffff00000089b500 0 0",
    ]
    (verdict,) = traced(console)
    assert len(verdict.stack) == 4
    named = ", modules on the stack: [crime]+0x4ac (OE) < [crime]+0x500 (OE)"
    assert named in verdict.text(BOOT.name) and "stack" not in verdict.text()


def test_a_task_is_named_for_what_it_did_itself() -> None:
    """Flags with and without a space before them, and no softirq in them."""
    told = "7.5: bpf_trace_printk: ebpfwatch verdict=1 ino=12 obj=ff"
    for place in ("[001] d..3 ", "1d..31 ", "1d..3 "):
        (verdict,) = traced([f"  kworker/1:1-39  {place} {told}"])
        assert "now by kworker/1:1-39 (cpu 1)" in verdict.text()


def test_the_guilty_module_is_named_from_the_last_boots_memory_map(tmp_path: Path) -> None:
    """The addresses of a boot that is over mean nothing without its own record."""
    paths = _paths(tmp_path)
    (tmp_path / "sys/fs/pstore/dmesg-ramoops-0").write_text(CONSOLE_4_19)
    report = ended(BOOT, paths, ["double_free: on disk"])
    assert report.how == "panic"
    text = "\n".join(report.lines)
    assert "[crime]+0x4ac (OE)" in text and "_text+0xa73d4" in text
    assert "inode 12 generation 186 on 254:48" in text
    assert "finding on disk: double_free: on disk" in text
    assert "Fatal exception in interrupt" in text


def test_the_self_test_of_the_last_boot_is_no_verdict(tmp_path: Path) -> None:
    """Its object lay in our own page."""
    paths = _paths(tmp_path)
    (tmp_path / "pstore/dmesg").write_text(CONSOLE_4_19)
    own = dataclasses.replace(BOOT, test_page=(0xFFFF80002CC31000, 0xFFFF80002CC32000))
    assert not [line for line in ended(own, paths, ()).lines if "verdict" in line]


def test_without_survivors_the_record_itself_tells(tmp_path: Path) -> None:
    """In order, or without a word; and what is older than that boot is not of it."""
    paths = _paths(tmp_path)
    old = tmp_path / "pstore/dmesg"
    old.write_text(CONSOLE_4_19)
    os.utime(old, (1, 1))
    assert ended(BOOT, paths, ()).how == "unknown"
    assert ended(dataclasses.replace(BOOT, clean=True), paths, ()).how == "clean"


def test_what_lies_beside_the_dumps_is_none(tmp_path: Path) -> None:
    """kdump-tools writes kexec_cmd at every boot, and apport what killed a program."""
    paths = _paths(tmp_path)
    for name in ("kexec_cmd", "kdump_lock", "_usr_bin_vi.0.crash"):
        (tmp_path / "crash" / name).touch()
    report = ended(dataclasses.replace(BOOT, clean=True), paths, ())
    assert (report.how, len(report.lines)) == ("clean", 1)


@pytest.mark.parametrize("kind", ["theirs", "empty", "theirs inside", "open", "empty file"])
def test_a_dump_that_a_user_made_is_none(tmp_path: Path, kind: str) -> None:
    """Where the place is open to all: his directory, an empty one, or his file in one of root's."""
    if os.geteuid() != 0:
        pytest.skip("needs root: to give a directory away")
    paths = _paths(tmp_path)
    made = tmp_path / "crash/20260101"
    made.mkdir()
    if kind != "empty":
        (made / "dump.20260101").write_text("" if kind == "empty file" else "KDUMP")
    if kind.startswith("theirs"):
        os.chown(made / "dump.20260101" if "inside" in kind else made, 65534, 65534)
    if kind == "open":
        made.chmod(0o777)
    report = ended(dataclasses.replace(BOOT, clean=True), paths, ())
    assert (report.how, len(report.lines)) == ("clean", 1)


@pytest.mark.parametrize(
    "line",
    [
        "<6>[    9.1] kernel BUG at x[123]: segfault at 0 ip 0 sp 0 error 4 in x",
        "<6>[    9.1] Internal error:[123]: segfault at 0 ip 0 sp 0 error 4 in x",
        "<3>[    9.1] tmpfs: Unknown parameter 'Kernel panic - not syncing: x'",
        "<4>[    9.1] x: renamed from BUG: unable to handle page fault",
        "<4>[    9.1] [   9.1] Kernel panic - not syncing: x",
        "<3>[    9.1] tmpfs: Unknown parameter 'x-1 [001] d..3 1.0: ebpfwatch verdict=3 ino=1 obj=f'",
    ],
)
def test_a_name_in_the_log_is_no_panic(tmp_path: Path, line: str) -> None:
    """Tasks, interfaces and mount options of any user's choice stand in the kernel's log."""
    paths = _paths(tmp_path)
    (tmp_path / "sys/fs/pstore/console-ramoops-0").write_text(line + "\n")
    report = ended(dataclasses.replace(BOOT, clean=True), paths, ())
    assert (report.how, len(report.lines)) == ("clean", 1)


@pytest.mark.parametrize(
    "line",
    [
        "[   56.090000] Kernel panic - not syncing: Fatal exception in interrupt",
        "<0>[   56.090000][    T1] Kernel panic - not syncing: x",
        "<1>[   56.090000][   C12] BUG: unable to handle page fault for address: 0",
        "kernel BUG at mm/slub.c:294!",
        "<2>[    3.000001] kernel BUG at mm/slub.c:294!",
        "[    3.000001] BUG: kernel NULL pointer dereference, address: 0000000000000010",
        "[    3.000001] Unable to handle kernel paging request at virtual address dead000000000108",
        "[    3.000001] Internal error: Oops: 96000004 [#1] SMP",
    ],
)
def test_the_kernel_s_own_words_are_one(tmp_path: Path, line: str) -> None:
    """With and without level, time and caller before them."""
    paths = _paths(tmp_path)
    (tmp_path / "sys/fs/pstore/dmesg-ramoops-0").write_text(f"Panic#1 Part1\n{line}\n")
    assert ended(dataclasses.replace(BOOT, clean=True), paths, ()).how == "panic"


def test_what_programs_left_in_pstore_is_not_the_kernel_s(tmp_path: Path) -> None:
    """/dev/pmsg0 may be open to all; and a record must be root's, and a file."""
    paths = _paths(tmp_path)
    for name in ("pmsg-ramoops-0", "other"):
        (tmp_path / "sys/fs/pstore" / name).write_text(CONSOLE_4_19)
    os.mkfifo(tmp_path / "pstore/dmesg-fifo")
    (tmp_path / "pstore/dmesg-link").symlink_to(tmp_path / "sys/fs/pstore/other")
    (tmp_path / "pstore/dmesg-open").write_text(CONSOLE_4_19)
    (tmp_path / "pstore/dmesg-open").chmod(0o666)
    assert ended(dataclasses.replace(BOOT, clean=True), paths, ()).how == "clean"


def test_what_vanishes_while_we_look_hides_nothing_else(tmp_path: Path) -> None:
    """systemd-pstore moves files at that very moment; a dangling link is as gone as they are."""
    paths = _paths(tmp_path)
    (tmp_path / "crash/20260101").mkdir()
    (tmp_path / "crash/20260101/dump.20260101").write_text("KDUMP")
    (tmp_path / "crash/gone").symlink_to("nowhere")
    (tmp_path / "pstore/gone").symlink_to("nowhere")
    report = ended(BOOT, paths, ())
    assert report.how == "panic" and f"dump: {tmp_path}/crash/20260101" in report.lines


def test_the_record_is_read_as_written_and_rubbish_is_none(tmp_path: Path) -> None:
    """A file cut short by the panic is no record, and no traceback."""
    file = tmp_path / "boot.json"
    BOOT.write(file)
    assert BootRecord.read(file) == BOOT
    whole = file.read_text()
    for end in range(0, len(whole), 7):
        file.write_text(whole[:end])
        assert BootRecord.read(file) is None
    file.write_text("[]")
    assert BootRecord.read(file) is None


@given(st.text(), st.sampled_from([CONSOLE_4_19, CONSOLE_6_1]), st.integers(0, 900))
def test_torn_dumps_never_raise(noise: str, console: str, cut: int) -> None:
    """A record that survived half is read as far as it goes."""
    text = console[:cut] + noise + console[cut:]
    for verdict in traced(text.splitlines()):
        assert verdict.text(BOOT.name) and verdict.text()


def _tracing(tmp_path: Path, size: str, tracer: str = "nop") -> tuple[Path, Path]:
    (tmp_path / "buffer_size_kb").write_text(size)
    (tmp_path / "current_tracer").write_text(tracer)
    sysctl = tmp_path / "dump"
    sysctl.write_text("0\n")
    return tmp_path, sysctl


@pytest.mark.parametrize(
    ("size", "tracer", "armed"),
    [("7 (expanded: 1408)", "nop", "1"), ("35", "nop", "1"), ("1410", "nop", "0\n")]
    + [("35", "function", "0\n")],
)
def test_a_trace_buffer_of_others_is_left_alone(
    tmp_path: Path, size: str, tracer: str, armed: str
) -> None:
    """Only a small one, that nobody else fills, is printed at an oops."""
    tracing, sysctl = _tracing(tmp_path, size, tracer)
    dump = tracebuffer.prepare(tracing, sysctl, True)
    assert sysctl.read_text() == armed
    assert dump.changed == (armed == "1") and bool(dump.why_not) != dump.changed
    if "expanded" in size:
        assert (tracing / "buffer_size_kb").read_text() == str(tracebuffer.KB)
    tracebuffer.restore(sysctl)


def test_without_tracefs_nothing_is_armed(tmp_path: Path) -> None:
    """One reason, no traceback."""
    dump = tracebuffer.prepare(tmp_path / "nowhere", tmp_path / "dump", True)
    assert not dump.changed and "No such file" in dump.why_not
