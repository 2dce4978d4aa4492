"""What each verdict costs: the hooks, what they tell, and what a life pays for each."""

from __future__ import annotations

from collections.abc import Mapping

from ebpfwatch.catalogue.contracts import RULES
from ebpfwatch.catalogue.ladder import LADDER
from ebpfwatch.catalogue.roles import Hook
from ebpfwatch.catalogue.verdicts import Verdict

__all__ = ["SEES", "by_role", "table"]

#: What a hook tells besides the rules of the VFS that it checks (``RULES``).
_DAMAGE = {
    Hook.UNLINK: (Verdict.CONCURRENT_UNLINK,),
    Hook.EVICT: (Verdict.DOUBLE_EVICT, Verdict.FREED_IN_RECLAIM),
    Hook.DESTROY: (Verdict.DOUBLE_DESTROY,),
    Hook.RCU_FREE: (Verdict.DOUBLE_FREE, Verdict.FREE_WHILE_ALIVE, Verdict.IDENTITY_CHANGED),
    Hook.ANY_FREE: (
        Verdict.FOREIGN_FREE,
        Verdict.DOUBLE_FREE,
        Verdict.FREE_WHILE_ALIVE,
        Verdict.IDENTITY_CHANGED,
    ),
}


def _seen_by(hook: Hook) -> tuple[Verdict, ...]:
    rules = [rule.verdict for rule in RULES if rule.roles[0] is hook]
    return tuple(dict.fromkeys((*rules, *_DAMAGE.get(hook, ()))))


SEES: dict[str, tuple[Verdict, ...]] = {hook.value: _seen_by(hook) for hook in Hook}


def by_role(programs: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Runs and cost a life by role, from those by program."""
    found: dict[str, tuple[float, float]] = {}
    for role, rungs in LADDER.items():
        names = {one.function for rung in rungs for one in rung.attachments}
        parts = [cost for name, cost in programs.items() if name in names]
        if parts:
            found[role] = sum(runs for runs, _ in parts), sum(cost for _, cost in parts)
    return found


def table(unit: str, roles: Mapping[str, tuple[float, float]]) -> list[str]:
    """Markdown; ``unit`` is what the cost of a life is counted in."""
    lines = [f"| hook | what it tells | runs a life | {unit} a life |", "|---|---|---|---|"]
    for role, (runs, cost) in roles.items():
        told = ", ".join(f"`{verdict.value}`" for verdict in SEES[role]) or "no verdict"
        lines.append(f"| {role} | {told} | {runs:.2f} | {cost:.0f} |")
    total = sum(cost for _, cost in roles.values())
    return [*lines, f"| together | | | {total:.0f} |"]
