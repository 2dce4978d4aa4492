"""Can the watcher see the life of an inode here: which rung each role takes, and why no better."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ebpfwatch.advice import Advice, Level
from ebpfwatch.catalogue.contracts import RULES
from ebpfwatch.catalogue.ladder import LADDER, REQUIRED
from ebpfwatch.catalogue.roles import Hook
from ebpfwatch.kernel.contracts import in_words, unchecked
from ebpfwatch.kernel.dry_run import LEARNER, SELFTEST, DryRun
from ebpfwatch.kernel.hook import LoadedHook
from ebpfwatch.kernel.protocol import Examined

__all__ = ["advise", "usable"]

_SECTION = "hooks"
_FREES = ("rcu_free", "any_free")  #: without one of these no free is seen

_FEATURES = {
    "btf": "where things lie in the kernel's structures, from itself; else from its headers",
    "ringbuf": "one buffer in order (Linux 5.8); else one a CPU, sorted afterwards",
    "cmpxchg": "the table is claimed without a gap (Linux 5.12); else two CPUs may tear an entry",
    "probe_read_kernel": "kernel memory has a helper of its own (Linux 5.5)",
    "direct_read": "kernel memory is read without a helper (Linux 6.2)",
}


#: What belongs to no role.
_OTHERS = {
    LEARNER: "finds ext4's inode cache at the start",
    SELFTEST: "what `ebpfwatch selftest` runs by hand",
}


def usable(hooks: Sequence[LoadedHook], dry_run: DryRun) -> bool:
    """Whether the watcher can do its work: the required roles, one that sees frees, and a verifier
    that takes the programs, or others instead.
    """
    roles = {hook.role for hook in hooks if hook.has_rung}
    taken = not dry_run.refused or bool(dry_run.instead)
    return roles.issuperset(REQUIRED) and not roles.isdisjoint(_FREES) and taken


def advise(found: Examined) -> list[Advice]:
    """One line a role, one a feature of the kernel."""
    dry_run = found.dry_run
    sees_frees = any(hook.role in _FREES and hook.has_rung for hook in found.hooks)
    lines = [_role(hook, sees_frees, dry_run) for hook in found.hooks]
    lines += [_rules(found), _offsets(found)]
    lines += [_other(item, dry_run) for item in _OTHERS if dry_run.of(item)]
    if dry_run.error is not None:
        error = dry_run.error
        lines.append(Advice(_SECTION, "programs", Level.UNKNOWN, error.message, error.hint))
    for name, have in dataclasses.asdict(found.features).items():
        level = Level.OK if have else Level.WARN
        lines.append(
            Advice(_SECTION, name, level, "yes" if have else "no", _FEATURES.get(name, ""))
        )
    return lines


def _rules(found: Examined) -> Advice:
    """The rules of the VFS that are not checked here; what the configuration leaves out is its
    wish.
    """
    missing = unchecked(found.hooks, found.members or None, found.features.ringbuf)
    wished = {f"the hook {hook.role} is not there" for hook in found.hooks if hook.left_out}
    level = Level.WARN if set(missing.values()) - wished else Level.OK
    waiting = [hook.role for hook in found.hooks if hook.armed]
    why = in_words(missing)
    if waiting:
        why += f"; attached only while there is a reason: {', '.join(waiting)}"
    checked = len(RULES) - sum(rule.instead for rule in RULES) - len(missing)
    return Advice(_SECTION, "rules", level, f"{checked} rules of the VFS are checked", why)


def _offsets(found: Examined) -> Advice:
    if found.members or not found.offsets_from:
        value = found.offsets_from or "not known"
        level = Level.OK if found.offsets_from else Level.UNKNOWN
        return Advice(
            _SECTION,
            "offsets",
            level,
            value,
            "held against files of ours at the start; `run` ends with 78 where they are wrong",
        )
    return Advice(
        _SECTION,
        "offsets",
        Level.WARN,
        found.offsets_from,
        "at the start, each by the one place that follows what is done to a file; where there is"
        " not one such place `run` ends with 69 and names the member. The kernel's headers or"
        " hooks.btf tell the offsets, too",
    )


def _role(hook: LoadedHook, sees_frees: bool, dry_run: DryRun) -> Advice:
    what = Hook(hook.role).watches
    why = f"{what}; {hook.why}" if hook.why else what
    if not hook.has_rung:
        return _absent(hook, sees_frees, dry_run, why)
    # A rung that is shared has no program of its own.
    programs = dry_run.of("any_free" if hook.shared else hook.role)
    refused = [program for program in programs if program.refusal]
    if refused:
        said = "; ".join(f"{program.function}: {program.refusal}" for program in refused)
        return _refused(hook.role, hook.name, f"{said}; lost: {what}", dry_run)
    if not programs:
        return Advice(_SECTION, hook.role, Level.UNKNOWN, f"{hook.name}, not loaded", why)
    best = hook.name == LADDER[hook.role][0].name
    level = Level.OK if best else Level.WARN
    return Advice(_SECTION, hook.role, level, f"{hook.name}, the verifier takes it", why)


def _absent(hook: LoadedHook, sees_frees: bool, dry_run: DryRun, why: str) -> Advice:
    if hook.left_out:
        # Without alloc the object itself tells a new life; without any other role something is lost
        level = Level.OK if hook.role == "alloc" else Level.WARN
        return Advice(_SECTION, hook.role, level, f"not {hook.left_out}", why)
    needed = hook.role in REQUIRED or (hook.role in _FREES and not sees_frees)
    level = Level.FAIL if needed else Level.WARN
    return Advice(_SECTION, hook.role, level, "no way to attach it works on this kernel", why)


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
        why += "; it was tried: with the setting below everything else loads"
        command = f'# config.yaml, hooks: rungs: "{dry_run.instead}"'
    return Advice(_SECTION, item, Level.FAIL, f"{rung}, the verifier refuses it", why, command)
