"""Several crashes side by side: what they have in common, and where they differ."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from ebpfwatch.text.printable import printable
from ebpfwatch.triage.assess import Weight, in_reclaim, in_softirq, own_symbols
from ebpfwatch.triage.summary import Group, Triage

__all__ = ["Crash", "compared", "crashes", "tell"]

_NUMBERS = re.compile(r"(?:0x)?[0-9a-f]*[0-9][0-9a-f]*")


@dataclasses.dataclass(frozen=True)
class Crash:
    """A boot that is worth comparing; ``name`` says of which log."""

    name: str
    triage: Triage


def crashes(boots: Sequence[tuple[str, Triage]]) -> list[Crash]:
    """Those with a report that may have to do with this bug."""
    wanted = ("this_bug", "suspected", "undecided")
    return [Crash(name, triage) for name, triage in boots if triage.verdict in wanted]


def _main(triage: Triage) -> Group | None:
    """The heaviest report."""
    groups = [g for g in triage.groups if g.assessment.weight > Weight.OTHER]
    return max(groups, key=lambda g: g.assessment.weight, default=None)


def _row(triage: Triage) -> dict[str, str]:
    """One value for each thing that is compared, "" where the log does not say."""
    group = _main(triage)
    row = {
        "verdict": triage.verdict,
        "kernel": f"{triage.release} {triage.build}".strip(),
        "machine": ", ".join(part for part in (triage.arch, triage.hardware) if part),
        "reports": ", ".join(f"{n} {kind}" for kind, n in triage.kinds.items()),
        "free memory at the last report": (
            "" if triage.free_pages is None else f"{triage.free_pages} pages"
        ),
    }
    if group is None:
        return row
    report = group.report
    symbols = own_symbols(report)
    context = "softirq" if in_softirq(report) else "reclaim" if in_reclaim(report) else "task"
    return {
        **row,
        "signature": f"{report.kind} in {symbols[0]}" if symbols else report.kind,
        "path": " < ".join(symbols[:5]),
        "context": context if symbols else "",
        "damaged": group.assessment.thing,
        "fault address": "" if report.fault_address is None else f"{report.fault_address:#x}",
        "uptime": "" if report.seconds is None else _uptime(report.seconds),
        "task": report.comm,
    }


def _uptime(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def _sets(triage: Triage) -> dict[str, set[str]]:
    return {
        "out-of-tree modules": {module.name for module in triage.foreign()},
        "lines not known here": {_NUMBERS.sub("#", line.text) for line in triage.repeated},
    }


def compared(found: Sequence[Crash]) -> dict[str, Any]:
    """``same``: what all have; ``different``: by crash; keys in a fixed order."""
    rows = [_row(crash.triage) for crash in found]
    same: dict[str, str] = {}
    different: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(key, "") for row in rows]
        if any(values):
            if len(set(values)) == 1:
                same[key] = values[0]
            else:
                different[key] = values
    sets = [_sets(crash.triage) for crash in found]
    for key in ("out-of-tree modules", "lines not known here"):
        each = [one[key] for one in sets]
        common = set.intersection(*each) if each else set()
        if common:
            same[key] = ", ".join(sorted(common))
        if any(one - common for one in each):
            different[f"further {key}"] = [", ".join(sorted(one - common)) for one in each]
    return {"crashes": [crash.name for crash in found], "same": same, "different": different}


def tell(found: Sequence[Crash], width: int) -> str:
    """The comparison as text: one table of what is the same, one of what differs."""
    table = compared(found)
    lines = [f"{len(found)} crashes compared:"]
    lines += [f"  ({index}) {name}" for index, name in enumerate(table["crashes"], 1)]
    if table["same"]:
        lines += ["", "The same in all:"]
        for key, value in table["same"].items():
            lines += _entry(f"{key}: {value}", width)
    if table["different"]:
        lines += ["", "Different:"]
        for key, values in table["different"].items():
            by_value: dict[str, list[str]] = {}
            for index, value in enumerate(values, 1):
                by_value.setdefault(value or "(not in the log)", []).append(str(index))
            shown = "; ".join(f"({', '.join(who)}) {value}" for value, who in by_value.items())
            lines += _entry(f"{key}: {shown}", width)
    return "\n".join(printable(line) for line in lines)


def _entry(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="      ")
