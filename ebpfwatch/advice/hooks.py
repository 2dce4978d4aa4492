"""Can the watcher see the life of an inode here: which rung each role takes, and why no better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ebpfwatch.advice import Advice, Level
from ebpfwatch.kernel.ladder import LADDER, REQUIRED
from ebpfwatch.kernel.session import Ladder

__all__ = ["advise", "usable"]

_SECTION = "hooks"

_WHY = {
    "alloc": "an address handed out again is a new life; unseen, reuse looks like a double free",
    "unlink": "who deleted the file, by which name",
    "evict": "the death of an inode: without it no verdict at all",
    "destroy": "queued for RCU: warns a grace period before the damage",
    "rcu_free": "the free by ext4's own callback",
    "any_free": "every free of the cache: finds frees by strangers",
    "reclaim": "whether an inode died in reclaim",
}

_FEATURES = {
    "btf": "where things lie in the kernel's structures, from itself; else from its headers",
    "ringbuf": "one buffer in order (Linux 5.8); else one a CPU, sorted afterwards",
    "cmpxchg": "the table is claimed without a gap (Linux 5.12); else two CPUs may tear an entry",
    "probe_read_kernel": "kernel memory has a helper of its own (Linux 5.5)",
}


def usable(hooks: Sequence[Ladder]) -> bool:
    """Whether the watcher can do its work: the required roles, and one that sees frees."""
    rungs = {hook.role: hook.rung for hook in hooks}
    frees = rungs.get("rcu_free") or rungs.get("any_free")
    return all(rungs.get(role) for role in REQUIRED) and bool(frees)


def advise(hooks: Sequence[Ladder], features: Mapping[str, bool]) -> list[Advice]:
    """One line a role, one a feature of the kernel."""
    roles = {hook.role: hook.rung for hook in hooks}
    sees_frees = bool(roles.get("rcu_free") or roles.get("any_free"))
    lines = [_role(hook, sees_frees) for hook in hooks]
    for name, have in features.items():
        level = Level.OK if have else Level.WARN
        lines.append(
            Advice(_SECTION, name, level, "yes" if have else "no", _FEATURES.get(name, ""))
        )
    return lines


def _role(hook: Ladder, sees_frees: bool) -> Advice:
    why = _WHY.get(hook.role, "")
    if hook.reason:
        why = f"{why}; no better rung: {hook.reason}" if hook.rung else f"{why}; {hook.reason}"
    if not hook.rung:
        needed = hook.role in REQUIRED or (hook.role in ("rcu_free", "any_free") and not sees_frees)
        level = Level.FAIL if needed else Level.WARN
        return Advice(_SECTION, hook.role, level, "no rung holds", why)
    best = hook.rung == LADDER[hook.role][0].name
    return Advice(_SECTION, hook.role, Level.OK if best else Level.WARN, hook.rung, why)
