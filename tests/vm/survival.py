"""The tables of docs/evidence.md: what of each finding could be read after the guest's end."""

from __future__ import annotations

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
    crimes = [row for row in rows if row.places and not row.scenario.startswith("cause:")]
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
    return text + _leads([row for row in rows if row.scenario == "leads"])


def _cell(lacks: str | None) -> str:
    return "" if lacks is None else f"without {lacks}" if lacks else "yes"


def _leads(rows: list[Row]) -> str:
    if not rows:
        return ""
    text = (
        "\n| kernel | 20 double destroys, in a guest whose time is its instructions |\n|---|---|\n"
    )
    return text + "".join(f"| {row.release} | {row.extra} |\n" for row in rows)
