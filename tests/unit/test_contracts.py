"""Broken rules: what is said of them, how sure, who is named, and what they explain afterwards."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from ebpfwatch.catalogue.contracts import RULES
from ebpfwatch.catalogue.layout import Broken, Flag
from ebpfwatch.catalogue.roles import Hook
from ebpfwatch.catalogue.verdicts import Kind, Verdict
from ebpfwatch.events.wire import VerdictEvent, Who
from ebpfwatch.sinks.journal import fields
from ebpfwatch.sinks.text import body
from ebpfwatch.verdicts.correlator import Knowledge, judge
from ebpfwatch.verdicts.early import EarlyWarning
from ebpfwatch.verdicts.finding import Confidence, Finding, Severity, Strength
from ebpfwatch.verdicts.folding import Folder
from ebpfwatch.verdicts.recorder import Recorder

PAGE = Path(__file__).parents[2] / "docs/contracts.md"
_COLUMNS = 8  #: of its table of rules, as split at "|"

NAMES = {
    1: "vfs_unlink+0x10",
    2: "evil_delete+0x20 [evil]",
    3: "evict+0x10",
    4: "iput+0x10",
    5: "evil_put+0x10 [evil]",
    6: "__dentry_kill+0x0",
    7: "shrink_dentry_list+0x10",
    8: "rcu_do_batch+0x10",
}
NOBODY = Who(0, 0, 0, 0, "")
EVENT = VerdictEvent(
    ns=5_000_000_000,
    cpu=1,
    verdict=Verdict.UNLOCKED_UNLINK,
    hook=Hook.UNLINK,
    flags=Flag.WITNESS_READ | Flag.WITNESS_IDENTITY | Flag.WITNESS_PUBLISHED,
    object=0xFFFF0000,
    call_site=0,
    ino=42,
    generation=7,
    dev=8 << 20,
    state=0,
    count=1,
    reclaim_pid=0,
    life=None,
    who=Who(5_000_000_000, 13, 13, 1, "kevil"),
    unlinked=NOBODY,
    unlink_in_flight=False,
    name="victim",
    stack=(1, 2),
    directory_ino=2,
    broken=Broken.DIRECTORY_LOCK | Broken.VICTIM_LOCK,
    related=0xFFFF8000,
    found=0xFFFF9000,
)
DENTRY = dataclasses.replace(
    EVENT,
    verdict=Verdict.DENTRY_KILLED_IN_USE,
    hook=Hook.DENTRY,
    flags=Flag.WITNESS_READ | Flag.OBJECT_DENTRY | Flag.RELATED_PROVEN | Flag.NAME_NOW,
    broken=Broken.CHILDREN,
    filesystem="overlay",
    name="dir",
    stack=(6, 7),
    who=Who(5_000_000_000, 30, 30, 1, "kswapd0"),
)
EVICTED = dataclasses.replace(
    EVENT,
    verdict=Verdict.EVICTED_IN_USE,
    hook=Hook.EVICT,
    broken=Broken.ALIAS,
    flags=EVENT.flags | Flag.RELATED_PROVEN | Flag.NAME_NOW,
    stack=(3, 4, 5),
)
KNOWN = Knowledge(
    attached=frozenset({"evict", "unlink"}),
    alive={"evict": True, "unlink": True},
    lost=lambda role, since: 0,
    symbol=lambda address: NAMES.get(address, ""),
    realtime_offset_ns=1_700_000_000_000_000_000,
    test_object=lambda address: False,
    taints={"evil": "OE"}.get,  # type: ignore[arg-type]
)


def judged(event: VerdictEvent, **changes: Any) -> Finding:
    """The finding."""
    return judge(event, dataclasses.replace(KNOWN, **changes), 1)


def test_an_unlocked_unlink_shows_who_did_it() -> None:
    """The module calls vfs_unlink() itself, and without the locks: confirmed, critical, named."""
    finding = judged(EVENT)
    assert (finding.confidence, finding.severity) == (Confidence.CONFIRMED, Severity.CRIT)
    assert finding.responsible.strength is Strength.SHOWN and "evil" in finding.responsible.who
    assert finding.broken == ("directory_lock", "victim_lock")
    assert "another task holds the lock of its directory" in finding.summary
    assert Finding.from_json(finding.to_json()) == finding


def test_who_drops_the_last_reference_is_only_suspected() -> None:
    """The one that is missing may have been given back by somebody before."""
    finding = judged(EVICTED)
    assert finding.confidence is Confidence.CONFIRMED
    assert finding.responsible.strength is Strength.SUSPECTED
    assert "a dentry still names it: 'victim'" in finding.summary
    alone = judged(dataclasses.replace(EVICTED, stack=(3, 4)))
    assert alone.responsible.strength is Strength.UNKNOWN
    assert any("a reference is missing" in line for line in alone.responsible.because)


def test_a_dentry_is_called_one() -> None:
    """Its name, its inode, its filesystem; whoever kills it is not accused."""
    finding = judged(DENTRY)
    assert finding.summary.startswith("directory dentry 'dir' (overlay inode 42) on 8:0 killed")
    assert (finding.what, finding.filesystem, finding.witness) == ("dentry", "overlay", "")
    assert finding.responsible.strength is Strength.UNKNOWN
    text = body(finding)
    assert "Dentry: 0xffff0000" in text and "Inode: 42" in text
    assert fields(finding)["EBPFWATCH_KIND"] == "cause"
    nameless = judged(dataclasses.replace(DENTRY, ino=0, broken=Broken.DEAD, name=""))
    assert nameless.summary.startswith("dentry (overlay, no inode) on 8:0 killed")


DOUBTS = {
    "a list that proves nothing": {"flags": EVENT.flags, "broken": Broken.ALIAS},
    "no link": {"broken": Broken.NO_LINK},
    "children that deny it": {"flags": Flag.WITNESS_READ, "broken": Broken.CHILDREN},
    "garbage": {"flags": EVENT.flags | Flag.WITNESS_NO_INODE},
    "unreadable": {"flags": Flag(0)},
}


@pytest.mark.parametrize("name", DOUBTS)
def test_what_could_forge_a_rule_lowers_the_confidence(name: str) -> None:
    """Each with its reason."""
    finding = judged(dataclasses.replace(EVENT, **DOUBTS[name]))  # type: ignore[arg-type]
    assert finding.confidence is Confidence.PROBABLE


def test_a_second_free_whose_first_was_forgotten_is_probable_at_most() -> None:
    """And undecidable where evictions were missed."""
    event = dataclasses.replace(
        EVENT,
        verdict=Verdict.DOUBLE_FREE,
        hook=Hook.RCU_FREE,
        broken=Broken(0),
        flags=Flag.WITNESS_READ | Flag.WITNESS_CLEAR | Flag.WITNESS_IDENTITY,
        count=0,
        stack=(8,),
    )
    finding = judged(event)
    assert finding.confidence is Confidence.PROBABLE
    assert any("first free is not remembered" in reason for reason in finding.reasons)
    missed = judged(event, lost=lambda role, since: int(role == "evict"))
    assert missed.confidence is Confidence.UNDECIDABLE


def double_free(recorder: Recorder, ns: int, directory: int = 9) -> Finding:
    """Of another inode than the broken rules before it."""
    event = dataclasses.replace(
        EVENT,
        verdict=Verdict.DOUBLE_FREE,
        hook=Hook.RCU_FREE,
        ns=ns,
        object=0xFFFF7000,
        ino=99,
        broken=Broken(0),
        flags=Flag.WITNESS_READ | Flag.WITNESS_CLEAR,
        count=0,
        directory_ino=directory,
        stack=(8,),
    )
    return judged(
        event,
        preceding=lambda e: recorder.preceding(e.ns, e.object, (8, 0, e.directory_ino), False),
        named_by=recorder.named_by,
    )


def test_an_effect_says_that_its_inode_was_a_victim() -> None:
    """A hundred kills of a directory before it are one link of the chain, with their count."""
    recorder = Recorder()
    for number in range(100):
        at = DENTRY.ns + number
        recorder.found(judged(dataclasses.replace(DENTRY, ns=at, object=0xFFFF1000 + number)))
    finding = double_free(recorder, DENTRY.ns + 2_000_000_000)
    (before,) = finding.preceded_by
    assert (before.verdict, before.count) == (Verdict.DENTRY_KILLED_IN_USE, 100)
    assert before.relation == "shortly before"
    assert any("was a victim" in r and "100 times" in r for r in finding.reasons)
    assert "What came before it:" in body(finding)
    assert Finding.from_json(finding.to_json()) == finding
    assert double_free(recorder, DENTRY.ns + 700_000_000_000).preceded_by == ()


def test_who_was_named_for_the_cause_is_suspected_of_the_effect() -> None:
    """By time alone, and in the same directory by that, too."""
    recorder = Recorder()
    recorder.found(judged(EVENT))
    finding = double_free(recorder, EVENT.ns + 1, directory=2)
    assert finding.preceded_by[0].relation == "the same directory"
    assert finding.responsible.strength is Strength.SUSPECTED
    assert "evil" in finding.responsible.who


def test_one_mistake_on_many_objects_is_one_finding() -> None:
    """The same rule on the same way folds; another way, or damage, does not."""
    folder = Folder(60, 1000)
    written = [
        folder.admit(judged(dataclasses.replace(EVENT, object=0x1000 * n, ino=n)), 1.0)[0]
        for n in range(1, 50)
    ]
    assert written == [True] + [False] * 48
    other = dataclasses.replace(EVENT, stack=(1, 5))
    assert folder.admit(judged(other), 1.0)[0]
    assert folder.admit(judged(EVENT), 62.0) == (True, 48)


def test_every_cause_is_damage() -> None:
    """An alert, a record that is synced, a snapshot: before the crash."""
    causes = [verdict for verdict in Verdict if verdict.kind is Kind.CAUSE]
    assert len(causes) == 9 and all(verdict.damage for verdict in causes)


def test_a_broken_rule_is_an_early_warning_by_itself() -> None:
    """For five minutes, and without a record of its own: the finding is one."""
    early = EarlyWarning()
    early.broken_rule(10.0)
    assert early.active(300.0) and not early.active(311.0)
    assert early.judge(20.0, 60.0) is None


def test_the_page_has_every_rule_and_no_other() -> None:
    """By the verdict and what a finding says of the rule; `check` names the same rules."""
    rows = [line.split("|") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [row[4] for row in rows if len(row) == _COLUMNS and "`" in row[4]]
    told = []
    for cell in cells:
        verdict, flags = re.findall(r"`(\w+)`(?: \(([\w, ]+)\))?", cell)[0]
        told.append((verdict, frozenset(filter(None, flags.split(", ")))))
    assert told == [
        (
            rule.verdict.value,
            frozenset(f.name.lower() for f in Broken if f & rule.broken and f.name),
        )
        for rule in RULES
    ]
