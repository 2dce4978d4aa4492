"""The judges of the guests judge strictly: a place that lacks a context is none."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from tests.unit.test_verdicts import judged
from tests.vm.guest import Outcome
from tests.vm.judge import Row
from tests.vm.places import PLACES, places
from tests.vm.survival import survival

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


def _lead(number: int, journal_ms: float | None, again: bool) -> Row:
    return Row(
        kernel="4.19",
        release="4.19.78",
        scenario=f"lead:{number:02}",
        what="",
        detected=["double_destroy confirmed"],
        places={},
        named=False,
        lead_ms=None,
        early_ms=None,
        journal_ms=journal_ms,
        freed_again=again,
        ended="silent",
        extra="",
        ok=True,
        why="",
    )


def test_the_share_counts_only_second_frees_that_came() -> None:
    rows = [_lead(1, 30.0, True), _lead(2, -4.0, True), _lead(3, None, True), _lead(4, None, False)]
    line = survival(rows).splitlines()[-1]
    assert line == "| 4.19.78 | 4 | 4 | 3 | 1 of 3 | 13 ms |"
