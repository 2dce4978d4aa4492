"""The one thing to know, the worst first; and the whole state as plain JSON. Pure.

The page, ``ebpfwatch status`` and its exit code all say what stands here.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from ebpfwatch import __version__
from ebpfwatch.catalogue.roles import BY_CANARY, Hook
from ebpfwatch.catalogue.verdicts import Kind, Verdict
from ebpfwatch.sinks.status import HookStatus, Status
from ebpfwatch.verdicts.finding import Confidence

__all__ = ["Headline", "Level", "headline", "hook_state", "to_json", "watches"]


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
    silent = [hook.role for hook in status.hooks if hook.attached and hook.alive is False]
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
    attached = [hook for hook in status.hooks if hook.attached]
    unknown = [hook.role for hook in attached if hook.alive is None and not hook.off]
    unproven = [role for role in unknown if role in BY_CANARY]
    if unproven or not any(hook.alive is True for hook in attached):
        return Headline(
            Level.WARNING,
            "Nothing found, not all proven",
            f"Not proven alive: {', '.join(unproven) or 'any hook'}.",
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
    if not (status.config_up_to_date and status.web_up_to_date):
        return Headline(
            Level.WARNING,
            "A configuration is wrong",
            "It was changed on the disk and cannot be read; the one before is in force.",
            "EbpfwatchConfigNotRead",
        )
    return None


def _quiet(status: Status) -> Headline:
    attached = [hook for hook in status.hooks if hook.attached]
    alive = sum(hook.alive is True for hook in attached)
    count = sum(n for (_, _, test), n in status.findings.items() if not test)
    told = "Nothing found" if not count else f"{count} findings, none of them open,"
    return Headline(
        Level.OK,
        "All quiet",
        f"{told} since this machine booted; {alive} of {len(attached)} hooks in use are proven"
        " alive.",
    )


def _open(status: Status, confirmed: bool) -> dict[Verdict, int]:
    """Those that nobody has acknowledged, by verdict.

    Context is none, but for a death in reclaim, which is what this bug looks like.
    """
    result: dict[Verdict, int] = {}
    for (name, confidence), count in status.findings_open.items():
        verdict = Verdict(name)
        context = verdict.kind is Kind.CONTEXT
        sure = confidence == Confidence.CONFIRMED.value and not context
        told = not context or verdict is Verdict.FREED_IN_RECLAIM
        if count and told and sure == confirmed:
            result[verdict] = result.get(verdict, 0) + count
    return result


def _names(verdicts: dict[Verdict, int]) -> str:
    return ", ".join(sorted(verdict.value for verdict in verdicts))


def hook_state(hook: HookStatus) -> str:
    """In one word or two."""
    if not hook.attached:
        return "not used"
    if hook.off:
        return "off"
    if hook.alive is None:
        return "not proven yet"
    return "alive" if hook.alive else "silent"


def watches(role: str) -> str:
    """What the hook is for, in words."""
    try:
        return Hook(role).watches
    except ValueError:
        return ""


def to_json(status: Status, url: str, state_directory: str) -> dict[str, Any]:
    """For anybody on this machine: no name of a file, a task or a mount."""
    first = headline(status)
    kinds = sorted(set(status.findings_open) | {key[:2] for key in status.findings if not key[2]})
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
                "state": hook_state(hook),
                "how": hook.rung,
                "reason": hook.reason,
                "watches": watches(hook.role),
                "misses": hook.misses,
            }
            for hook in status.hooks
        ],
        "findings": [
            {
                "verdict": verdict,
                "confidence": confidence,
                "count": status.findings.get((verdict, confidence, False), 0),
                "open": status.findings_open.get((verdict, confidence), 0),
                "age_seconds": status.finding_ages.get((verdict, confidence)),
            }
            for verdict, confidence in kinds
        ],
        "tests": sum(count for (_, _, test), count in status.findings.items() if test),
        "early_warning": status.early_warning,
        "kernel_log": {kind: count for kind, count in status.kernel_log.items() if count},
        "last_boot": status.last_boot,
        "lost": {kind: count for kind, count in status.losses.items() if count},
        "last_canary": max(status.canary_success.values(), default=0.0),
        "canary_mounts": len(status.canary_success),
        "governor_step": status.governor_step,
        "cpu_percent": status.watcher_cpu_percent,
        "resident_bytes": status.rss_bytes,
        "kernel_memory_bytes": status.kernel_memory_bytes,
        "sink_problems": dict(status.sink_problems),
        "sink_errors": {sink: count for sink, count in status.sink_errors.items() if count},
        "url": url,
        "state_directory": state_directory,
    }
