"""Files, journal fields, the report's text, the exposition, the server."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from ebpfwatch.catalogue.counters import LOSSES
from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.commands import main
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.host.process import Process
from ebpfwatch.kernel.hook import LoadedHook
from ebpfwatch.kernel.state import KernelState, TableFill
from ebpfwatch.kernellog.known import KINDS
from ebpfwatch.sinks import journal, kmsg, metrics, store, text
from ebpfwatch.sinks.status import BootState, Proofs, Status
from ebpfwatch.text.printable import printable
from ebpfwatch.verdicts.early import Early
from ebpfwatch.verdicts.finding import Finding, Moment
from tests.unit.host import fixture
from tests.unit.test_verdicts import judged

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/metrics.txt"

KERNEL = KernelState(
    hooks=(
        LoadedHook("evict", "raw_tracepoint", "ext4_evict_inode"),
        LoadedHook("any_free", "raw_tracepoint", "kmem_cache_free", costs="runs on every free"),
        LoadedHook("destroy", reason="no kprobes <here>"),
        LoadedHook("reclaim", "raw_tracepoint", "mm_shrink_slab_start"),
    ),
    misses={"any_free": 7},
    events={"evict": 10, "free": 9},
    grace_log2=(0, 2, 7),
    grace_sum_ns=25_000,
    table_slots=64,
    table=TableFill(1, 3),
    horizon_seconds=2.5,
    memory_bytes=6_000_000,
)
STATUS = Status(
    started=1_700_000_000.0,
    ready=True,
    kernel=KERNEL,
    losses={"free_missed": 1},
    proofs=Proofs({"evict": True, "any_free": False, "reclaim": None}, {"/": 1_700_000_001.0}),
    boot=BootState({("double_free", "confirmed", False): 2}, last_boot="panic"),
    sink_errors={"store": 1},
    host=fixture("4.19"),
    rss_bytes=28_000_000,
)


def exposition() -> str:
    """One scrape of STATUS, without what differs between machines."""
    scrape = generate_latest(metrics.registry(lambda: STATUS)).decode()
    return re.sub(r'(kernel|machine|version)="[^"]*"', r'\1="x"', scrape)


def test_the_exposition_is_the_golden_one() -> None:
    """Byte for byte: a renamed metric is visible in review. `make golden` rewrites it."""
    if os.environ.get("EBPFWATCH_GOLDEN"):
        GOLDEN.write_text(exposition())
    assert exposition() == GOLDEN.read_text()


@pytest.mark.needs("promtool")
def test_promtool_finds_nothing() -> None:
    """Names, types and help by Prometheus's own linter."""
    linted = subprocess.run(
        ["promtool", "check", "metrics"], input=exposition(), capture_output=True, text=True
    )
    assert (linted.returncode, linted.stdout + linted.stderr) == (0, "")


def test_every_sink_that_counts_errors_is_a_series() -> None:
    """What the delivery counts is what the metric enumerates."""
    source = (ROOT / "ebpfwatch/daemon/delivery.py").read_text()
    assert set(metrics.SINKS) == set(re.findall(r'^ {12}"(\w+)": ', source, re.MULTILINE))


def test_every_series_exists_from_the_start() -> None:
    """All verdicts, confidences and losses at 0, so that rate() works from the first event."""
    scrape = generate_latest(metrics.registry(lambda: Status(started=0))).decode()
    series = re.findall(r"(?m)^ebpfwatch_findings_total\{.*\} 0\.0$", scrape)
    assert len(series) == len(Verdict) * 3 * 2
    lost = len(re.findall(r"(?m)^ebpfwatch_lost_events_total\{.*\} 0\.0$", scrape))
    assert lost == len(LOSSES)
    said = len(re.findall(r"(?m)^ebpfwatch_kernel_log_events_total\{.*\} 0\.0$", scrape))
    assert said == len(KINDS)


def findings(count: int) -> list[Finding]:
    """That many, oldest first."""
    return [dataclasses.replace(judged(), id=f"20260101T00000{n}.0Z-{n:04x}") for n in range(count)]


def test_the_store_keeps_the_newest(tmp_path: Path) -> None:
    """At most `keep`, whole, newest first, readable by root only."""
    kept = store.Store(tmp_path, keep=3)
    for finding in findings(5):
        kept.write(finding)
    bodies = list(store.read_all(tmp_path))
    assert [body["id"] for body in bodies] == [f.id for f in reversed(findings(5)[2:])]
    assert Finding.from_json(bodies[0]) == findings(5)[-1]
    for path in (tmp_path / "findings").iterdir():
        assert path.stat().st_mode & 0o077 == 0


def test_damaged_files_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `report` shows is whole; that there is more than it shows is said."""
    kept = store.Store(tmp_path, keep=9)
    for finding in findings(3):
        kept.write(finding)
    newest, *_ = sorted((tmp_path / "findings").iterdir(), reverse=True)
    newest.write_bytes(newest.read_bytes()[:700])
    assert main(["report", "--json", "--from", "files", "--state-directory", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2
    assert f"files that hold no finding, or half of one: 1; the first: {newest.name}" in said.err


@pytest.mark.needs("root")  # to become somebody else
def test_a_journal_that_is_closed_is_not_an_empty_one() -> None:
    """Exit 77 for who may not read root's records; nothing at all for root."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        machine = Path(directory) / "0123"
        machine.mkdir()
        machine.chmod(0o755)  # not by mkdir: a test before may have left the umask of `run`
        (machine / "system.journal").touch(mode=0o640)
        journal.refuse_closed((directory, "/nonexistent"))
        script = (
            "import os\n"
            "from ebpfwatch.sinks import journal\n"  # before: the checkout may be root's
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            f"journal.refuse_closed([{directory!r}])\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
        )
    assert f"cannot read {machine}/system.journal: Permission denied; run it as root" in done.stderr


def test_leftovers_and_garbage_do_no_harm(tmp_path: Path) -> None:
    """Half a file of a killed daemon goes away; what is no finding is passed over."""
    directory = tmp_path / "findings"
    directory.mkdir()
    (directory / ".writing-x").write_text("{")
    (directory / "a.json").write_text("{")
    (directory / "b.json").write_text("[]")
    (directory / "c.json").symlink_to("/etc/passwd")
    os.mkfifo(directory / "d.json")  # would keep a reader waiting for ever
    (directory / "e.json").mkdir()
    with open(directory / "f.json", "wb") as file:
        file.truncate(1 << 36)  # would fill memory
    store.Store(tmp_path, keep=10)
    other: list[str] = []
    assert list(store.read_all(tmp_path, other)) == []
    assert other == [f"{name}.json" for name in "fedcba"]
    assert not (directory / ".writing-x").exists()
    assert list(store.read_all(tmp_path / "none")) == []


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a full disk: the error is the caller's, the directory stays clean."""
    kept = store.Store(tmp_path, keep=10)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        kept.write(judged())
    assert os.listdir(tmp_path / "findings") == []


def test_a_state_directory_that_is_a_file(tmp_path: Path) -> None:
    """Exit 73 and the path."""
    (tmp_path / "x").write_text("")
    with pytest.raises(EbpfwatchError, match="findings") as raised:
        store.Store(tmp_path / "x", keep=1)
    assert raised.value.exit_code is Exit.CANTCREAT


def test_the_catalog_uses_only_fields_that_are_sent() -> None:
    """`journalctl -x` fills them in."""
    catalog = (ROOT / "deploy/ebpfwatch.catalog").read_text()
    used = set(re.findall(r"@(\w+)@", catalog))
    early = journal.early_fields(Early(("pressure", "burst", "precursor")))
    assert f"-- {early['MESSAGE_ID']}\n" in catalog
    assert used <= {*journal.fields(judged()), *early}


def test_journal_fields_are_structured() -> None:
    """One field a fact; a test is no CRIT."""
    record = journal.fields(judged())
    assert record["EBPFWATCH_VERDICT"] == "double_free"
    assert (record["EBPFWATCH_INODE"], record["PRIORITY"]) == ("42", "2")
    assert json.loads(record["EBPFWATCH_JSON"])["identity"]["ino"] == 42
    assert record["MESSAGE"].splitlines()[0] == judged().headline
    assert "What to do:" in record["MESSAGE"]
    test = journal.fields(dataclasses.replace(judged(), test=True))
    assert (test["PRIORITY"], test["EBPFWATCH_TEST"]) == ("5", "1")


def test_without_journald_findings_go_to_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said once on stderr; one JSON line a finding."""
    sink = journal.Journal(tmp_path / "no-socket", "auto")
    sink.write(judged())
    sink.write(judged())
    out, err = capsys.readouterr()
    assert err.count("no journald") == 1
    assert [json.loads(line)["verdict"] for line in out.splitlines()] == ["double_free"] * 2
    journal.Journal(tmp_path / "no-socket", "off").write(judged())
    assert capsys.readouterr() == ("", "")


def test_the_kernel_log_takes_ten_lines_at_once_and_the_rest_is_counted(tmp_path: Path) -> None:
    """More it would drop without an error."""
    (tmp_path / "kmsg").touch()
    log = kmsg.KernelLog(str(tmp_path / "kmsg"), "")
    for _ in range(13):
        log.write(judged())
    assert len((tmp_path / "kmsg").read_text().splitlines()) == 10
    assert log.errors == 3
    log._put_at[0] -= 6  # the first of them is old enough now
    log.write(judged())
    assert len((tmp_path / "kmsg").read_text().splitlines()) == 11 and log.errors == 3


def test_the_steps_of_one_tick_are_all_told() -> None:
    """An unlink and the eviction after it often have one time; who is in two roles is told once."""
    second = judged().second
    assert second is not None
    rm = dataclasses.replace(second, ns=second.ns - 9, comm="rm", stack=())
    shown = text.report(dataclasses.replace(judged(), first=rm, destroyed_by=rm, unlinked_by=rm))
    assert "First by rm" in shown and "Unlinked by rm" in shown
    assert "Queued for RCU by" not in shown
    evicted = dataclasses.replace(rm, stack=second.stack)
    assert "Evicted by rm" in text.report(
        dataclasses.replace(judged(), first=rm, evicted_by=evicted)
    )


def test_a_dump_without_its_time_of_day_is_not_of_1970() -> None:
    """The kernel's own clock then, and said."""
    unknown = dataclasses.replace(judged(), ns=12_500_000_000, realtime_us=12_500_000)
    shown = text.report(unknown)
    assert "12.500000 s after the boot (the time of day is not known)" in shown
    assert "1970" not in shown.replace(unknown.id, "")


def test_the_report_names_everything() -> None:
    """Verdict, confidence, reasons, inode, name, both actors, frames."""
    moment = Moment(judged().ns - 1_000_000_000, "reclaim evicted 9")
    process = Process("/usr/bin/browser", 7, "sh", "/user.slice/x.scope", "x.scope")
    second = judged().second
    assert second is not None
    shown = text.report(
        dataclasses.replace(
            judged(),
            second=dataclasses.replace(second, process=process),
            machine=(moment,),
            folded=3,
            path="/mnt/a/victim",
            device="vdb",
            mount="/mnt",
        )
    )
    for part in (
        "double_free",
        "confirmed",
        "not allocated since",
        "Inode: 42 generation 7 on 8:0",
        "on 8:0 (vdb), mounted on /mnt",
        "Path: /mnt/a/victim",
        "Most likely responsible: module evil (out-of-tree, unsigned)",
        "First on CPU 1 while ksoftirqd/1",
        "Now by browser (pid 13",
        "exe /usr/bin/browser",
        "parent sh (pid 7)",
        "unit x.scope",
        "evil_free+0x10 [evil] (OE)",
        "-1.000000 s  reclaim evicted 9",
        "3 more",
        "What to do:",
        "do not load module evil",
    ):
        assert part in shown, part


@given(st.text())
def test_plain_text_cannot_move_a_cursor(hostile: str) -> None:
    """One printable line, whatever the file was called."""
    shown = printable(hostile)
    assert len(shown.splitlines()) <= 1
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", shown)


def test_the_daemon_serves_without_openssl() -> None:
    """The page's imports leave ssl out, and a TLS server can still import it afterwards."""
    code = (
        "import sys\n"
        "from ebpfwatch.system.imports import absent, without\n"
        "with without('ssl'), absent('_hashlib'):\n"
        "    from ebpfwatch.sinks import metrics\n"
        "    from ebpfwatch.sinks.web import Web\n"
        "from ebpfwatch.sinks.web import page\n"
        'assert page.style_hash().startswith("\'sha256-")\n'
        "assert 'libcrypto' not in open('/proc/self/maps').read()\n"
        "import ssl, _hashlib\n"
        "assert ssl.create_default_context().minimum_version\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
