"""Can the watcher see the life of an inode here: which rung each role takes, and why no better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ebpfwatch.advice import Advice, Level
from ebpfwatch.catalogue.ladder import LADDER, REQUIRED, SHARED
from ebpfwatch.kernel.dry_run import LEARNER, SELFTEST, DryRun
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


#: What belongs to no role.
_OTHERS = {
    LEARNER: "finds ext4's inode cache at the start",
    SELFTEST: "what `ebpfwatch selftest` runs by hand",
}


def usable(hooks: Sequence[Ladder], dry_run: DryRun) -> bool:
    """Whether the watcher can do its work: the required roles, one that sees frees, and a verifier
    that takes the programs, or others instead.
    """
    rungs = {hook.role: hook.rung for hook in hooks}
    frees = rungs.get("rcu_free") or rungs.get("any_free")
    taken = not dry_run.refused or bool(dry_run.instead)
    return all(rungs.get(role) for role in REQUIRED) and bool(frees) and taken


def advise(hooks: Sequence[Ladder], features: Mapping[str, bool], dry_run: DryRun) -> list[Advice]:
    """One line a role, one a feature of the kernel."""
    roles = {hook.role: hook.rung for hook in hooks}
    sees_frees = bool(roles.get("rcu_free") or roles.get("any_free"))
    lines = [_role(hook, sees_frees, dry_run) for hook in hooks]
    lines += [_other(item, dry_run) for item in _OTHERS if dry_run.of(item)]
    if dry_run.error is not None:
        error = dry_run.error
        lines.append(Advice(_SECTION, "programs", Level.UNKNOWN, error.message, error.hint))
    for name, have in features.items():
        level = Level.OK if have else Level.WARN
        lines.append(
            Advice(_SECTION, name, level, "yes" if have else "no", _FEATURES.get(name, ""))
        )
    return lines


def _role(hook: Ladder, sees_frees: bool, dry_run: DryRun) -> Advice:
    what = _WHY.get(hook.role, "")
    why = f"{what}; {hook.reason}" if hook.reason else what
    if not hook.rung:
        return _absent(hook, sees_frees, dry_run, why)
    # A rung that is shared has no program of its own.
    programs = dry_run.of("any_free" if hook.rung.endswith(SHARED) else hook.role)
    refused = [program for program in programs if program.refusal]
    if refused:
        said = "; ".join(f"{program.function}: {program.refusal}" for program in refused)
        return _refused(hook.role, hook.rung, f"{said}; lost: {what}", dry_run)
    if not programs:
        return Advice(_SECTION, hook.role, Level.UNKNOWN, f"{hook.rung}, not loaded", why)
    best = hook.rung == LADDER[hook.role][0].name
    level = Level.OK if best else Level.WARN
    return Advice(_SECTION, hook.role, level, f"{hook.rung}, the verifier takes it", why)


def _absent(hook: Ladder, sees_frees: bool, dry_run: DryRun, why: str) -> Advice:
    if hook.role in dry_run.left_out:
        # Without alloc the object itself tells a new life; without any other role something is lost
        level = Level.OK if hook.role == "alloc" else Level.WARN
        return Advice(_SECTION, hook.role, level, f"not {dry_run.left_out[hook.role]}", why)
    needed = hook.role in REQUIRED or (hook.role in ("rcu_free", "any_free") and not sees_frees)
    level = Level.FAIL if needed else Level.WARN
    return Advice(_SECTION, hook.role, level, "no rung holds", why)


def _other(item: str, dry_run: DryRun) -> Advice:
    refused = [program for program in dry_run.of(item) if program.refusal]
    if not refused:
        return Advice(_SECTION, item, Level.OK, "the verifier takes it", _OTHERS[item])
    said = "; ".join(f"{program.function}: {program.refusal}" for program in refused)
    return _refused(item, "probe", f"{said}; lost: {_OTHERS[item]}", dry_run)


def _refused(item: str, rung: str, said: str, dry_run: DryRun) -> Advice:
    """A program that is refused ends the daemon's start: say what would not."""
    why = f"{said}; `ebpfwatch run` does not start with it, and this is a defect: report it"
    command = ""
    if dry_run.instead:
        why += "; with the wish below everything else loads, it was tried"
        command = f'# config.yaml, hooks: rungs: "{dry_run.instead}"'
    return Advice(_SECTION, item, Level.FAIL, f"{rung}, the verifier refuses it", why, command)
