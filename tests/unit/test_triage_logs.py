"""Triage of what people hand over: directories, archives, several boots, modules' files."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import importlib
import io
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ebpfwatch.commands import main
from ebpfwatch.triage import compare, kofile, modulefiles
from ebpfwatch.triage.logs import logs
from ebpfwatch.triage.summary import read
from tests.unit.test_triage import LOGS, ROOT, sample, triage

CASE = (ROOT / "tests/fixtures/logs/case-4.19-arm64.txt").read_bytes().partition(b"\n")[2]
QUIET = b"[    1.0] Linux version 6.1.0 (x) #1 SMP\n[    2.0] all is well\n"


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and output of the command."""
    code = main(["triage", *words])
    return code, capsys.readouterr().out


def tarred(files: dict[str, bytes], mode: str = "w") -> bytes:
    """An archive of files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def zstd(data: bytes) -> bytes:
    """By the program, where there is one."""
    if shutil.which("zstd") is None:
        pytest.skip("no program zstd: apt-get install zstd")
    return subprocess.run(["zstd", "-q"], input=data, capture_output=True, check=True).stdout


PACKERS: dict[str, Any] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "zstd": zstd,
    "tar": lambda data: tarred({"127.0.0.1/vmcore-dmesg.txt": data, "vmcore": b"KDUMP   \0\0"}),
    "tar.gz": lambda data: gzip.compress(tarred({"a/dmesg": data})),
    "tar of gz": lambda data: tarred({"a/dmesg.gz": gzip.compress(data)}),
}


@pytest.mark.parametrize("how", PACKERS)
def test_compressed_and_archived(how: str, tmp_path: Path) -> None:
    """The content decides, not the name; nothing is unpacked to the disk."""
    (tmp_path / "x").write_bytes(PACKERS[how](CASE))
    (log,) = (log for log in logs([str(tmp_path / "x")]) if not log.passed_over)
    assert [boot.verdict for boot in log.boots] == ["this_bug"]
    assert not log.boots[0].counts.damaged
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["gzip", "xz", "zstd"])
def test_a_damaged_archive_is_read_up_to_the_damage(how: str, tmp_path: Path) -> None:
    """And the report says so."""
    noise = b"".join(b"[%d.5] noise %d %d\n" % (n, n * n, n * 7919 % 10007) for n in range(40000))
    packed = PACKERS[how](CASE + noise)
    (tmp_path / "x").write_bytes(packed[: len(packed) * 2 // 3])
    (log,) = logs([str(tmp_path / "x")])
    assert log.boots[0].counts.damaged
    if how != "zstd":
        assert max(boot.weight or 0 for boot in log.boots) == 4


def test_a_directory_of_a_crash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The dump is passed over, the logs are read, the parts of the firmware's record are joined."""
    (tmp_path / "2026-03-01").mkdir()
    (tmp_path / "2026-03-01/vmcore").write_bytes(b"KDUMP   \0" * 100)
    (tmp_path / "2026-03-01/vmcore-dmesg.txt").write_bytes(CASE)
    (tmp_path / "2026-03-01/notes.txt").write_bytes(b"the machine was slow\n")
    lines = sample(ROOT / "tests/fixtures/logs/slub-bug-6.1-x86.txt")[1].splitlines(keepends=True)
    middle = len(lines) // 2
    for part, piece in ((1, lines[middle:]), (2, lines[:middle])):
        data = b"Oops#1 Part%d\n" % part + b"".join(piece)
        (tmp_path / f"dmesg-efi-17000000{part}").write_bytes(data)
    os.mkfifo(tmp_path / "fifo")
    code, out = said(capsys, str(tmp_path))
    assert code == 0
    assert "vmcore-dmesg.txt: THIS BUG" in out and "(Oops#1, 2 parts): THIS BUG" in out
    assert "2 crashes compared:" in out
    assert "notes.txt" not in out and "vmcore:" not in out


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """As a user whom file permissions concern; root's tests are others' as well."""
    importlib.import_module("ebpfwatch.commands.triage")  # others may not read the checkout
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that every user may look into, which those of pytest are not."""
    before = os.umask(0o022)  # a command that an earlier test ran may have set another
    try:
        with tempfile.TemporaryDirectory() as name:
            os.chmod(name, 0o755)
            yield Path(name)
    finally:
        os.umask(before)


CORE = b"\x7fELF\2\1\1" + b"\0" * 9 + b"\4\0" + b"\0" * 100

NONE_READ = [
    ({}, 69, "no log was read in {}: there is no file in it; look for the log of the crash"),
    (
        {"a/vmcore": b"KDUMP   \0\0", "b/vmcore": CORE},
        69,
        "no log was read in {}: 2 are dumps (makedumpfile --dump-dmesg gets the log out)",
    ),
    ({"dmesg!": CASE}, 77, "no log was read in {}: 1 file may not be read (run it as root)"),
    (
        {"dmesg!": CASE, "vmcore": CORE, "x": b"\0\1", "y": b"", "z": b"LPKSHHRH\0"},
        77,
        "1 file may not be read (run it as root), 1 is a dump (makedumpfile --dump-dmesg gets the"
        " log out), 1 is a journal file (journalctl --file FILE -k -o export prints it), 1 is"
        " empty, 1 is no text",
    ),
    ({"a!/dmesg": CASE, "b!/dmesg": CASE}, 77, "2 directories may not be read (run it as root)"),
    ({"!": b""}, 77, "no log was read in {}: it may not be read (run it as root)"),
    (
        {"a.tar": tarred({"vmcore": b"KDUMP   \0"}), "v.gz": gzip.compress(CORE)},
        69,
        "no log was read in {}: 2 are dumps",
    ),
]


@pytest.mark.parametrize(("files", "code", "words"), NONE_READ)
def test_a_directory_of_which_nothing_was_read(
    files: dict[str, bytes],
    code: int,
    words: str,
    reachable: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line that says why, and an exit code that is no verdict; ! is what only root may read."""
    given = reachable / "crash"
    closed = [given] if "!" in files else []
    given.mkdir()
    for name, data in files.items():
        if name == "!":
            continue
        path = given / name.replace("!", "")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        if "!" in name:
            closed.append(path.parent if "!/" in name else path)
    for path in closed:
        path.chmod(0)
    try:
        with nobody():
            assert main(["triage", str(given)]) == code
            plain = capsys.readouterr()
            assert main(["triage", "--json", str(given)]) == code
            body = json.loads(capsys.readouterr().out)
    finally:
        for path in closed:
            path.chmod(0o700)
    assert plain.out == "" and plain.err.count("\n") == 1
    assert words.format(given) in plain.err
    assert body["logs"] == [] and len(body["not_read"]) == len(files)


def test_a_file_that_only_root_may_read(
    reachable: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """77, as everywhere; beside a log that was read it is told, and the log's verdict counts."""
    (reachable / "kern.log").write_bytes(CASE)
    (reachable / "kern.log").chmod(0)
    with nobody():
        assert main(["triage", str(reachable / "kern.log")]) == 77
        assert "Permission denied; run it as root" in capsys.readouterr().err
    (reachable / "readable").mkdir()
    (reachable / "readable/dmesg").write_bytes(CASE)
    (reachable / "readable").chmod(0o755)
    with nobody():
        code, out = said(capsys, str(reachable))
    assert code == 0 and "kern.log: not read: it may not be read; run it as root" in out


def test_one_name_of_several_has_no_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said beside the verdict of the others; two without any are one line."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "none").mkdir()
    (tmp_path / "log").write_bytes(CASE)
    code, out = said(capsys, str(tmp_path / "log"), str(tmp_path / "empty"))
    assert code == 0 and f"no log was read in {tmp_path}/empty: there is no file in it\n" in out
    assert main(["triage", str(tmp_path / "empty"), str(tmp_path / "none")]) == 69
    assert capsys.readouterr().err.count("no log was read in") == 2


def test_several_boots_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the kernel's first line, the journal's mark, a clock that begins again, a boot's name."""
    crash = CASE.replace(b"Mar 02 11:20:01 desk kernel: ", b"")
    slub = sample(ROOT / "tests/fixtures/logs/slub-bug-6.1-x86.txt")[1]
    for between in (QUIET, b"-- Reboot --\n", b"-- Boot 0123456789abcdef --\n"):
        boots = read(io.BufferedReader(io.BytesIO(crash + between + slub)))
        assert [boot.verdict for boot in boots] == ["this_bug", "this_bug"], between
        assert len(boots[0].groups) == len(read(io.BufferedReader(io.BytesIO(crash)))[0].groups)
    journal = b"".join(
        json.dumps({"_TRANSPORT": "kernel", "_BOOT_ID": boot, "MESSAGE": text}).encode() + b"\n"
        for boot, text in (("a", "kernel BUG at mm/slub.c:1!"), ("b", "all is well"))
    )
    boots = read(io.BufferedReader(io.BytesIO(journal)))
    assert [boot.verdict for boot in boots] == ["undecided", "nothing_found"]
    (tmp_path / "kern.log").write_bytes(crash + QUIET)
    code, out = said(capsys, str(tmp_path / "kern.log"))
    assert code == 0 and "kern.log, boot 1 of 2: THIS BUG" in out
    assert "kern.log, boot 2 of 2: NOTHING FOUND" in out


def test_crashes_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What four crashes have in common, and where they differ."""
    names = []
    for index in range(4):
        log = CASE.replace(b"Web Content", b"task%d" % index)
        if index == 3:
            log = log.replace(b"vfs_monitor(O)", b"")
        names.append(str(tmp_path / f"crash{index}"))
        Path(names[-1]).write_bytes(log)
    code, out = said(capsys, *names)
    out = " ".join(out.split())
    assert code == 0 and "4 crashes compared:" in out
    assert "signature: oops in kmem_cache_free" in out
    assert "out-of-tree modules: dlp_fcore" in out
    assert "further out-of-tree modules: (1, 2, 3) vfs_monitor; (4) (not in the log)" in out
    assert "task: (1) task0; (2) task1; (3) task2; (4) task3" in out
    assert "format is not right" in out.partition("Different:")[0]
    code, out = said(capsys, "--json", *names)
    body = json.loads(out)
    assert len(body["logs"]) == 4 and body["compared"]["same"]["verdict"] == "this_bug"


def test_in_short_is_three_sentences() -> None:
    """For a support engineer: what, who, what first; the case names the directory, too."""
    from ebpfwatch.triage.explain import in_short

    for path in LOGS:
        sentences = in_short(triage(sample(path)[1]))
        assert 1 <= len(sentences) <= 4
        assert all(len(sentence) < 400 for sentence in sentences), path.stem
    first = in_short(triage(CASE))
    assert "ext4 file's inode that was free already" in first[0]


def test_the_width_of_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """COLUMNS; never narrower than 60."""
    (tmp_path / "log").write_bytes(CASE)
    longest = {}
    for columns in ("30", "80", "140"):
        monkeypatch.setenv("COLUMNS", columns)
        _, out = said(capsys, str(tmp_path / "log"))
        wrapped = [line for line in out.splitlines() if line.startswith("  1. ")]
        longest[columns] = max(map(len, wrapped))
    assert longest["30"] <= 60 < longest["80"] <= 80 < longest["140"] <= 140


def test_progress_is_for_terminals_and_large_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """How far it is, on standard error; nothing of it in a pipe."""
    (tmp_path / "log").write_bytes(QUIET * 2000)
    monkeypatch.setattr("ebpfwatch.triage.logs._LARGE", 1000)
    clock = iter(range(10**6))
    monkeypatch.setattr("ebpfwatch.triage.logs.time.monotonic", lambda: float(next(clock)))
    list(logs([str(tmp_path / "log")]))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    list(logs([str(tmp_path / "log")]))
    assert re.search(r"\rread \d+ of \d+ MiB", capsys.readouterr().err)


def test_standard_input_has_a_name() -> None:
    """Not "-"."""
    words = [sys.executable, "-m", "ebpfwatch", "triage", "-"]
    done = subprocess.run(words, cwd=ROOT, input=CASE, capture_output=True)
    assert done.stdout.startswith(b"standard input: THIS BUG")


# -- the files of modules

PRINTER = """\
int printk(const char *, ...);
void dput(void *); void iput(void *); int register_kprobe(void *);
int scan(void *d) {
    printk("\\0016this %s format is not right , so can not luopan !\\n", "file");
    dput(d); iput(d);
    return register_kprobe(d);
}
"""
INNOCENT = 'int printk(const char *, ...);\nint f(void) { return printk("hello you there"); }\n'


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as modules are: relocatable ELF, one of them compressed."""
    directory = tmp_path_factory.mktemp("modules")
    for name, source in (("dlp-fcore", PRINTER), ("vfs_monitor", INNOCENT), ("tun", INNOCENT)):
        (directory / f"{name}.c").write_text(source)
        subprocess.run(["gcc", "-c", "-o", f"{name}.ko", f"{name}.c"], cwd=directory, check=True)
    data = (directory / "dlp-fcore.ko").read_bytes()
    (directory / "dlp-fcore.ko.xz").write_bytes(lzma.compress(data))
    (directory / "dlp-fcore.ko").unlink()
    return directory


def test_whose_line_it_is(
    modules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The case's unknown line is a string in one module's file, numbers and names apart."""
    (tmp_path / "log").write_bytes(CASE)
    code, out = said(capsys, "--modules", str(modules), str(tmp_path / "log"))
    out = " ".join(out.split())
    assert code == 0
    assert "is printed by dlp-fcore.ko.xz (out of tree)" in out
    assert "often ends what others use): dput, iput" in out
    assert "can change or call any function of the kernel: register_kprobe" in out
    assert "vfs_monitor.ko calls none of the functions" in out
    assert "tun.ko" not in out


def test_a_line_that_nobody_prints(modules: Path) -> None:
    """Said, and so is a module without a file."""
    log = CASE.replace(b"luopan", b"qqqqqq").replace(b"format is not right", b"zz yy xx ww")
    log = log.replace(b"vfs_monitor(O)", b"other_one(O)")
    found = " ".join(modulefiles.look_up(triage(log), modules))
    assert "is in no module below" in found and "there is no file of other_one" in found
    assert "no files of modules below" in modulefiles.look_up(triage(log), modules / "none")[0]
    late = " ".join(modulefiles.look_up(triage(log), modules, seconds=-1))
    assert "only 0 of 3 files were looked through" in late


def test_undefined_symbols_are_those_that_nm_names(modules: Path) -> None:
    """Against binutils; and damaged files have none, and no exception."""
    data = lzma.decompress((modules / "dlp-fcore.ko.xz").read_bytes())
    (modules / "plain").write_bytes(data)
    told = subprocess.run(
        ["nm", "-u", modules / "plain"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(kofile.undefined(data)) == set(told) - {"U"}
    for cut in range(0, len(data), 7):
        kofile.undefined(data[:cut])
        kofile.undefined(data[:cut] + b"\xff" * 64 + data[cut + 64 :])


def test_the_modules_of_this_machine_are_asked_only_for_its_own_kernel() -> None:
    """Another kernel's log says nothing about them."""
    assert modulefiles.default_directory("4.19.0-arm64-desktop") is None
    ours = modulefiles.default_directory(os.uname().release)
    assert ours is None or ours.is_dir()


def test_a_comparison_of_nothing() -> None:
    """Crashes without reports compare by what there is."""
    boots = read(io.BufferedReader(io.BytesIO(QUIET)))
    assert compare.crashes([("x", boots[0])]) == []


def test_the_end_of_a_panic_is_no_unknown_prefix() -> None:
    """panic() closes with a line that repeats its message; a real dump's log ended so."""
    text = (
        b"[   92.336352] Kernel panic - not syncing: Fatal exception\n"
        b"[   92.336689] SMP: stopping secondary CPUs\n"
        b"[   92.347742] ---[ end Kernel panic - not syncing: Fatal exception ]---\n"
    )
    (boot,) = read(io.BufferedReader(io.BytesIO(text)))
    assert boot.counts.behind == 0
