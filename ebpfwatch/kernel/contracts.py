"""Which rules of the VFS are not checked on this kernel, and why. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ebpfwatch.catalogue.contracts import RULES, Rule
from ebpfwatch.kernel.hook import LoadedHook

__all__ = ["in_words", "unchecked"]


def unchecked(
    hooks: Sequence[LoadedHook], offsets: Collection[str] | None, new: bool
) -> dict[str, str]:
    """By rule, in words, why it is not checked now.

    ``offsets`` are the members that this kernel has, None where that is not known yet; ``new``:
    Linux 5.8 or later.  A rule whose hook waits for a reason is not among them (``armed``).
    """
    by_role = {hook.role: hook for hook in hooks}
    rules = (rule for rule in RULES if not rule.instead)
    reasons = {rule.words: _why_not(rule, by_role, offsets, new) for rule in rules}
    return {words: why for words, why in reasons.items() if why}


def in_words(missing: Mapping[str, str]) -> str:
    """What ``unchecked`` gives, by reason, in one line."""
    by_reason: dict[str, list[str]] = {}
    for words, why in missing.items():
        by_reason.setdefault(why, []).append(words)
    said = [f"{'; '.join(rules)}: {why}" for why, rules in by_reason.items()]
    return "not checked: " + ". ".join(said) if said else "all of them"


def _why_not(
    rule: Rule, hooks: Mapping[str, LoadedHook], offsets: Collection[str] | None, new: bool
) -> str:
    for role in rule.roles:
        hook = hooks.get(role.value)
        if hook is None or not hook.has_rung:
            return f"the hook {role.value} is not there"
    first = hooks[rule.roles[0].value]
    if rule.at and first.target != rule.at:
        return f"it is checked at {rule.at}, and {first.target} is hooked instead"
    if rule.needs and offsets is not None and not any(need in offsets for need in rule.needs):
        return rule.lacks
    if rule.new and not new:
        return "the verifier before Linux 5.8 follows too few instructions"
    if len(rule.roles) > 1 and first.shared:
        return f"the hook {first.role} is not there"
    return ""
