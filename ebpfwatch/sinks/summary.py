"""The one thing to know, the worst first; and the whole state as plain JSON. Pure.

The page, ``ebpfwatch status`` and its exit code all say what stands here.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from ebpfwatch import __version__
from ebpfwatch.catalogue.roles import ARMED, BY_CANARY, Hook
from ebpfwatch.catalogue.verdicts import Kind, Verdict
from ebpfwatch.kernel.hook import LoadedHook
from ebpfwatch.sinks.status import Armed, BootState, Proofs, Status
from ebpfwatch.text.times import utc
from ebpfwatch.verdicts.finding import Confidence

__all__ = [
    "Headline",
    "Level",
    "armed_in_words",
    "headline",
    "hook_state",
    "line",
    "to_json",
    "watches",
]


class Level(enum.Enum):
    """How bad; the value is the exit code of a Nagios plugin."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


@dataclasses.dataclass(frozen=True)
class Headline:
    """``alert`` is the section of the runbook that says what to do, "" where there is none."""

    level: Level
    what: str
    why: str
    alert: str = ""


#: While no canary has lived and died.
_FIRST = (
    " In the first minute after a start that is normal: the first test of the hooks is running."
)


def headline(status: Status) -> Headline:
    """What to say first."""
    if not status.ready:
        return Headline(
            Level.UNKNOWN, "Loading", "The programs are not attached yet; nothing is watched."
        )
    return (
        _found(status)
        or _blind(status)
        or _suspected(status)
        or _unproven(status)
        or _incomplete(status)
        or _quiet(status)
    )


def _found(status: Status) -> Headline | None:
    sure = _open(status, confirmed=True)
    if sure:
        cause = all(verdict.kind is Kind.CAUSE for verdict in sure)
        return Headline(
            Level.CRITICAL,
            f"{sum(sure.values())} confirmed: {_names(sure)}",
            "Found since this machine booted, and nobody has acknowledged it. Read the report, save"
            " the evidence, boot.",
            "EbpfwatchCause" if cause else "EbpfwatchDamage",
        )
    if status.early_warning:
        return Headline(
            Level.CRITICAL,
            "Early warning",
            "What came before the known crashes has come together: low memory, much reclaim, and"
            " complaints of the kernel.",
            "EbpfwatchEarlyWarning",
        )
    return None


def _blind(status: Status) -> Headline | None:
    silent = [role for role, alive in status.proofs.alive.items() if alive is False]
    if silent:
        return Headline(
            Level.CRITICAL,
            f"Silent: {', '.join(silent)}",
            "No findings means nothing for what this hook should see.",
            "EbpfwatchHookSilent",
        )
    return None


def _suspected(status: Status) -> Headline | None:
    found = _open(status, confirmed=False)
    if found:
        count = sum(found.values())
        return Headline(
            Level.WARNING,
            f"{count} candidate{'s' if count > 1 else ''}: {_names(found)}",
            "Something was seen that should not be, and it is not proven. The report says why.",
            "EbpfwatchCandidate",
        )
    return None


def _unproven(status: Status) -> Headline | None:
    proofs = status.proofs.alive
    unproven = [role for role, alive in proofs.items() if alive is None and role in BY_CANARY]
    if unproven or not any(proofs.values()):
        first = "" if any(status.proofs.success.values()) else _FIRST
        return Headline(
            Level.WARNING,
            "Nothing found, not all proven",
            f"Not proven alive: {', '.join(unproven) or 'any hook'}.{first}",
            "EbpfwatchHookUnproven",
        )
    return None


def _incomplete(status: Status) -> Headline | None:
    if status.sink_problems:
        name, why = next(iter(status.sink_problems.items()))
        return Headline(
            Level.WARNING,
            f"Findings cannot be kept: {name}",
            f"{why}. Nothing was found; what is found now would be told, and not kept there.",
            "EbpfwatchSinkFailing",
        )
    if not (status.config_up_to_date and status.web.up_to_date):
        return Headline(
            Level.WARNING,
            "A configuration is wrong",
            "It was changed on the disk and cannot be read; the one before is in force.",
            "EbpfwatchConfigNotRead",
        )
    return None


def _quiet(status: Status) -> Headline:
    used = len(status.proofs.alive)
    alive = sum(alive is True for alive in status.proofs.alive.values())
    count = sum(n for (_, _, test), n in status.boot.findings.items() if not test)
    told = "Nothing found" if not count else f"{count} findings, none of them open,"
    return Headline(
        Level.OK,
        "All quiet",
        f"{told} since this machine booted; {alive} of {used} hooks in use are proven alive.",
    )


def _open(status: Status, confirmed: bool) -> dict[Verdict, int]:
    """Those that nobody has acknowledged, by verdict.

    Context is none, but for a death in reclaim, which is what this bug looks like.
    """
    result: dict[Verdict, int] = {}
    for (name, confidence), count in status.boot.open.items():
        verdict = Verdict(name)
        context = verdict.kind is Kind.CONTEXT
        sure = confidence == Confidence.CONFIRMED.value and not context
        told = not context or verdict is Verdict.FREED_IN_RECLAIM
        if count and told and sure == confirmed:
            result[verdict] = result.get(verdict, 0) + count
    return result


def _names(verdicts: dict[Verdict, int]) -> str:
    return ", ".join(sorted(verdict.value for verdict in verdicts))


def line(proofs: Proofs, boot: BootState) -> str:
    """What `systemctl status` shows."""
    proven = sum(alive is True for alive in proofs.alive.values())
    return (
        f"{proven} of {len(proofs.alive)} hooks proven alive;"
        f" {sum(boot.open.values())} findings of this boot not acknowledged"
    )


def hook_state(status: Status, hook: LoadedHook) -> str:
    """In one word or two."""
    if not hook.has_rung:
        return "not used"
    if hook.role in status.governed.off:
        return "off"
    if hook.role not in status.proofs.alive:
        return "on demand"  # attached when there is a reason for it (daemon/arming.py)
    alive = status.proofs.alive[hook.role]
    if alive is None:
        return "armed" if hook.role in ARMED else "not proven yet"
    return "alive" if alive else "silent"


def _armed(armed: Armed) -> dict[str, Any]:
    """Without what the kernel said: names of tasks may be in it; the log has it."""
    why = armed.why.partition(": ")[0]
    return {"roles": list(armed.roles), "why": why, "until": armed.until}


def armed_in_words(body: dict[str, Any]) -> str:
    """What is attached for a reason now, by what ``to_json`` gave; "" if nothing is."""
    armed = body["armed"]
    if not armed["roles"]:
        return ""
    return f"{', '.join(armed['roles'])}, until {utc(armed['until'])}, because {armed['why']}"


def watches(role: str) -> str:
    """What the hook is for, in words."""
    try:
        return Hook(role).watches
    except ValueError:
        return ""


def to_json(status: Status, url: str, state_directory: str) -> dict[str, Any]:
    """For anybody on this machine: no name of a file, a task or a mount."""
    first = headline(status)
    boot = status.boot
    kinds = sorted(set(boot.open) | {key[:2] for key in boot.findings if not key[2]})
    return {
        "version": __version__,
        "level": first.level.name,
        "what": first.what,
        "why": first.why,
        "alert": first.alert,
        "started": status.started,
        "ready": status.ready,
        "hooks": [
            {
                "role": hook.role,
                "state": hook_state(status, hook),
                "how": hook.name,
                "reason": hook.why,
                "watches": watches(hook.role),
                "misses": status.kernel.misses.get(hook.role, 0),
            }
            for hook in status.kernel.hooks
        ],
        "findings": [
            {
                "verdict": verdict,
                "confidence": confidence,
                "count": boot.findings.get((verdict, confidence, False), 0),
                "open": boot.open.get((verdict, confidence), 0),
                "age_seconds": boot.ages.get((verdict, confidence)),
            }
            for verdict, confidence in kinds
        ],
        "tests": sum(count for (_, _, test), count in boot.findings.items() if test),
        "early_warning": status.early_warning,
        "kernel_log": {kind: count for kind, count in boot.kernel_log.items() if count},
        "last_boot": boot.last_boot,
        "lost": {kind: count for kind, count in status.losses.items() if count},
        "last_canary": max(status.proofs.success.values(), default=0.0),
        "canary_mounts": len(status.proofs.success),
        "armed": _armed(status.armed),
        "unchecked_rules": status.kernel.unchecked,
        "governor_step": len(status.governed.off),
        "cpu_percent": status.governed.cpu_percent,
        "resident_bytes": status.rss_bytes,
        "kernel_memory_bytes": status.kernel.memory_bytes,
        "sink_problems": dict(status.sink_problems),
        "sink_errors": {sink: count for sink, count in status.sink_errors.items() if count},
        "url": url,
        "state_directory": state_directory,
    }
