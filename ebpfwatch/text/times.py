"""Times for people: always UTC, always with the zone's name."""

from __future__ import annotations

import datetime
import re

__all__ = ["ago", "moment", "utc"]

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_FORMS = ("%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d")


def utc(seconds: float) -> str:
    """2026-01-31 08:15:00 UTC, of seconds since the epoch."""
    when = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"


def ago(seconds: float) -> str:
    """A duration in its largest unit."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{max(0, int(seconds))} s"


def moment(text: str, now: float) -> float:
    """Seconds since the epoch of "2026-01-31", "2026-01-31 08:15", "today", "yesterday", or "2h",
    which is two hours ago; raises ``ValueError``, which says what can be written.
    """
    words = (
        text.strip().lower().replace("t", " ", 1) if text[:1].isdigit() else text.strip().lower()
    )
    today = now // 86400 * 86400
    if words in ("now", "today", "yesterday"):
        return {"now": now, "today": today, "yesterday": today - 86400}[words]
    found = re.fullmatch(r"(\d{1,9}) ?(s|m|min|h|d|w)( ago)?", words)
    if found is not None:
        return now - int(found[1]) * _UNITS[found[2]]
    plain = words[:-1] if words.endswith("z") else words.removesuffix(" utc")
    for form in _FORMS:
        try:
            when = datetime.datetime.strptime(plain, form)
            return when.replace(tzinfo=datetime.timezone.utc).timestamp()
        except (ValueError, OverflowError):
            continue
    raise ValueError(
        f"{text!r} is no time; write 2026-01-31, 2026-01-31 08:15 (UTC), today, or 2h for two hours"
        " ago"
    )
