"""The JSON form of a finding: docs/finding.schema.json by a validator, and the way back."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.host.process import Process
from ebpfwatch.verdicts.advice import advice
from ebpfwatch.verdicts.finding import SCHEMA, Confidence, Finding, Moment
from tests.unit.test_verdicts import EVENT, judged

DOCS = Path(__file__).parents[2] / "docs"
DOCUMENT: dict[str, Any] = json.loads((DOCS / "finding.schema.json").read_text())


def check(body: dict[str, Any]) -> None:
    """Raises ``ValidationError``."""
    jsonschema.Draft202012Validator(DOCUMENT).validate(body)


def full() -> Finding:
    """One with everything that may be there."""
    second = judged().second
    assert second is not None
    process = Process("/usr/bin/x", 1, "systemd", "/system.slice/x.service", "x.service")
    return dataclasses.replace(
        judged(),
        second=dataclasses.replace(second, process=process),
        machine=(Moment(1, "reclaim"),),
        host={"zones": []},
        disk="254:48 (vdd): it answers",
        call_site=0xFFFFFFFF81000000,
    )


def test_the_schema_is_one() -> None:
    """Of the version that the program writes."""
    jsonschema.Draft202012Validator.check_schema(DOCUMENT)
    assert DOCUMENT["properties"]["schema"]["const"] == SCHEMA


@pytest.mark.parametrize("kind", list(Verdict))
def test_every_verdict_is_as_documented(kind: Verdict) -> None:
    """With an entry in the table and without, with a name and without; and the way back."""
    for change in ({}, {"life": None, "name": "", "stack": ()}):
        finding = judged(dataclasses.replace(EVENT, verdict=kind, **change))  # type: ignore[arg-type]
        body = json.loads(json.dumps(finding.to_json()))
        check(body)
        assert Finding.from_json(body) == finding


def test_everything_at_once_is_as_documented() -> None:
    """Process, frames with addresses above 2**53, host, timeline."""
    body = json.loads(json.dumps(full().to_json()))
    check(body)
    assert body["call_site"] == "0xffffffff81000000"
    assert Finding.from_json(body) == full()


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "nonsense"},
        {"more": 1},
        {"schema": 1},
        {"call_site": 5},
        {"responsible": {"who": "x", "strength": "unknown", "because": ["y"]}},
        {"responsible": {"who": "", "strength": "shown", "because": ["y"]}},
        {"responsible": {"who": "x", "strength": "shown", "because": []}},
    ],
)
def test_the_schema_refuses_what_is_none(change: dict[str, Any]) -> None:
    """A schema that takes everything would prove nothing."""
    with pytest.raises(jsonschema.ValidationError):
        check({**full().to_json(), **change})


def test_every_field_is_in_the_page() -> None:
    """docs/finding.md names each."""
    named = set(re.findall(r"`(\w+)`", (DOCS / "finding.md").read_text()))
    assert set(DOCUMENT["required"]) <= named
    assert set(DOCUMENT["required"]) == set(DOCUMENT["properties"]) == set(full().to_json())


@pytest.mark.parametrize("verdict", Verdict)
@pytest.mark.parametrize("confidence", Confidence)
def test_there_is_always_something_to_do(verdict: Verdict, confidence: Confidence) -> None:
    """And nothing alarming about a test."""
    finding = dataclasses.replace(judged(), verdict=verdict, confidence=confidence)
    assert advice(finding)
    test = advice(dataclasses.replace(finding, test=True))
    assert len(test) == 1 and "self-test" in test[0]
