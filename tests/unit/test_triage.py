"""Triage: logs in every shape, each with its expected verdict beside it; noise; size."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpfwatch.commands import main
from ebpfwatch.kernellog.known import KINDS, KNOWN, Relation, recognise
from ebpfwatch.kernellog.oops import Parser
from ebpfwatch.kernellog.report import Record, Report
from ebpfwatch.triage import explain
from ebpfwatch.triage.records import Counts, records
from ebpfwatch.triage.summary import Triage, read

ROOT = Path(__file__).parents[2]
LOGS = sorted((ROOT / "tests/fixtures/logs").glob("*.txt"))
#: The crash of the case itself, as its people sent it.
CASE = next(
    (file for up in ROOT.parents if (file := up / "shared/case/dmesg-warning-oops.txt").exists()),
    ROOT.parent / "shared/case/dmesg-warning-oops.txt",
)


def triage(data: bytes) -> Triage:
    """The triage of a log's bytes: of its heaviest boot, if it has several."""
    boots = read(io.BufferedReader(io.BytesIO(data)))
    return max(boots, key=lambda boot: boot.weight or 0)


def sample(path: Path) -> tuple[dict[str, Any], bytes]:
    """The expected verdict of the first line, and the log behind the two comment lines."""
    head, _, rest = path.read_bytes().partition(b"\n")
    return json.loads(head.lstrip(b"# ")), rest.partition(b"\n")[2]


def parse(data: bytes) -> list[Report]:
    """The reports of a log's bytes, one by one."""
    parser, found = Parser(), []
    for record in records(io.BufferedReader(io.BytesIO(data)), Counts()):
        found += parser.feed(record, recognise(record.text))
    return [*found, *parser.close()]


@pytest.mark.needs("capstone")
@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_every_sample_gets_the_verdict_beside_it(path: Path) -> None:
    """The verdict, the count of each kind, and the words that must be said."""
    expected, log = sample(path)
    result = triage(log)
    assert result.verdict == expected["verdict"]
    assert result.kinds == expected["kinds"]
    said = " ".join(explain.tell(result, path.name).split())
    for words in expected["says"]:
        assert words in said
    for words in expected.get("never", ()):
        assert words not in said


#: What stands before a line: by the forms of journalctl, dmesg, syslog, and mail.
PREFIXES = {
    "syslog": "2026-03-01T10:00:00Z h kernel: ",
    "rfc5424": '<4>1 2026-03-01T10:00:00.1Z h kernel - - [x y="1"] ',
    "rfc5424-plain": "<4>1 2026-03-01T10:00:00Z h kernel - - - ",
    "short-monotonic": "[{seconds:12.6f}] h-1.example kernel: ",
    "short-delta": "[{seconds:12.6f} <    0.000012 >] h kernel: ",
    "short-full": "Sun 2026-03-01 10:00:00 CET h kernel: ",
    "short-full-zh": "\u65e5 2026-03-01 10:00:00 +08 h kernel: ",
    "short-unix": "1772355600.123456 h kernel: ",
    "dmesg-d": "[{seconds:12.6f} <    0.000012>] ",
    "quoted": "> > [{seconds:12.6f}] ",
}


@pytest.mark.parametrize("form", ["export", "json", "crlf", "utf-16", *PREFIXES])
def test_the_form_of_the_log_does_not_matter(form: str) -> None:
    """The same verdict from the journal, a log server, a Windows editor."""
    for path in LOGS:
        expected, log = sample(path)
        plain = list(records(io.BufferedReader(io.BytesIO(log)), Counts()))
        assert triage(_write(plain, form)).verdict == expected["verdict"], path.stem


def _write(plain: list[Record], form: str) -> bytes:
    lines = []
    for record in plain:
        us = int((record.seconds or 0) * 1e6)
        fields = {"_TRANSPORT": "kernel", "_SOURCE_MONOTONIC_TIMESTAMP": str(us)}
        if form == "export":
            text = record.text.encode()
            body = b"".join(f"{key}={value}\n".encode() for key, value in fields.items())
            size = len(text).to_bytes(8, "little")
            lines.append(b"__CURSOR=s\n" + body + b"MESSAGE\n" + size + text + b"\n\n")
        elif form == "json":
            lines.append(json.dumps({**fields, "MESSAGE": record.text}).encode() + b"\n")
        elif form in PREFIXES:
            prefix = PREFIXES[form].format(seconds=us / 1e6)
            lines.append(f"{prefix}{record.text}\n".encode())
        else:
            lines.append(f"[{us / 1e6:12.6f}] {record.text}\r\n".encode())
    joined = b"".join(lines)
    return joined.decode().encode("utf-16") if form == "utf-16" else joined


#: What machines, log servers and people put before a message; one line, nothing to learn from.
BEFORE = (
    "[12月11 14:31] ",
    "[Dec11 14:31] ",
    "12/11/23 14:31:02 host kernel: ",
    "2023-12-11T14:31:02.123456+0800 host kernel: ",
    "Mon Dec 11 14:31:02 2023 kernel: [ 12.345678] ",
    "2023-12-11 14:31:02.123 host kernel: ",
    "Dec 11 14:31:02 host kernel[0]: ",
    "<6>[   12.345678] ",
    "6,123,456,-;",
    "6,123,456,-,caller=T12;",
    "[2023-12-11 14:31:02] ",
    "[2023-12-11 14:31:02.123] [   12.345678] ",
    "[14:31:02.123] ",
    "14:31:02 ",
    "14:31:02.123 [   12.345678] ",
    "host login: [   12.345678] ",
    "2023-12-11 14:31:02,123 [   12.345678] ",
    "[    0.000000,0] [ T1234] ",
    "kern.log:Dec 11 14:31:02 host kernel: ",
    "dmesg.0:[   12.345678] ",
    "dmesg.0-[   12.345678] ",
    "/var/log/kern.log:123:Dec 11 14:31:02 host kernel: [   12.345678] ",
    "déc. 11 14:31:02 host kernel: ",
    "12月 11 14:31:02 host kernel: ",
    "12月11日 14:31:02 host kernel: ",
    "2023年12月11日 14:31:02 host kernel: ",
    "[2023年 12月 11日 星期一 14:31:02 CST] ",
    "[一 12月 11 14:31:02 CST 2023] ",
    "[Mon Dec 11 14:31:02 AM CST 2023] ",
    "Δεκ 11 14:31:02 host kernel: ",
    "Dec 11 02:31:02 PM host kernel: ",
    "[  123.175201s]",
    "[  123.175201s][2023:12:11 14:31:02][pid:6550,cpu6,lshw-bak,9]",
    "[123.175201s][pid:6550,cpu6,in irq]",
    "[   12.345678] (2)[1234:kworker/u16:2]",
    "[   12.345678] -(2)[0:swapper/2]",
    "[   12.345678].(2)[0:swapper/2]",
    "<4>[   12.345678]  (2)[0:swapper/2]",
    "[   12.345678][T12345@C3] ",
    "[   12.345678] [T12345] ",
    "[   12.345678] [C3] ",
    "[   12.345678][    C3] ",
    "[   12.345678] c3   1234 ",
    "[   12.345678] c3 ",
    "[   12.345678@3]  ",
    "[   12.345678] [3:  kworker/3:1:  290] ",
    "[   12.345678]  I[3:  kworker/3:1:  290] ",
    "[   12.345678] I[3:kworker/3:1:290] ",
    "<0>[   12.345678] I[3:    swapper/3:    0] ",
    "12-11 14:31:02.123   290   290 E kernel  : [   12.345678]  ",
    "12-11 14:31:02.123 E/KERNEL  (  290): ",
    "12-11 14:31:02.123 <0>[   12.345678] ",
    "<3>12-11 14:31:02.123 ",
    "kern  :crit  : [   12.345678] ",
    "kern  :crit  : [Mon Dec 11 14:31:02 2023] ",
    "kern.crit: [   12.345678] ",
    "kern:emerg: [   12.345678] ",
    "host kernel: [   12.345678] ",
    "host kernel: ",
    "kernel: [   12.345678] ",
    "kernel:[   12.345678] ",
    "Message from syslogd@host at Dec 11 14:31:02 ...\n kernel:",
    "Message from syslogd@host at Dec 11 14:31:02 ...\n kernel:[   12.345678] ",
    "> [   12.345678] ",
    ">> [   12.345678] ",
    " [   12.345678] ",
    "> > > ",
    "      12\t[   12.345678] ",
    "12  [   12.345678] ",
    "12. [   12.345678] ",
    "12: [   12.345678] ",
    "12) [   12.345678] ",
    "- [   12.345678] ",
    "* [   12.345678] ",
    '"[   12.345678] ',
    "# [   12.345678] ",
    "// [   12.345678] ",
    "\x1b[32m[   12.345678] \x1b[0m\x1b[31m",
    "Dec 11 14:31:02.123456 host kernel: ",
    "1702276262.123456 host kernel: ",
    "1702276262.123456 kernel: ",
    "Dec 11 14:31:02 host kern.emerg kernel: ",
    "Dec 11 14:31:02 kern.crit kernel: ",
    "Mon Dec 11 14:31:02 2023 kern.crit kernel: ",
    "<2>Dec 11 14:31:02 host kernel: ",
    "<2>1 2023-12-11T14:31:02.123456+08:00 host kernel - - - ",
    "Dec 11 14:31:02 10.0.0.1 kernel: ",
    "Dec 11 14:31:02 host vmunix: ",
    "Dec 11 14:31:02 host klogd: ",
    "2023-12-11T14:31:02+08:00 host kernel [   12.345678] ",
    "[   12.345678] host kernel: ",
    "[  +0.000002] ",
    "[  <    0.000012>] ",
    "[   12.345678 <    0.000012>] ",
    "[Mon Dec 11 14:31:02 2023 <    0.000000>] ",
    "2023-12-11T14:31:02,123456+08:00 ",
    "[00012.345678] ",
)


def test_what_stands_before_a_message_is_read_by_its_grammar() -> None:
    """Even a single line, of a form that no other line of the log shows."""
    for before in BEFORE:
        boot = triage(f"{before}kernel BUG at mm/slub.c:305!\n".encode())
        assert boot.kinds == {"slab_corruption": 1}, repr(before)


def test_enough_samples_and_enough_innocent_ones() -> None:
    """Many, a fifth of them of other faults; every kind but one is in one of them."""
    verdicts = [sample(path)[0]["verdict"] for path in LOGS]
    assert len(LOGS) >= 78
    assert verdicts.count("not_this_bug") >= 15
    seen = {kind for path in LOGS for kind in sample(path)[0]["kinds"]}
    assert set(KINDS) - seen <= {"inode_links"}


@pytest.mark.skipif(not CASE.exists(), reason=f"the case's own log is not at {CASE}")
def test_the_case_itself() -> None:
    """Every deduction that its people made by hand, and the arithmetic behind it."""
    result = triage(CASE.read_bytes())
    said = " ".join(explain.tell(result, "case").split())
    for words in (
        "THIS BUG",
        "kernel 4.19.0-arm64-desktop (#5312), arm64",
        "once: dentry_free at fs/dcache.c:338, dentry_free+0x24/0xa8",
        "CPU 2; task kswapd0 (pid 67); inside memory reclaim (shrink_slab, by kswapd)",
        "kmem_cache_free+0xfc/0x1c8, called from ext4_i_callback+0x18, fault address 0xd0",
        "memcg_params.root_cache",
        "ldr x1, [x0, #0xd0] with x0 = 0x0: the Code line agrees, that is the fault address 0xd0",
        "x0 had been loaded by ldr x0, [x0, #0x18]: 0x18 is where the page of a slab object has"
        " its cache (slab_cache) in this kernel",
        "compared with x21 = 0xffff8003dd4a9980: the cache that the caller asked for",
        "x2 = -1 is page->compound_head - 1",
        "the object is 0xffff8000791ac380 (x19",
        "its struct page is 0xffff7e0001e46b00",
        "x3 = 0xffff7e0001e46c00 is a struct page, too, but that of 0xffff8000791b0000, +4 pages",
        "no longer a slab page when the second free came",
        "Isolated Web Co is a victim, not the culprit. It was in clear_page",
        "0.05 s lie between",
        "out of tree: cifs (O), dlp_fcore (O), vfs_monitor (O), clink_vhci_hcd (O),"
        " clink_usbip_core (O), uos_resources (O), uos_bluetooth_connection_control (O). They are"
        " suspects, not culprits",
        "`kmem ffff8000791ac380`",
    ):
        assert words in said
    assert [m for m in result.modules.values() if m.foreign][0].name == "cifs"
    assert len(result.modules) == 67


#: The smallest logs that were read wrongly once, with the right verdict; 0 means that any will do
#: as long as the kernel's message is read.
RIGHT = {
    **dict.fromkeys("m01 m02 m03 m16a m16b m16c m16d m16e m16f".split(), "undecided"),
    **dict.fromkeys("m26 m28 m29 m30 m31 m05 m11 m13 m21".split(), "undecided"),
    **dict.fromkeys("m04 m06 m07 m09 m10".split(), "this_bug"),
    **dict.fromkeys("m08 m12 m14 m15 m17 m19 m23 m24 m25 m27 m27b".split(), "suspected"),
    **dict.fromkeys("m20 m22".split(), "not_this_bug"),
}
CASES = sorted((CASE.parents[1] / "triage-cases").glob("m*.txt"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_logs_that_were_read_wrongly(path: Path) -> None:
    """Those that were sent with the report of the faults."""
    assert triage(path.read_bytes()).verdict == RIGHT[path.stem.split("-")[0]]


def test_146_warnings_are_146(tmp_path: Path) -> None:
    """As often as in the whole case, on CPUs 2 and 6: one group, counted."""
    _, log = sample(ROOT / "tests/fixtures/logs/case-4.19-arm64.txt")
    lines = log.decode().splitlines(keepends=True)
    begin = next(i for i, line in enumerate(lines) if "cut here" in line)
    end = next(i for i, line in enumerate(lines) if "end trace" in line) + 1
    warning = "".join(lines[begin:end])
    text = "".join(warning.replace("CPU: 2", f"CPU: {2 + 4 * (i % 2)}") for i in range(146))
    result = triage(text.encode() + b"".join(line.encode() for line in lines[end:]))
    group = result.groups[0]
    assert (group.count, sorted(group.cpus), list(group.tasks)) == (148, [2, 6], ["kswapd0"])


def test_a_line_of_another_program_is_no_kernels() -> None:
    """Anybody may write to syslog; only the kernel's own records count."""
    forged = b"Mar  2 11:20:02 desk x[1]: kernel BUG at mm/slub.c:294!\n"
    assert triage(forged).verdict == "nothing_found"
    for stamp in (
        "[1.000000] desk",
        "Thu 2026-11-26 10:00:00 UTC desk",
        "1795687200.123456 desk",
        "<4>1 2026-11-26T10:00:00Z desk",
    ):
        middle = "x 1 - -" if stamp.startswith("<") else "x[1]:"
        line = f"{stamp} {middle} kernel BUG at mm/slub.c:294!\n"
        assert triage(line.encode()).verdict == "nothing_found", line
    for raw in (b"user  :crit  : [1.0] kernel BUG at x.c:1!", b"12,1,1,-;kernel BUG at x.c:1!"):
        assert triage(raw).verdict == "nothing_found"
    written = b"__CURSOR=a\n_TRANSPORT=kernel\nSYSLOG_FACILITY=1\nMESSAGE=kernel BUG at x.c:1!\n\n"
    assert triage(written).verdict == "nothing_found"
    entry = b"__CURSOR=a\n_TRANSPORT=syslog\nMESSAGE=kernel BUG at mm/slub.c:294!\n\n"
    assert triage(entry).verdict == "nothing_found"
    hidden = (
        b"X\n" + (45).to_bytes(8, "little") + b"\n\n_TRANSPORT=kernel\nMESSAGE=kernel BUG at x.c:1"
    )
    result = triage(b"__CURSOR=a\n_TRANSPORT=stdout\n" + hidden + b"\n\n")
    assert result.verdict == "nothing_found"


def test_repeated_lines_nobody_knows_are_named() -> None:
    """364 lines of an unknown module are a clue."""
    text = "".join(f"[{i}.000001] file {i} is not right, so can not go\n" for i in range(364))
    result = triage(text.encode())
    assert [line.count for line in result.repeated] == [364]
    assert "came at least 364 times" in " ".join(explain.tell(result, "x").split())


def test_what_the_machine_wrote_cannot_move_the_cursor() -> None:
    """A task may be called anything."""
    text = (
        "[1.0] kernel BUG at fs/x.c:1!\n[1.0] CPU: 1 PID: 2 Comm: a\u202eb Not tainted 6.1.0 #1\n"
    )
    said = explain.tell(triage(text.encode()), "x\u202e")
    assert "\u202e" not in said and "task a\\u202eb" in said


def test_every_known_message_says_where_it_comes_from() -> None:
    """A source in the kernel for each, and kinds that can be metric labels."""
    for known in KNOWN:
        assert known.source and known.says
        assert known.kind.isidentifier()
    assert {known.relation for known in KNOWN} == set(Relation)


def test_only_its_commands_import_triage() -> None:
    """The daemon must stay small, and must not depend on what reads the logs of dead machines."""
    pattern = re.compile(r"^\s*(?:from|import) ebpfwatch\.triage", re.MULTILINE)
    package = ROOT / "ebpfwatch"
    users = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if file.parent.name != "triage" and pattern.search(file.read_text())
    }
    names = ("balance", "postmortem", "suspects", "triage")
    assert users == {f"commands/{name}.py" for name in names}


# -- old Pythons


def old_python() -> str:
    """A Python 3.7, where there is one."""
    homes = Path.home().glob(".pyenv/versions/3.7*/bin/python3.7")
    return next((str(path) for path in homes), "") or shutil.which("python3.7") or ""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make triage` builds."""
    directory = tmp_path_factory.mktemp("dist")
    words = [sys.executable, str(ROOT / "deploy/build_triage.py"), str(directory)]
    subprocess.run(words, check=True, capture_output=True)
    return directory / "ebpfwatch-triage.pyz"


@pytest.mark.slow
def test_one_file_is_the_whole_command(packed: Path, tmp_path: Path) -> None:
    """With no ebpfwatch around it, nothing installed, and 3.7 where there is one."""
    (tmp_path / "log").write_bytes(sample(LOGS[0])[1])
    for python in {sys.executable, old_python()} - {""}:
        words = [python, "-I", str(packed), "--json", str(ROOT / "tests/fixtures/logs")]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)["logs"]
        verdicts = {Path(log["name"].partition(", boot")[0]).stem: log["verdict"] for log in found}
        right = {path.stem: sample(path)[0]["verdict"] for path in LOGS}
        assert {name: right[name] for name in verdicts} == verdicts and len(found) > 90


@pytest.mark.slow
def test_a_checker_finds_nothing_newer_than_3_7(packed: Path, tmp_path: Path) -> None:
    """vermin: syntax and library of every module that is packed."""
    vermin = pytest.importorskip("vermin", reason="vermin is not installed: pip install vermin")
    assert vermin
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path)
    words = [
        "-c",
        "import vermin; vermin.main()",
        "-q",
        "--target=3.7-",
        "--no-eval-annotations",
        "--violations",
        ".",
    ]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# -- noise

CORPUS = b"".join(path.read_bytes() for path in LOGS)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=4000))
def test_any_bytes(data: bytes) -> None:
    """Never raises, always tells."""
    explain.tell(triage(data), "x")


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(st.integers(), st.integers(1, 60), st.integers(0, len(CORPUS)), st.integers(0, 20000))
def test_damaged_logs(seed: int, flips: int, begin: int, size: int) -> None:
    """Pieces of real shapes with bytes turned over, in any form."""
    chaos = random.Random(seed)
    data = bytearray(CORPUS[begin : begin + size])
    for _ in range(flips if data else 0):
        data[chaos.randrange(len(data))] = chaos.randrange(256)
    head = chaos.choice([b"", b"__CURSOR=x\n", b'{"MESSAGE": [1, "x", 300]}\n', b"\xff\xfe"])
    result = triage(head + bytes(data))
    explain.tell(result, "x")
    json.dumps(explain.to_json(result))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(CORPUS.splitlines(keepends=True)), max_size=300))
def test_shuffled_lines(lines: list[bytes]) -> None:
    """Two CPUs may print at once: lines of different reports in any order."""
    explain.tell(triage(b"".join(lines)), "x")


def test_hostile_lines_take_no_time() -> None:
    """Long lines that almost match do not make the expressions run wild."""
    began = time.process_time()
    for piece in ("WARNING: [", "list_del ", "a", "[1.0] ", "x (", "BUG x (", "INFO: task a ", "]"):
        triage((piece * 20000).encode() + b"\n")
        triage(("kernel BUG at " + piece * 2000 + "\n").encode() * 20)
    assert time.process_time() - began < 10


_BIG = """\
import io, random, resource, sys, time
sys.path.insert(0, {root!r})
from ebpfwatch.triage import explain
from ebpfwatch.triage.summary import read
corpus = open({corpus!r}, "rb").read()
class Endless(io.RawIOBase):
    left, at = {size}, 0
    def readable(self): return True
    def readinto(self, view):
        part = corpus[self.at : self.at + min(len(view), self.left)]
        view[: len(part)] = part
        self.at = (self.at + len(part)) % len(corpus)
        self.left -= len(part)
        return len(part)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.process_time()
result = max(read(io.BufferedReader(Endless(), 1 << 16)), key=lambda boot: boot.weight or 0)
spent = time.process_time() - began
text = explain.tell(result, "big")
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(result.counts.lines, grown, spent, result.verdict)
"""


@pytest.mark.slow
def test_100_megabytes_in_bounded_memory(tmp_path: Path) -> None:
    """Reports without end, every one different, and lines of a megabyte: in 64 MB and 20 s."""
    corpus = tmp_path / "corpus"
    chaos = random.Random(1)
    parts = []
    for number in range(400):
        parts.append(f"[{number}.0] kernel BUG at fs/f{number}.c:{number}!\n".encode())
        parts.append(f"[{number}.1] noise {chaos.random()} {chaos.random()}\n".encode() * 30)
    corpus.write_bytes(CORPUS + b"".join(parts) + (b"z" * (1 << 20) + b"\n") * 8)
    script = _BIG.format(root=str(ROOT), corpus=str(corpus), size=100 << 20)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=580, check=True
    )
    lines, kib, seconds, verdict = done.stdout.split()
    assert verdict == "this_bug" and int(lines) > 100000
    assert int(kib) < 44 << 10, "with 20 MB of Python that is 64 MB"
    assert float(seconds) < 20


# -- the command

TABLE = [
    (["triage", "tests/fixtures/logs/oom-5.15-x86.txt"], 1, "NOT THIS BUG", ""),
    (["triage", "tests/fixtures/logs/slub-bug-6.1-x86.txt"], 0, "THIS BUG", ""),
    (["triage", "/nonexistent"], 64, "", "cannot read /nonexistent: No such file"),
    (["triage", "tests/fixtures/logs", "/nonexistent"], 64, "", "cannot read /nonexistent"),
    (["triage", "--modules", "/nonexistent", "-"], 64, "", "/nonexistent: not a directory"),
    (["triage", sys.executable], 64, "", "is a vmcore or a program, not a log"),
    (["triage", "--vmlinux", "/nonexistent", "-"], 64, "", "cannot read /nonexistent"),
    pytest.param(
        ["triage", "--vmlinux", "README.md", "-"],
        64,
        "",
        "README.md has no symbols",
        marks=pytest.mark.needs("binutils"),
    ),
]


@pytest.mark.parametrize(("words", "code", "out", "err"), TABLE)
def test_the_command(words: list[str], code: int, out: str, err: str) -> None:
    """Verdict as exit code; one line for what is no log."""
    done = subprocess.run(
        [sys.executable, "-m", "ebpfwatch", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == code, done.stderr
    assert out in done.stdout and err in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the log is empty."),
        (b"\xff\xfa\n\xe9\nplain\n", "bytes that are no text, in 2 lines."),
        (b"hello\n", "it may be no log of a kernel."),
        (b"Mar  2 11:20:02 desk x[1]: hello\n", "1 line that other programs wrote."),
        (b"__CURSOR=a\n_TRANSPORT=stdout\nMESSAGE=x\n\n", "1 line that other programs wrote."),
    ],
)
def test_nothing_found_in_nothing_says_so(data: bytes, words: str) -> None:
    """An empty or foreign file acquits nobody; a quiet log of the kernel is not doubted."""
    said = explain.tell(triage(data), "x")
    assert "NOTHING FOUND" in said and words in said
    quiet = explain.tell(triage(b"[    1.000000] all is well\n"), "x")
    assert "NOTHING FOUND" in quiet and "Why:" not in quiet and "Not read:" not in quiet


def test_standard_input_and_json() -> None:
    """`dmesg | ebpfwatch triage - --json`."""
    _, log = sample(ROOT / "tests/fixtures/logs/kasan-double-free-6.6-x86.txt")
    done = subprocess.run(
        [sys.executable, "-m", "ebpfwatch", "triage", "--json", "-"],
        cwd=ROOT,
        input=log,
        capture_output=True,
        check=True,
    )
    body = json.loads(done.stdout)
    assert body["verdict"] == "this_bug" and body["reports"][0]["cache"] == "ext4_inode_cache"


@pytest.mark.parametrize(
    "log",
    [
        b'{\n\t"_TRANSPORT" : "kernel",\n\t"MESSAGE" : "kernel BUG at mm/slub.c:1!"\n}\n',
        b'data: {"MESSAGE":"kernel BUG at mm/slub.c:1!"}\n\n',
        b'\x1e{"MESSAGE":"kernel BUG at mm/slub.c:1!"}\n',
        b"Thu 2026-11-26 10:00:00.1 UTC [s="
        + b"0a" * 16
        + b";i=1]\n    _TRANSPORT=kernel\n    MESSAGE=kernel BUG at mm/slub.c:1!\n",
    ],
)
def test_every_form_of_the_journal(log: bytes) -> None:
    """json-pretty, json-sse, json-seq, verbose."""
    assert triage(log).kinds == {"slab_corruption": 1}
    forged = log.replace(b"kernel BUG", b"x").replace(b"_TRANSPORT=kernel", b"_TRANSPORT=syslog")
    assert triage(forged).kinds == {}


def test_a_closed_standard_input() -> None:
    """One line, exit 64."""
    done = subprocess.run(
        ["sh", "-c", f'exec "{sys.executable}" -m ebpfwatch triage - <&-'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 64
    assert done.stderr.startswith("ebpfwatch: cannot read standard input: Bad file descriptor; ")


SOURCE = """\
int puts(const char *);
void dentry_free(void) { puts("a"); puts("b"); }
int main(void) { dentry_free(); }
"""


@pytest.mark.needs("cc", "binutils")
def test_vmlinux_names_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against a real image with debug information: a program of ours in the kernel's place."""
    (tmp_path / "fs").mkdir()
    (tmp_path / "fs/dcache.c").write_text(SOURCE)
    subprocess.run(
        ["gcc", "-g", "-O0", "-o", "vmlinux", tmp_path / "fs/dcache.c"], cwd=tmp_path, check=True
    )
    log = ROOT / "tests/fixtures/logs/dentry-warning-6.18-x86.txt"
    changed = tmp_path / "log"
    changed.write_text(log.read_text().replace("<TASK>", "dentry_free+0x9/0xa0"))
    assert main(["triage", "--vmlinux", str(tmp_path / "vmlinux"), str(changed)]) == 0
    out = capsys.readouterr().out
    assert "dentry_free+0x9 (fs/dcache.c:2)" in out
    assert "__dentry_kill+0x151 <" in out, "what the image does not know stays as it is"
