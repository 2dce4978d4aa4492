"""What came of one boot: the findings against what the module confessed."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from ebpfwatch.kernellog.traced import TracedVerdict, traced
from ebpfwatch.postmortem.last_boot import BootRecord
from tests.vm import guest
from tests.vm.kernels import Kernel
from tests.vm.leads import leads
from tests.vm.moments import COMPLAINT, Moments, everywhere, moments
from tests.vm.places import SECOND_FREE, journaled, places
from tests.vm.scenarios import Scenario

__all__ = ["Row", "judge", "tails", "untold"]

#: Freed while another inode lived there: the first free was of an earlier life, and is forgotten.
_NO_FIRST = ("free_while_alive",)


@dataclasses.dataclass(frozen=True)
class Row:
    """What came of one scenario.

    ``places`` are those that survived, with what they lack (``places.places``).  ``lead_ms``: from
    the crime to the kernel's own complaint; ``early_ms`` and ``journal_ms``: from the verdict, and
    from the journal's record of it, to the second free that a double destroy leads to, negative if
    they came later; None if unknown, or if no second free came.  ``told_ms``: from a mistake of
    causes.ko to the first verdict; ``word_ms``: from that to the kernel's first word, negative if
    the kernel was first; ``default_ms``: from the mistake to the first verdict that needs no armed
    hook, if that came before the kernel's word.
    ``extra`` is what a script that judges itself found; ``minutes`` is how long its load lasted.
    """

    kernel: str
    release: str
    scenario: str
    what: str
    detected: list[str]
    places: dict[str, str]
    named: bool
    lead_ms: float | None
    early_ms: float | None
    journal_ms: float | None
    ended: str
    extra: str
    ok: bool
    why: str
    told_ms: float | None = None
    word_ms: float | None = None
    default_ms: float | None = None
    minutes: float = 0


def judge(kernel: Kernel, scenario: Scenario, outcome: guest.Outcome) -> Row:
    """One line of the table."""
    when = moments(outcome, scenario.causes)
    files = sorted((outcome.results / "state/findings").glob("*.json"))
    findings = [json.loads(file.read_text()) for file in files]
    findings = [f for f in findings if f["verdict"] != "concurrent_unlink"]
    wanted = (scenario.verdict, *scenario.causes)
    dumped = [v for v in traced(outcome.console.splitlines()) if v.verdict in wanted]
    survived = places(outcome, scenario.verdict) if scenario.verdict else {}
    if scenario.causes:  # a mistake has one context: no place can lack the other
        survived = dict.fromkeys(places(outcome, when.verdict), "")
    why = _objection(scenario, findings, dumped, outcome, when)
    enough = ("", "the first context") if scenario.verdict in _NO_FIRST else ("",)
    if not (why or scenario.alone) and scenario.verdict and not _any(survived, enough):
        why = "no place tells both contexts"
    again = SECOND_FREE.search(outcome.console)
    early, journal = _ahead(outcome, scenario.verdict, int(again.group(1)) if again else None)
    extra = outcome.text("figures").strip()
    if scenario.name == "leads":
        extra, wrong = leads(outcome)
        why = why or wrong
    boot = BootRecord.read(outcome.results / "state/boot.json")
    modules = [frame["module"] for f in everywhere(outcome) for frame in f["second"]["stack"]]
    names = [f"{f['verdict']} {f['confidence']}" for f in findings]
    if dumped:
        names = names or [f"{dumped[0].verdict} (by the probe)"]
        callers = [at for verdict in dumped for at in (verdict.caller, *verdict.stack)]
        modules += [boot.name(at).partition("[")[2] for at in callers if boot]
    if when.verdict:
        names = [when.verdict, *(name for name in dict.fromkeys(names) if when.verdict not in name)]
    named = any(module.startswith(("crime", "causes")) for module in modules)
    if scenario.causes and scenario.guilty and not named:
        why = why or "the guilty module is not named"
    return Row(
        kernel.name,
        kernel.release,
        scenario.name,
        scenario.what,
        names,
        survived,
        named,
        _lead_ms(outcome),
        early,
        journal,
        _ending(outcome),
        extra,
        not why,
        why,
        when.told_ms,
        when.word_ms,
        when.default_ms,
        scenario.minutes,
    )


def _objection(
    scenario: Scenario,
    findings: list[dict[str, Any]],
    dumped: list[TracedVerdict],
    outcome: guest.Outcome,
    when: Moments,
) -> str:
    """What is not as it must be; "" if all is."""
    if outcome.exit_code is None and not outcome.died:
        steps = re.findall(r"^\++ (.*)", outcome.text("output"), re.MULTILINE) or ["booting"]
        return f"stopped after {outcome.seconds:.0f} s in: {steps[-1]}"
    watched = not scenario.alone and not scenario.unwatched
    if watched and "ready after" not in outcome.text("err"):
        return "the daemon was not ready"
    said = "; ".join(outcome.text("why").split("\n")).strip("; ")
    if scenario.judges:
        if outcome.exit_code == 0:
            return ""
        return said or f"the script ended with {outcome.exit_code}"
    if scenario.script == "cause":
        return said or untold(scenario, findings, when)
    if scenario.name == "legal":
        return ", ".join(f["verdict"] for f in findings)
    confessed = re.search(r"crime: \w+ object=\S+ ino=(\d+) generation=(\d+)", outcome.console)
    if not confessed:
        return said or "the crime was not committed"
    return "" if scenario.alone else _miss(scenario, findings, dumped, int(confessed.group(1)))


def untold(scenario: Scenario, findings: list[dict[str, Any]], when: Moments) -> str:
    """A mistake is told before the kernel's own first word, and of the right object."""
    if when.mistake_ns is None:
        return "the mistake was not made"
    if not scenario.causes:
        return ", ".join(f["verdict"] for f in findings)
    if not when.verdict:
        return "not told"
    if when.victim and when.ino not in (when.victim, 0):
        return f"the wrong object: inode {when.ino} instead of {when.victim}"
    if when.word_ms is not None and when.word_ms < 0:
        return "told after the kernel's first word"
    return ""


def _miss(
    scenario: Scenario, findings: list[dict[str, Any]], dumped: list[TracedVerdict], victim: int
) -> str:
    found = next((f for f in findings if f["verdict"] == scenario.verdict), None)
    if found is None and not dumped:
        return "not detected"
    # No finding: the kernel died before user space could run, and the probe's own print is there.
    ino = found["identity"]["ino"] if found else dumped[0].ino
    if scenario.name != "reused" and ino != victim:
        return "the wrong inode"
    if scenario.guilty and found and "module crime" not in found["responsible"]["who"]:
        return "the guilty module is not named"
    return ""


def _ending(outcome: guest.Outcome) -> str:
    complaint = re.search(COMPLAINT, outcome.console)
    says = complaint.group(0).strip("!") if complaint else "silent"
    return f"{says}{'; panic' if outcome.panicked else ''}"


def _lead_ms(outcome: guest.Outcome) -> float | None:
    """From the crime (when the verdict fell) to the kernel's own first complaint, by its log."""
    crime = _stamp(outcome, r"crime: \w+ object=")
    complaint = _stamp(outcome, COMPLAINT)
    return None if crime is None or complaint is None else (complaint - crime) * 1000


def _stamp(outcome: guest.Outcome, pattern: str) -> float | None:
    found = re.search(r"\[ *(\d+\.\d+)\][^\n]*?(?:" + pattern + ")", outcome.console)
    return float(found.group(1)) if found else None


def _any(survived: dict[str, str], enough: tuple[str, ...]) -> bool:
    return any(lacks in enough for lacks in survived.values())


def _ahead(
    outcome: guest.Outcome, verdict: str, again_ns: int | None
) -> tuple[float | None, float | None]:
    """Milliseconds from the verdict, and from its journal record, to the second free."""
    if again_ns is None:
        return None, None
    told = [body for body in journaled(outcome.results) if body["verdict"] == verdict]
    if not told:
        return None, None
    return (again_ns - told[0]["ns"]) / 1e6, (again_ns - told[0]["journal_ns"]) / 1e6


def tails(outcome: guest.Outcome) -> str:
    """The last lines of each, for whoever reads the log of a failed run."""
    said = {
        "console": outcome.console,
        "err": outcome.text("err"),
        "output": outcome.text("output"),
    }
    lines = (
        f"\n     {name}| {line[:200]}"
        for name, text in said.items()
        for line in text.splitlines()[-12:]
    )
    return "".join(lines)
