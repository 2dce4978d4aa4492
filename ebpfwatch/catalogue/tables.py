"""docs/catalogue.md, written from the catalogue: every row of every table, for people.

`make contract` writes it; a test says when the page is not what this would write, so that no row
can be dropped without anybody seeing it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ebpfwatch.catalogue import functions
from ebpfwatch.catalogue.counters import ROWS
from ebpfwatch.catalogue.ladder import UNITS
from ebpfwatch.catalogue.roles import Hook
from ebpfwatch.catalogue.verdicts import Verdict

__all__ = ["text"]

_HEAD = """\
# Catalogue

For those who change the code, or want to know what a word in a metric or a finding means.
Written from `ebpfwatch/catalogue/` by `make contract`: do not edit it here.
"""


def text() -> str:
    """The whole page."""
    parts = [_HEAD, _verdicts(), _roles(), _rungs(), _counters(), _functions()]
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(_cell, line)) + " |\n" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("\n", " ").replace("|", "\\|")


def _verdicts() -> str:
    def row(verdict: Verdict) -> list[object]:
        forged = "; ".join(" and ".join(roles) for roles in verdict.forged_by)
        return [
            verdict.number,
            f"`{verdict.value}`",
            verdict.kind.value,
            "yes" if verdict.damage else "no",
            verdict.words.explained,
            forged or "the object itself proves it",
        ]

    head = ("no.", "verdict", "kind", "damage", "what happened", "false only if all missed")
    return "## Verdicts\n\n" + _table(head, map(row, Verdict))


def _roles() -> str:
    head = ("no.", "role", "what it sees", "proven by", "lost if the governor takes it")
    rows = ([h.number, f"`{h.value}`", h.watches, h.proof.value, h.loss or "never"] for h in Hook)
    return "## Roles\n\n" + _table(head, rows)


def _rungs() -> str:
    rows = [
        [
            f"`{role}`",
            number,
            rung.kind,
            ", ".join(f"{a.target} ({a.function})" for a in rung.attachments),
            " ".join(rung.defines),
        ]
        for unit in UNITS.values()
        for role, rungs in unit.ladder.items()
        for number, rung in enumerate(rungs, 1)
    ]
    head = ("role", "rung", "kind", "place in the kernel (program)", "defines")
    return "## Rungs, best first\n\n" + _table(head, rows)


def _counters() -> str:
    rows = (
        [f"`{row.name}`", row.shown.value, row.kernel or "(user space)", row.means] for row in ROWS
    )
    return "## Counters\n\n" + _table(("name", "exported as", "in the probes", "what"), rows)


def _functions() -> str:
    rows: list[Sequence[object]] = []
    for name in functions.__all__:
        value = getattr(functions, name)
        words = value.pattern if hasattr(value, "pattern") else ", ".join(sorted(value))
        rows.append([name, f"`{words}`"])
    return "## Names that a stack is read by\n\n" + _table(("table", "names"), rows)


if __name__ == "__main__":
    print(text(), end="")
