"""The status page: are the hooks alive, what was found, how does memory stand.

One self-contained document. Every text that is not ours goes through ``_e``: file and task names
were chosen by anybody.
"""

from __future__ import annotations

import datetime
import functools
import html
import os
from pathlib import Path

from ebpfwatch import __version__
from ebpfwatch.catalogue.counters import EVENTS, LOSSES
from ebpfwatch.catalogue.roles import BY_CANARY
from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.sinks.status import HookStatus, Status
from ebpfwatch.sinks.web.svg import LEVELS, level, size, watermarks
from ebpfwatch.text.printable import printable
from ebpfwatch.verdicts.finding import Confidence, Finding, Severity

__all__ = ["headline", "page", "style_hash"]


def page(status: Status, findings: tuple[Finding, ...], now: float) -> str:
    """The document; ``now`` is seconds since the epoch."""
    host = os.uname()
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>ebpfwatch on {_e(host.nodename)}</title>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<style>{_style()}</style>"
        f"<header><h1>ebpfwatch</h1><span class=dim>{_e(host.nodename)} · Linux"
        f" {_e(host.release)} · {_e(host.machine)}</span><nav aria-label=Endpoints>"
        "<a href='/metrics'>metrics</a><a href='/-/healthy'>healthy</a>"
        "<a href='/-/ready'>ready</a></nav></header><main>"
        + _headline(status, now)
        + _notices(status)
        + _card("Last findings", _findings(findings, now))
        + _card("Hooks", _hooks(status))
        + _card("Memory against its watermarks", _zones(status))
        + "<div class=columns>"
        + _card("Lives of inodes", _lives(status))
        + "<div>"
        + _card("Lost", _losses(status))
        + _card("Kernel log", _kernel_log(status))
        + "</div>"
        + "</div></main>"
        + _footer(status, now)
        + "</html>"
    )


def headline(status: Status) -> tuple[str, str, str]:
    """(level, what, why it matters): the one thing to know, the worst first."""
    if not status.ready:
        return "warn", "Loading", "The programs are not attached yet; nothing is watched."
    real = {
        (verdict, confidence): count
        for (verdict, confidence, test), count in status.findings.items()
        if count and not test and verdict != Verdict.CONCURRENT_UNLINK.value
    }
    sure = sum(n for (_, sureness), n in real.items() if sureness == Confidence.CONFIRMED.value)
    if sure:
        kinds = sorted({verdict for verdict, sureness in real if sureness == "confirmed"})
        return "bad", f"{sure} confirmed: {', '.join(kinds)}", "Read the report; save the evidence."
    if status.early_warning:
        return (
            "bad",
            "Early warning",
            "Precursors and pressure of the known crash have come together.",
        )
    silent = [hook.role for hook in status.hooks if hook.attached and hook.alive is False]
    if silent:
        return (
            "bad",
            f"Silent: {', '.join(silent)}",
            "No findings means nothing for what this hook should see.",
        )
    if real:
        kinds = sorted({verdict for verdict, _ in real})
        return "warn", f"{sum(real.values())} candidates: {', '.join(kinds)}", "Not confirmed."
    attached = [hook for hook in status.hooks if hook.attached]
    alive = sum(hook.alive is True for hook in attached)
    unknown = [h.role for h in attached if h.alive is None and not h.off]
    unproven = [role for role in unknown if role in BY_CANARY]
    if unproven or not alive:
        return (
            "warn",
            "Nothing found, not all proven",
            f"Not proven alive: {', '.join(unproven) or 'any hook'}.",
        )
    return (
        "ok",
        "All quiet",
        f"Nothing found since the start; {alive} of {len(attached)} hooks proven alive.",
    )


def _e(text: object) -> str:
    return html.escape(printable(str(text)))


@functools.lru_cache(maxsize=1)
def style_hash() -> str:
    """What a Content-Security-Policy calls our one style.

    Not a nonce: before Linux 5.6 a machine without a source of entropy makes getrandom() wait.
    """
    import base64
    import hashlib

    return f"'sha256-{base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()}'"


@functools.lru_cache(maxsize=1)
def _style() -> str:
    return Path(__file__).with_name("page.css").read_text(encoding="ascii")


def _card(title: str, body: str) -> str:
    name = title.split()[0].lower()
    return f"<section aria-labelledby='{name}'><h2 id='{name}'>{title}</h2>{body}</section>"


def _headline(status: Status, now: float) -> str:
    kind, what, why = headline(status)
    return (
        f"<div class='headline {kind}' role=status><p>{_e(what)}</p>"
        f"<p>{_e(why)} <span class=dim>Watching for {_age(now - status.started)}.</span></p></div>"
    )


def _notices(status: Status) -> str:
    notices = []
    if status.web_exposed:
        notices.append(
            f"This page and /metrics are open to the network without {status.web_exposed}."
            " Listen on a loopback address, or set metrics.web_config."
        )
    if not status.web_up_to_date:
        notices.append("The web configuration on disk is wrong; an older one is in force.")
    off = [hook.role for hook in status.hooks if hook.off]
    if off:
        notices.append(
            "The watcher has cost more than governor.cpu_percent,"
            f" so it goes without {', '.join(off)}."
        )
    return "".join(f"<p class='notice warn'>{_e(notice)}</p>" for notice in notices)


def _findings(findings: tuple[Finding, ...], now: float) -> str:
    if not findings:
        return "<p class=dim>None since the start.</p>"
    return "<ol class=findings>" + "".join(_finding(f, now) for f in findings) + "</ol>"


def _finding(finding: Finding, now: float) -> str:
    seconds = finding.realtime_us / 1e6
    when = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    kind = "bad" if finding.severity <= Severity.ERR else "warn"
    identity = finding.identity
    facts = [
        f"inode {identity.ino}",
        f"generation {identity.generation}",
        f"device {identity.dev_major}:{identity.dev_minor}",
    ]
    if finding.name:
        facts.append(f"name {finding.name}")
    if finding.folded:
        facts.append(f"{finding.folded} more like it")
    command = f"ebpfwatch report {'--tests ' if finding.test else ''}{finding.id}"
    return (
        "<li><div class=head>"
        + (_pill("none", "self-test") if finding.test else "")
        + f"<h3>{_e(finding.verdict.value)}</h3>"
        + _pill("none" if finding.test else kind, finding.confidence.value)
        + f"<time class=dim datetime='{when:%Y-%m-%dT%H:%M:%SZ}'>{when:%Y-%m-%d %H:%M:%S} UTC,"
        f" {_age(now - seconds)} ago</time></div>"
        f"<p>{_e(finding.summary)}</p>"
        f"<p class=dim>{_e(', '.join(facts))}</p>"
        f"<p class=dim>Why {_e(finding.confidence.value)}: {_e('; '.join(finding.reasons))}</p>"
        f"<p><code>{_e(command)}</code></p></li>"
    )


def _hooks(status: Status) -> str:
    rows = "".join(
        f"<tr><th scope=row>{_e(hook.role)}</th><td>{_alive(hook)}</td>"
        f"<td class=mono>{_e(hook.rung or 'none')}</td><td class=why>{_e(hook.reason)}</td></tr>"
        for hook in status.hooks
    )
    return (
        "<div class=wide tabindex=0 role=group aria-labelledby=hooks><table><thead><tr>"
        "<th scope=col>hook</th><th scope=col>state</th><th scope=col>rung</th>"
        "<th scope=col>why no better one, and its price</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _alive(hook: HookStatus) -> str:
    if not hook.attached:
        return _pill("none", "absent")
    if hook.off:
        return _pill("warn", "off")
    if hook.alive is None:
        return _pill("fair", "not proven yet")
    return _pill("ok", "alive") if hook.alive else _pill("bad", "SILENT")


def _pill(kind: str, text: str) -> str:
    return f"<span class='pill {kind}'>{_e(text)}</span>"


def _zones(status: Status) -> str:
    if not status.zones:
        return "<p class=dim>/proc/zoneinfo could not be read.</p>"
    figures = []
    for zone in status.zones:
        kind, name, meaning = LEVELS[level(zone)]
        figures.append(
            f"<figure class=zone><figcaption><h3>node {zone.node} {_e(zone.zone)}</h3>"
            f"{_pill(kind, name)}<span>{size(zone.free)} free of {size(zone.managed)}</span>"
            f"<span class=dim>min {size(zone.min)}, low {size(zone.low)}, high {size(zone.high)};"
            f" {_e(meaning)}</span></figcaption>{watermarks(zone)}</figure>"
        )
    return "".join(figures)


def _lives(status: Status) -> str:
    rows = [(text, status.counters.get(name, 0)) for name, text in EVENTS.items()]
    rows += [
        ("inodes dying now", status.table_dying),
        ("dead inodes remembered", status.table_dead),
    ]
    return _numbers(rows)


def _losses(status: Status) -> str:
    return _numbers_above_0([(text, status.losses.get(name, 0)) for name, text in LOSSES.items()])


def _kernel_log(status: Status) -> str:
    return _numbers_above_0(sorted(status.kernel_log.items()))


def _numbers_above_0(rows: list[tuple[str, int]]) -> str:
    some = [(text, count) for text, count in rows if count]
    return _numbers(some) if some else "<p>Nothing.</p>"


def _numbers(rows: list[tuple[str, int]]) -> str:
    body = "".join(
        f"<tr><td>{_e(text)}</td><td class=number>{count:,}</td></tr>" for text, count in rows
    )
    return f"<table><tbody>{body}</tbody></table>"


def _footer(status: Status, now: float) -> str:
    drawn = datetime.datetime.fromtimestamp(now, datetime.timezone.utc)
    return (
        f"<footer><p>Version {_e(__version__)}; {size(status.rss_bytes)} resident,"
        f" {size(status.kernel_memory_bytes)} in the kernel. As of {drawn:%Y-%m-%d %H:%M:%S} UTC;"
        " reload for news.</p></footer>"
    )


def _age(seconds: float) -> str:
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{max(0, int(seconds))} s"
