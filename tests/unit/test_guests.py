"""The judges of the guests judge strictly: a place that lacks a context is none."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.unit.test_verdicts import judged
from tests.vm.guest import Outcome
from tests.vm.leads import leads
from tests.vm.places import PLACES, places

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
