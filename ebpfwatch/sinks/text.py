"""A finding for people: a report in the manner of KASAN.

Names that come from the kernel (tasks, files) were chosen by anybody: every character that could
move a cursor, end a line or turn the text around is escaped.
"""

from __future__ import annotations

import datetime
import unicodedata

from ebpfwatch.verdicts.finding import Actor, Finding

__all__ = ["plain", "report"]

_UNSAFE = {"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"}


def plain(text: str) -> str:
    """The text on one line, with control, format and unassigned characters as \\x.. or \\u...."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if unicodedata.category(c) in _UNSAFE else c for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def report(finding: Finding) -> str:
    """Many lines: what, which inode, who first, who second, how sure and why."""
    identity = finding.identity
    when = datetime.datetime.fromtimestamp(finding.realtime_us / 1e6, datetime.timezone.utc)
    lines = [
        "=" * 66,
        f"{'TEST: ' if finding.test else ''}{finding.verdict.value}: {plain(finding.summary)}",
        f"{when:%Y-%m-%d %H:%M:%S.%f} UTC  id {finding.id}",
        "",
        f"Confidence: {finding.confidence.value}",
        *(f"  - {plain(reason)}" for reason in finding.reasons),
        "",
        f"Inode {identity.ino} generation {identity.generation} on device"
        f" {identity.dev_major}:{identity.dev_minor}, object {identity.object_address:#x}",
    ]
    if finding.name:
        lines.append(f"Name: {plain(finding.name)}")
    if finding.nlink is not None:
        lines.append(f"Links at eviction: {finding.nlink}")
    if finding.reclaim:
        lines.append(f"Reclaim: {plain(finding.reclaim)}")
    if finding.witness:
        lines.append(f"The object says: {finding.witness}")
    lines += _actor("Unlinked by", finding.unlinked_by)
    lines += _actor("Evicted by", finding.evicted_by)
    lines += _actor("First", finding.first)
    lines += _actor("Now", finding.second)
    if finding.context:
        lines += ["", "Before it:", *(f"  {plain(line)}" for line in finding.context)]
    if finding.folded:
        lines += ["", f"{finding.folded} more like the last one were not written"]
    lines.append("=" * 66)
    return "\n".join(lines)


def _actor(role: str, actor: Actor | None) -> list[str]:
    if actor is None:
        return []
    bystander = ", a bystander: this ran in RCU's softirq" if actor.context == "softirq" else ""
    return [
        "",
        f"{role}: {plain(actor.comm)} (pid {actor.pid}, tgid {actor.tgid}) on CPU {actor.cpu}"
        f" at {actor.ns / 1e9:.6f}{bystander}",
        *(f"  {plain(frame)}" for frame in actor.stack),
    ]
