"""The guests: their judges judge strictly, and what they are made of is whole or not there."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.trust.figures import between
from tests.unit.test_verdicts import judged
from tests.vm import kernels
from tests.vm.guest import Outcome, held_up, kept
from tests.vm.judge import Row, untold
from tests.vm.leads import leads
from tests.vm.moments import Moments, moments
from tests.vm.places import PLACES, places
from tests.vm.scenarios import SCENARIOS, Scenario
from tests.vm.store import making
from tests.vm.table import sections, table

ROOT = Path(__file__).parents[2]

_PRINTED = (
    "[48.6] rm-1248  0d.s3 48645135us : 0x00000000: ebpfwatch verdict=3 ino=12 obj=ffff800038a0\n"
    "[48.6] rm-1248  0d.s3 48645135us : 0x00000000: ebpfwatch caller=ffff0000 gen=7 dev=fe00003\n"
)
_FIRST = "[   48.6] rm-1248  0d.s3 48645135us : 0x0: ebpfwatch first pid=9 caller=ffff0008\n"


def _outcome(directory: Path, console: str) -> Outcome:
    return Outcome(None, True, 1.0, directory, console)


def test_a_printed_verdict_without_the_first_context_is_not_whole(tmp_path: Path) -> None:
    printed = places(_outcome(tmp_path, _PRINTED), "double_free")
    assert printed == {PLACES[0]: "the first context"}
    assert places(_outcome(tmp_path, _PRINTED + _FIRST), "double_free") == {PLACES[0]: ""}


def test_another_verdict_is_no_place(tmp_path: Path) -> None:
    assert places(_outcome(tmp_path, _PRINTED + _FIRST), "double_destroy") == {}


def test_a_finding_on_disk_must_name_both(tmp_path: Path) -> None:
    finding = judged()
    files = tmp_path / "state/findings"
    files.mkdir(parents=True)
    alone = dataclasses.replace(finding, first=None, evicted_by=None, destroyed_by=None)
    (files / "1.json").write_text(json.dumps(alone.to_json()))
    verdict = finding.verdict.value
    assert places(_outcome(tmp_path, ""), verdict) == {PLACES[3]: "the first context"}
    (files / "2.json").write_text(json.dumps(finding.to_json()))
    assert places(_outcome(tmp_path, ""), verdict) == {PLACES[3]: ""}


def _said(what: str, ns: int) -> str:
    return f"[    9.1] crime: {what} object=ffff ino=12 generation=7 at={ns}\r\n"


def _told(ns: int, journal_ns: int) -> dict[str, object]:
    return {"verdict": "double_destroy", "ns": ns, "journal_ns": journal_ns}


def test_each_second_free_is_held_against_the_record_of_its_own_crime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second crime's record came 5 ms after its second free."""
    ms = 1_000_000
    console = _said("twice", 10 * ms) + _said("freed again", 40 * ms)
    console += _said("twice", 110 * ms) + _said("freed again", 130 * ms)
    told = [_told(111 * ms, 135 * ms), _told(11 * ms, 18 * ms)]
    monkeypatch.setattr("tests.vm.leads.journaled", lambda _: told)
    text, wrong = leads(_outcome(tmp_path, console))
    assert not wrong
    assert text == (
        "of 2 double destroys 2 told; in the journal before the second free 1; from the verdict to"
        " the second free 24.0 ms (from 19.0 to 29.0), to the journal's record 15.5 ms (from 7.0"
        " to 24.0)"
    )


def test_a_crime_that_was_not_told_is_no_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.vm.leads.journaled", lambda _: [])
    console = _said("twice", 10) + _said("freed again", 40)
    assert leads(_outcome(tmp_path, console))[1] == "1 committed, 0 told, 1 second frees"


def test_a_download_that_breaks_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    target = tmp_path / "kernels/6.12"
    with pytest.raises(OSError), making(target) as directory:
        directory.mkdir()
        (directory / "done").touch()
        raise OSError("the mirror went away")
    assert list(target.parent.iterdir()) == []


def test_a_process_killed_in_the_middle_is_no_obstacle(tmp_path: Path) -> None:
    """SIGKILL: nobody tidies up, and the next attempt finds the half of the one before."""
    target = tmp_path / "root.img"
    script = (
        "import os, pathlib, sys; from tests.vm.store import making\n"
        "with making(pathlib.Path(sys.argv[1])) as directory:\n"
        "    directory.mkdir(); (directory / 'half').touch(); os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(target)], cwd=ROOT)
    assert killed.returncode == -9
    assert [path.name for path in tmp_path.iterdir()] == ["root.img.partial"]
    with making(target) as partial:
        partial.write_text("whole")
    assert target.read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["root.img"]


def test_what_was_whole_stays_when_its_successor_breaks(tmp_path: Path) -> None:
    target = tmp_path / "root.img"
    target.write_text("whole")
    with pytest.raises(OSError), making(target) as partial:
        partial.write_text("half")
        raise OSError
    assert target.read_text() == "whole"


def test_the_kernel_package_is_fetched_again_after_a_broken_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """apt unpacked the image and then lost the mirror; the second time all comes."""
    asked = []

    def fetch(suite: str, packages: list[str], target: Path, arch: str) -> None:
        asked.append(suite)
        (target / "boot").mkdir(parents=True)
        (target / "boot/vmlinuz-6.12.1").touch()
        if len(asked) == 1:
            raise subprocess.CalledProcessError(100, "apt-get")
        headers = target / "usr/src/linux-headers-6.12.1"
        headers.mkdir(parents=True)
        (target / "lib/modules/6.12.1").mkdir(parents=True)
        (headers / "Makefile").write_text("include /usr/src/common/Makefile\n")

    monkeypatch.setattr(kernels, "CACHE", tmp_path)
    monkeypatch.setattr("tests.vm.store.CACHE", tmp_path)
    monkeypatch.setattr(kernels, "fetch", fetch)
    monkeypatch.setattr(kernels, "_initramfs", lambda *_: None)
    with pytest.raises(subprocess.CalledProcessError):
        kernels.kernel("6.12")
    found = kernels.kernel("6.12")
    assert asked == ["trixie", "trixie"]
    assert found.release == "6.12.1" and found.image.exists()
    assert found.headers is not None
    included = (found.headers / "Makefile").read_text().split()[1]
    assert included == str(tmp_path / "kernels/6.12/usr/src/common/Makefile")
    assert kernels.kernel("6.12") == found and len(asked) == 2


def _bring(directory: Path, name: str, config: str) -> None:
    headers = directory / name / "headers"
    headers.mkdir(parents=True)
    (headers / "Makefile").touch()
    (headers / ".config").write_text(config)
    image = gzip.compress(b"\0" * 64 + b"Linux version 4.19.78-test (gcc)")
    (directory / name / "Image.gz").write_bytes(image)


def test_a_kernel_that_was_brought_joins_the_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "BROUGHT", tmp_path)
    assert "no kernel 4.19 is in KERNELS_DIR" in kernels.absent("4.19")
    assert str(tmp_path) not in kernels.absent("4.19")  # it goes into the documentation
    assert kernels.names()[0] == "4.19"
    _bring(tmp_path, "4.19", "CONFIG_SMP=y\n")
    _bring(tmp_path, "5.4-btf", "CONFIG_DEBUG_INFO_BTF=y\n")
    (tmp_path / "notes").mkdir()
    assert kernels.brought() == ("4.19", "5.4-btf")
    assert not kernels.absent("4.19") and kernels.absent("notes")
    old, new = kernels.kernel("4.19"), kernels.kernel("5.4-btf")
    assert (old.name, old.release, old.needs_headers) == ("4.19", "4.19.78-test", True)
    assert not new.needs_headers


def test_the_pages_size_stands_in_the_images_header(tmp_path: Path) -> None:
    for kib, flags in ((4, 0b1010), (16, 0b1100), (64, 0b1110)):
        image = tmp_path / f"Image-{kib}"
        image.write_bytes(bytes(24) + flags.to_bytes(8, "little") + bytes(32))
        assert kernels.page_kib(image) == kib


@pytest.mark.slow
def test_what_a_process_waits_for_a_cpu_is_told_from_what_it_sleeps() -> None:
    """Six that compute on one CPU have a sixth of it each; one that sleeps is held up by nobody."""
    busy = ["taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable, "-c"]
    words = [[*busy, "while True: pass"]] * 6 + [["sleep", "60"]]
    processes = [subprocess.Popen(word) for word in words]
    try:
        time.sleep(1)  # they have begun
        before = [held_up(process.pid) for process in processes]
        time.sleep(2)
        delays = [held_up(p.pid) - earlier for p, earlier in zip(processes, before)]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert max(delays[:-1]) > 1 and delays[-1] < 0.1
    assert held_up(processes[0].pid) == 0  # it has ended


def test_what_did_not_run_is_on_the_page_with_its_reason() -> None:
    page = table([], {"4.19": "no kernel 4.19", "6.12 loads": "TimeoutError"})
    assert "| 4.19 | no kernel 4.19 |" in page and "| 6.12 loads | TimeoutError |" in page
    assert "What did not run" not in table([], {})


def _cause(ns: int, log: float, ino: int = 12) -> str:
    return f"[   {log:.6f}] cause: iput_open object=ffff ino={ino} at={ns}\r\n"


def test_mistake_verdict_and_the_kernels_first_word_are_on_one_clock(tmp_path: Path) -> None:
    """The kernel's log runs 5 s behind CLOCK_MONOTONIC; what it said before the mistake is old."""
    finding = dict(judged().to_json(), verdict="evicted_in_use", ns=100_250_000_000)
    finding["identity"] = dict(finding["identity"], ino=12)
    (tmp_path / "state/findings").mkdir(parents=True)
    (tmp_path / "state/findings/1.json").write_text(json.dumps(finding))
    console = "[   90.000000] WARNING: CPU: 0 PID: 1 at fs/old.c:1 old\r\n"
    console += _cause(100_000_000_000, 95.0)
    console += "[   95.750000] WARNING: CPU: 0 PID: 1 at fs/dcache.c:338 dentry_free\r\n"
    found = moments(_outcome(tmp_path, console), ("evicted_in_use",))
    assert (found.told_ms, found.word_ms, found.ino, found.victim) == (250.0, 500.0, 12, 12)
    assert moments(_outcome(tmp_path, console), ("unlocked_unlink",)).told_ms is None
    assert moments(_outcome(tmp_path, ""), ("evicted_in_use",)).mistake_ns is None


def test_what_only_an_armed_hook_told_is_not_told_by_default(tmp_path: Path) -> None:
    """iput's hook speaks first; the eviction's before the kernel's word, or after it."""
    (tmp_path / "state/findings").mkdir(parents=True)
    for number, (verdict, ns) in enumerate(
        [("put_without_reference", 100_100_000_000), ("evicted_in_use", 100_250_000_000)]
    ):
        finding = dict(judged().to_json(), verdict=verdict, ns=ns)
        (tmp_path / f"state/findings/{number}.json").write_text(json.dumps(finding))
    verdicts = ("put_without_reference", "evicted_in_use")
    for word, default in (("95.750000", 250.0), ("95.200000", None)):
        console = _cause(100_000_000_000, 95.0) + f"[   {word}] kernel BUG at fs/inode.c:1563!\r\n"
        found = moments(_outcome(tmp_path, console), verdicts)
        assert (found.verdict, found.told_ms) == ("put_without_reference", 100.0)
        assert found.default_ms == default


def test_a_verdict_in_the_dumped_trace_buffer_has_a_moment_too(tmp_path: Path) -> None:
    console = _cause(50_000_000_000, 48.0) + _PRINTED
    found = moments(_outcome(tmp_path, console), ("double_free",))
    assert found.told_ms is not None and round(found.told_ms) == 645


@pytest.mark.parametrize(
    ("told", "word", "why"),
    [
        (None, None, "not told"),
        ((12, 5), 9, ""),
        ((12, 5), None, ""),
        ((12, 9), 5, "told after the kernel's first word"),
        ((13, 5), 9, "the wrong object: inode 13 instead of 12"),
    ],
)
def test_a_mistake_is_told_of_the_right_object_before_the_kernel_speaks(
    told: tuple[int, int] | None, word: int | None, why: str
) -> None:
    scenario = Scenario("cause:x", "", "cause", ("x",), causes=("evicted_in_use",))
    ino, ns = told or (0, None)
    when = Moments(1, 12, "evicted_in_use" if told else "", ino, ns, word)
    assert untold(scenario, [], when) == why
    assert untold(scenario, [], Moments()) == "the mistake was not made"


def test_each_mistake_of_the_module_has_a_scenario_and_a_script() -> None:
    module = (ROOT / "tests/vm/modules/causes.c").read_text()
    made = set(re.findall(r'^\t\{ "(\w+)", ', module, re.MULTILINE))
    script = (ROOT / "tests/vm/scripts/cause.sh").read_text()
    prepared = set(re.findall(r"\w+", " ".join(re.findall(r"^([\w |]+)\)", script, re.MULTILINE))))
    scenarios = {s.arguments[0] for s in SCENARIOS if s.script == "cause"}
    assert made == scenarios == prepared


def test_a_part_of_the_matrix_rewrites_its_part_of_the_page(tmp_path: Path) -> None:
    """A mistake's row goes between its marks on the page as it is in docs/, the rest stays."""
    row = Row(
        *("6.12", "6.12.1", "cause:iput_open", "iput() too often", ["evicted_in_use"]),
        *({}, True, None, None, None, "silent", "", True, "", 3100.0, None, 3200.0),  # type: ignore[arg-type]
    )
    page = tmp_path / "detection.md"
    page.write_text((ROOT / "docs/detection.md").read_text())
    before = page.read_text()
    parts = {mark: text for mark, text in sections([row], {}).items() if text}
    assert list(parts) == ["mistakes"]
    between(page, "mistakes", parts["mistakes"])
    line = "| 6.12.1 | iput() too often | evicted_in_use | 3100 ms |  | 3200 ms |  | yes | silent |"
    assert line in page.read_text()
    outside = re.compile(r"<!-- mistakes -->.*<!-- /mistakes -->", re.DOTALL)
    assert outside.sub("", page.read_text()) == outside.sub("", before)
    for mark in sections([], {}):
        assert before.count(f"<!-- {mark} -->") == 1


def test_legal_work_is_counted_over_all_guests() -> None:
    """What scripts/sums.py prints, a line for each guest; the last line is their sum."""
    figures = (
        "9 files\nevicted 1000 in_reclaim 5 freed 999 missed 1 forgotten 0 torn 0"
        " unlinked 800 dentries 2000 put 3000 closed 4000"
    )
    row = Row(
        *("6.12", "6.12.1", "legal-load", "", [], {}, False, None, None, None),
        *("silent", figures, True, ""),
        minutes=5,
    )
    other = dataclasses.replace(row, release="6.1.1", ok=False, why="2 double_free")
    lines = sections([row, other], {})["legal"].splitlines()[-3:]
    numbers = "1000 | 5 | 999 | 1 | 0 | 0 | 800 | 2000 | 3000 | 4000"
    assert lines[0] == f"| 6.12.1 | legal-load | 5 | {numbers} | 0 |"
    assert lines[1] == f"| 6.1.1 | legal-load | 5 | {numbers} | 2 double_free |"
    numbers = "2000 | 10 | 1998 | 2 | 0 | 0 | 1600 | 4000 | 6000 | 8000"
    assert lines[2] == f"| all | guests: 2 | 10 | {numbers} | 1 |"


def test_a_guest_that_did_not_get_ready_is_not_taken_again(tmp_path: Path) -> None:
    """What says that it got ready is written last."""
    kernel = kernels.Kernel("6.12", "6.12.1", tmp_path)
    (tmp_path / "console").write_text("guest: ready")
    (tmp_path / "memory").write_text("half")
    assert kept(kernel, tmp_path) is None
    (tmp_path / "seconds").write_text("381")
    ready = kept(kernel, tmp_path)
    assert ready is not None and (ready.seconds, ready.console) == (381, "guest: ready")
