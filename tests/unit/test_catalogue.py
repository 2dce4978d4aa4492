"""The catalogue against everything that tells of its rows outside Python: none may be forgotten."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ebpfwatch.catalogue import counters, layout
from ebpfwatch.catalogue.ladder import LADDER, UNITS
from ebpfwatch.catalogue.roles import BY_CANARY, Hook, Proof
from ebpfwatch.catalogue.verdicts import CRITICAL, Kind, Verdict, numbered
from ebpfwatch.daemon.canary import Run
from ebpfwatch.daemon.governor import EXPENDABLE
from ebpfwatch.kernel.protocol import Learned

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/ebpfwatch.rules.yml"


def read(name: str) -> str:
    """A file of the repository."""
    return (ROOT / name).read_text()


def alert(name: str) -> str:
    """The expression of an alert."""
    groups: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
    return next(str(r["expr"]) for g in groups for r in g["rules"] if r.get("alert") == name)


# Each check takes the rows and says which of them the other place lacks.


def lacks_in_schema(verdicts: set[str], roles: set[str]) -> set[str]:
    """docs/finding.schema.json: the verdicts that a finding may have."""
    schema = json.loads(read("docs/finding.schema.json"))
    return verdicts ^ set(schema["properties"]["verdict"]["enum"])


def lacks_in_readme(verdicts: set[str], roles: set[str]) -> set[str]:
    """README: what it finds."""
    return {name for name in verdicts if f"`{name}`" not in read("README.md")}


def lacks_in_alerts(verdicts: set[str], roles: set[str]) -> set[str]:
    """Every verdict of damage, and every cause, is critical when confirmed; nothing else is."""
    critical = {v.value for v in Verdict if v.damage or v.kind is Kind.CAUSE}
    wanted = critical | (verdicts - {verdict.value for verdict in Verdict})
    rules = alert("EbpfwatchDamage") + alert("EbpfwatchCause")
    told = {v.value for v in Verdict if f'kind="{v.kind.value}", confidence="confirmed"' in rules}
    return told ^ wanted


def lacks_in_golden(verdicts: set[str], roles: set[str]) -> set[str]:
    """/metrics as it is compared: a series for each verdict from the start."""
    text = read("tests/golden/metrics.txt")
    return {name for name in verdicts if f'verdict="{name}"' not in text}


def lacks_in_header(verdicts: set[str], roles: set[str]) -> set[str]:
    """probes/contract.h: a number for each."""
    text = read("probes/contract.h")
    lost = {name for name in verdicts if f"\tVERDICT_{name.upper()} = " not in text}
    return lost | {name for name in roles if f"\tHOOK_{name.upper()} = " not in text}


def lacks_in_ladder(verdicts: set[str], roles: set[str]) -> set[str]:
    """Every role has rungs in some unit, and every ladder a role."""
    rungs = {role for unit in UNITS.values() for role in unit.ladder}
    return roles ^ rungs


def lacks_in_docs(verdicts: set[str], roles: set[str]) -> set[str]:
    """The page that `make contract` writes has a row for each verdict and each role."""
    rows = set(re.findall(r"(?m)^\| \d+ \| `(\w+)` \|", read("docs/catalogue.md")))
    return (verdicts | roles) - rows


CHECKS = (
    lacks_in_schema,
    lacks_in_readme,
    lacks_in_alerts,
    lacks_in_golden,
    lacks_in_header,
    lacks_in_ladder,
    lacks_in_docs,
)

VERDICTS = {verdict.value for verdict in Verdict}
ROLES = {hook.value for hook in Hook}
Check = Callable[[set[str], set[str]], set[str]]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: str(check.__name__))
def test_no_place_lacks_a_row(check: Check) -> None:
    """As it is today."""
    assert check(VERDICTS, ROLES) == set()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: str(check.__name__))
def test_a_forgotten_row_is_noticed_in_every_place(check: Check) -> None:
    """With a trial verdict and a trial role that nobody has entered: each place says so."""
    assert check(VERDICTS | {"trial_verdict"}, ROLES | {"trial_role"})


def test_the_journal_catalog_is_the_catalogues() -> None:
    """Each MESSAGE_ID once, with the subject and the meaning of its row."""
    blocks = dict(re.findall(r"^-- ([0-9a-f]{32})\n(.*?)(?=^-- |\Z)", read(CATALOG), re.M | re.S))
    assert len({verdict.message_id for verdict in Verdict}) == len(Verdict)
    for verdict in Verdict:
        block = blocks[verdict.message_id]
        assert f"Subject: {verdict.words.subject}\n" in block, verdict
        assert f"\n{verdict.words.meaning}\n" in block, verdict


CATALOG = "deploy/ebpfwatch.catalog"


def test_every_verdict_says_what_it_must() -> None:
    """Numbers from 1 without a gap; words; and either a wrong step or why nobody is accused."""
    assert sorted(verdict.number for verdict in Verdict) == [*range(1, len(Verdict) + 1)]
    for verdict in Verdict:
        words = verdict.words
        assert words.happened and words.explained and words.subject and words.meaning
        assert bool(words.step) != bool(words.nobody), verdict
        assert {role for roles in verdict.forged_by for role in roles} <= ROLES
        assert re.fullmatch(r"[0-9a-f]{32}", verdict.message_id)
        assert not (verdict.damage and verdict.kind is Kind.CONTEXT)
        assert not verdict.before_damage or verdict.damage
        assert numbered(verdict.number) is verdict
    with pytest.raises(ValueError, match="no verdict"):
        numbered(len(Verdict) + 1)


def test_what_is_damage_has_one_answer() -> None:
    """identity_changed is: a dead inode's number does not change by itself."""
    assert frozenset(v for v in Verdict if v.damage) == CRITICAL
    assert {v.value for v in Verdict} - {v.value for v in CRITICAL} == {
        "freed_in_reclaim",
        "concurrent_unlink",
    }


def test_what_nothing_proves_is_unproven() -> None:
    """The default of a role is the careful one; no canary ever claims such a role."""
    unproven = "a_role_that_nothing_proves"
    assert unproven not in BY_CANARY
    assert Run("/", (8, 1), 1).missing(frozenset({unproven, "evict"})) == ("evict",)
    assert frozenset(hook.value for hook in Hook if hook.proof is Proof.CANARY) == BY_CANARY


def test_the_governor_takes_what_the_roles_allow() -> None:
    """Dearest first; the order has no two of one place."""
    order = [hook for hook in sorted(Hook, key=lambda hook: hook.goes) if hook.loss]
    assert list(EXPENDABLE) == [hook.value for hook in order]
    assert [hook.goes for hook in order] == list(range(1, len(order) + 1))
    assert not any(hook.goes for hook in Hook if not hook.loss)


def test_the_watchers_ladder_is_in_the_order_of_a_life() -> None:
    """Links are attached in this order: no life may be seen to end that was not seen to begin."""
    numbers = [Hook(role).number for role in LADDER]
    assert numbers == sorted(numbers)
    assert {role for role in LADDER} == {hook.value for hook in Hook if hook.watcher}


def test_counters_are_told_once_and_explained() -> None:
    """Names are distinct; kernel names, too; what is no step of a life is not counted as work."""
    names = [row.name for row in counters.ROWS]
    assert len(set(names)) == len(names)
    kernel = [row.kernel for row in counters.ROWS if row.kernel]
    assert len(set(kernel)) == len(kernel)
    assert all(row.means for row in counters.ROWS)
    last = max(i for i, row in enumerate(counters.ROWS) if row.kernel)
    assert all(row.kernel for row in counters.ROWS[: last + 1])
    steps = {"alloc", "unlink", "evict", "destroy", "free", "free_unmatched", "free_aborted"}
    assert set(counters.STEPS) == steps
    probes = "".join(path.read_text() for path in (ROOT / "probes").glob("[!c]*.[ch]"))
    for name in kernel:
        assert f"COUNTER_{name}" in probes, name


def test_flags_do_not_overlap() -> None:
    """Each flag is a bit of its own, and has its comment."""
    for flags in (layout.LifeFlag, layout.NoteFlag, layout.Flag):
        values = [flag.value for flag in flags]
        assert sum(values) == 2 ** len(values) - 1
        assert all(layout.FLAG_WORDS[flags][flag] for flag in flags)


def test_what_is_learned_has_the_fields_of_its_struct() -> None:
    """The loader reads them by position."""
    (row,) = (row for row in layout.STRUCTS if row.name == "learned")
    assert [m.name for m in row.members] == [f.name for f in dataclasses.fields(Learned)]
