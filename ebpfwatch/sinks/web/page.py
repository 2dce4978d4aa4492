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
from ebpfwatch.catalogue.verdicts import Kind
from ebpfwatch.sinks.status import Status
from ebpfwatch.sinks.summary import Level, headline, hook_state, watches
from ebpfwatch.sinks.text import body, in_short
from ebpfwatch.sinks.web import runbook
from ebpfwatch.sinks.web.svg import LEVELS, level, watermarks
from ebpfwatch.text.printable import printable
from ebpfwatch.text.sizes import size
from ebpfwatch.text.times import ago, utc
from ebpfwatch.verdicts.advice import advice
from ebpfwatch.verdicts.finding import Confidence, Finding, Severity

__all__ = ["finding_page", "page", "runbook_page", "style_hash"]


_LEVELS = {Level.OK: "ok", Level.WARNING: "warn", Level.CRITICAL: "bad", Level.UNKNOWN: "warn"}
_SHOWN = 10


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
        "<a href='/runbook'>runbook</a><a href='/metrics'>metrics</a>"
        "<a href='/-/healthy'>healthy</a><a href='/-/ready'>ready</a></nav></header><main>"
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


def finding_page(finding: Finding, now: float) -> str:
    """One finding in full, as `ebpfwatch report ID` prints it."""
    title = f"{finding.verdict.value} ({finding.confidence.value})"
    steps = advice(finding)
    what = "".join(f"<li>{_e(step)}</li>" for step in steps) or "<li>nothing</li>"
    alert = "EbpfwatchCause" if finding.verdict.kind is Kind.CAUSE else "EbpfwatchDamage"
    sure = finding.confidence is Confidence.CONFIRMED and finding.verdict.kind is not Kind.CONTEXT
    ack = f"ebpfwatch report --ack {_e(finding.id)}"
    until = f" When it is taken care of and the machine cannot boot yet: <code>{ack}</code>"
    section = (alert if sure else "EbpfwatchCandidate").lower()
    return _document(
        title,
        "<section aria-labelledby=short><h2 id=short>"
        + (_pill("none", "self-test") if finding.test else "")
        + f" {_e(title)}</h2>"
        + "".join(f"<p>{_e(line)}</p>" for line in in_short(finding))
        + f"<p class=dim>{utc(finding.realtime_us / 1e6)}, {ago(now - finding.realtime_us / 1e6)}"
        " ago</p></section>"
        + f"<section aria-labelledby=do><h2 id=do>What to do</h2><ol>{what}</ol>"
        f"<p><a href='/runbook#{section}'>The runbook</a> has more."
        f"{'' if finding.test else until}</p>"
        "</section>" + "<section aria-labelledby=whole><h2 id=whole>The report</h2>"
        f"<pre class=wide tabindex=0>{_lines(body(finding))}</pre></section>",
    )


def runbook_page(path: str) -> str:
    """The runbook of the alerts, in the language of this path; where it is missing, why."""
    language, file = runbook.LANGUAGES[path]
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        text = f"# Runbook\n\nIt cannot be read: {printable(str(error))}."
    section = f"<section class=text>{runbook.to_html(text)}</section>"
    return _document("Runbook", section, False, language)


def _document(title: str, main: str, heading: bool = True, language: str = "en") -> str:
    host = os.uname()
    # The runbook brings a heading of its own.
    head = "<h1>ebpfwatch</h1>" if heading else "<strong>ebpfwatch</strong>"
    return (
        f"<!doctype html><html lang={language}><meta charset=utf-8>"
        f"<title>{_e(title)}: ebpfwatch on {_e(host.nodename)}</title>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<style>{_style()}</style>"
        f"<header>{head}<span class=dim>{_e(host.nodename)}</span>"
        "<nav aria-label=Pages><a href='/'>state</a><a href='/runbook'>runbook</a></nav></header>"
        f"<main>{main}</main></html>"
    )


def _lines(text: str) -> str:
    """Lines stay lines; what is in each is made printable."""
    return "\n".join(_e(line) for line in text.split("\n"))


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
    first = headline(status)
    alert = first.alert
    link = f" <a href='/runbook#{alert.lower()}'>What to do</a>" if alert else ""
    return (
        f"<div class='headline {_LEVELS[first.level]}' role=status><p>{_e(first.what)}</p>"
        f"<p>{_e(first.why)}{link} <span class=dim>Watching for"
        f" {ago(now - status.started)}.</span></p></div>"
    )


def _notices(status: Status) -> str:
    notices = []
    if status.web.exposed:
        notices.append(
            f"This page and /metrics are open to the network without {status.web.exposed}."
            " Listen on a loopback address, or set metrics.web_config."
        )
    if not status.web.up_to_date:
        notices.append("The web configuration on disk is wrong; an older one is in force.")
    if not status.config_up_to_date:
        notices.append("The configuration on disk is wrong; an older one is in force.")
    for sink, why in status.sink_problems.items():
        notices.append(f"The sink {sink} could take no finding now: {why}.")
    for sink, count in status.sink_errors.items():
        if count:
            notices.append(f"Findings not written to {sink} since the start: {count}.")
    if status.governed.off:
        notices.append(
            "The watcher has cost more than governor.cpu_percent,"
            f" so it goes without {', '.join(status.governed.off)}."
        )
    return "".join(f"<p class='notice warn'>{_e(notice)}</p>" for notice in notices)


def _findings(findings: tuple[Finding, ...], now: float) -> str:
    if not findings:
        return "<p class=dim>None since this machine booted.</p>"
    return "<ol class=findings>" + "".join(_finding(f, now) for f in findings[:_SHOWN]) + "</ol>"


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
        + f"<h3><a href='/findings/{_e(finding.id)}'>{_e(finding.verdict.value)}</a></h3>"
        + _pill("none" if finding.test else kind, finding.confidence.value)
        + f"<time class=dim datetime='{when:%Y-%m-%dT%H:%M:%SZ}'>{when:%Y-%m-%d %H:%M:%S} UTC,"
        f" {ago(now - seconds)} ago</time></div>"
        f"<p>{_e(finding.summary)}</p>"
        f"<p class=dim>{_e(', '.join(facts))}</p>"
        f"<p class=dim>Why {_e(finding.confidence.value)}: {_e('; '.join(finding.reasons))}</p>"
        f"<p><code>{_e(command)}</code></p></li>"
    )


def _hooks(status: Status) -> str:
    rows = "".join(
        f"<tr><th scope=row>{_e(hook.role)}</th><td>{_state(hook_state(status, hook))}</td>"
        f"<td>{_e(watches(hook.role))}</td>"
        f"<td class=mono>{_e(hook.name)}</td><td class=why>{_e(hook.why)}</td></tr>"
        for hook in status.kernel.hooks
    )
    used = len(status.proofs.alive)
    alive = sum(alive is True for alive in status.proofs.alive.values())
    return (
        f"<p>{alive} of {used} hooks in use are proven alive;"
        f" {len(status.kernel.hooks) - used} are not used on this kernel.</p>"
        "<table class=stacked><thead><tr><th scope=col>hook</th><th scope=col>state</th>"
        "<th scope=col>what it sees</th><th scope=col>how it is attached</th>"
        "<th scope=col>why not in a better way, and what this one costs</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _state(word: str) -> str:
    kinds = {
        "alive": "ok",
        "silent": "bad",
        "off": "warn",
        "not proven yet": "fair",
        "armed": "fair",
    }
    return _pill(kinds.get(word, "none"), "SILENT" if word == "silent" else word)


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
    rows = [(text, status.kernel.events.get(name, 0)) for name, text in EVENTS.items()]
    rows += [
        ("inodes dying now", status.kernel.table.dying),
        ("dead inodes remembered", status.kernel.table.dead),
    ]
    return _numbers(rows)


def _losses(status: Status) -> str:
    return _numbers_above_0([(text, status.losses.get(name, 0)) for name, text in LOSSES.items()])


def _kernel_log(status: Status) -> str:
    return _numbers_above_0(sorted(status.boot.kernel_log.items()))


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
        f" {size(status.kernel.memory_bytes)} in the kernel. As of {drawn:%Y-%m-%d %H:%M:%S} UTC;"
        " The page reloads every minute.</p></footer>"
    )
