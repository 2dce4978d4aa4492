"""The tables of docs/evidence.md: what of each finding could be read after the guest's end."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping

from tests.vm.judge import Row
from tests.vm.places import PLACES

__all__ = ["survival", "whole"]


def whole(places: Mapping[str, str]) -> list[str]:
    """The places that tell everything, and the others with what they lack."""
    return [place + (f" (without {lacks})" if lacks else "") for place, lacks in places.items()]


def survival(rows: Iterable[Row]) -> str:
    """Markdown; only of the rows that there are."""
    rows = list(rows)
    crimes = [row for row in rows if row.places and not row.scenario.startswith("lead:")]
    pstore = {row.kernel: row for row in rows if row.scenario == "reboot"}
    text = "| kernel | scenario | the guest's end | " + " | ".join(PLACES) + " |\n"
    text += "|---|---|---|" + "---|" * len(PLACES) + "\n"
    for row in crimes:
        end = "panic" if row.ended.endswith("panic") else "lived on"
        cells = [_cell(row.places.get(place)) for place in PLACES]
        text += f"| {row.release} | {row.scenario} | {end} | {' | '.join(cells)} |\n"
    if pstore:
        text += (
            "\n| kernel | read back from pstore by the next boot (scenario again) |\n|---|---|\n"
        )
        for row in pstore.values():
            text += f"| {row.release} | {row.extra if row.ok else row.why} |\n"
    leads = [row for row in rows if row.scenario.startswith("lead:")]
    return text + (_leads(leads) if leads else "")


def _cell(lacks: str | None) -> str:
    return "" if lacks is None else f"without {lacks}" if lacks else "yes"


def _leads(rows: list[Row]) -> str:
    text = (
        "\n| kernel | double_destroy committed | told | second free came | journal had it before |"
        " median from the journal to the second free |\n|---|---|---|---|---|---|\n"
    )
    for kernel in dict.fromkeys(row.kernel for row in rows):
        mine = [row for row in rows if row.kernel == kernel]
        ahead = [row.journal_ms for row in mine if row.journal_ms is not None]
        before = sum(value > 0 for value in ahead)
        median = f"{statistics.median(ahead):.0f} ms" if ahead else ""
        came = sum(row.freed_again for row in mine)
        told = sum(any(d.startswith("double_destroy") for d in row.detected) for row in mine)
        share = f"{before} of {came}" if came else "no second free came"
        text += f"| {mine[0].release} | {len(mine)} | {told} | {came} | {share} | {median} |\n"
    return text
