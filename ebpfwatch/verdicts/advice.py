"""What to do about a finding, in the order of doing it. Pure."""

from __future__ import annotations

from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.verdicts.finding import Confidence, Finding, Strength

__all__ = ["advice"]


def advice(finding: Finding) -> tuple[str, ...]:
    """Steps for a person, each one line; () where nothing needs doing."""
    if finding.test:
        return ("nothing: this is the self-test",)
    if finding.verdict is Verdict.CONCURRENT_UNLINK:
        return ("keep it: it matters only beside a double free of the same inode",)
    if finding.verdict is Verdict.FREED_IN_RECLAIM:
        return ("look for a later finding about the same object: ebpfwatch report",)
    return tuple(_steps(finding))


def _steps(finding: Finding) -> list[str]:
    steps = []
    if finding.verdict.damage and finding.confidence is not Confidence.UNDECIDABLE:
        soon = (
            "within a grace period, milliseconds to seconds"
            if finding.verdict.before_damage
            else "at any moment, in a task that has nothing to do with it"
        )
        steps.append(
            f"expect a crash {soon}: move the work off this machine, sync, and reboot it; memory"
            " that is damaged stays damaged"
        )
    accused = finding.responsible
    if accused.strength is Strength.SHOWN:
        steps.append(f"do not load {accused.who} again, and send this report to its maker")
    elif accused.strength is Strength.SUSPECTED:
        steps.append(f"run without {accused.who}: does it still happen?")
    elif finding.verdict is not Verdict.IDENTITY_CHANGED:
        steps.append("run without the out-of-tree modules, half of them at a time")
    if any("first_stacks" in lack for lack in finding.lacks):
        steps.append("for whole stacks of the first steps: evidence.first_stacks: true, restart")
    if finding.confidence is not Confidence.CONFIRMED:
        steps.append("see `ebpfwatch check` for what keeps the verdict from being sure")
    return steps
