"""The chain from a mistake to a crash: what a finding's forerunners say about it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ebpfwatch.catalogue.verdicts import Kind, Verdict
from ebpfwatch.verdicts.confidence import ago
from ebpfwatch.verdicts.finding import Preceding

__all__ = ["victim"]


def victim(verdict: Verdict, ns: int, preceding: Sequence[Preceding]) -> list[str]:
    """A line for an effect that broken rules stand before; [] for anything else."""
    causes = [one for one in preceding if one.verdict.kind is Kind.CAUSE]
    if verdict.kind is not Kind.EFFECT or not causes:
        return []
    first = causes[0]
    times = f", {first.count} times" if first.count > 1 else ""
    if first.relation == "the same object":
        return [f"a rule was broken with this very object before: {first.id}, {ago(ns - first.ns)}"]
    return [
        f"the inode was a victim, if the broken rule before it is the cause: {first.verdict.value}"
        f"{times}, {ago(ns - first.ns)} before ({first.id})"
    ]
