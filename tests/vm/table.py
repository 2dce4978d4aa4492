"""docs/detection.md, from the rows of a full `make test-vm`."""

# ruff: noqa: E501 - the page's own lines

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tests.vm.judge import Row
from tests.vm.scenarios import SCENARIOS
from tests.vm.survival import whole

__all__ = ["sections", "table"]

_HEAD = """\
# Detection in guests

For kernel engineers: which mistakes were made in test guests on purpose, and what ebpfwatch reported.

Written by `make test-vm`, which fails where a result is not as expected; `FIGURES=1` with `SCENARIOS=` writes the parts
that were run. Each line of the first three tables is an arm64 guest of its own.
"""

_CRIMES = """\
## Crimes: an inode freed twice

tests/vm/modules/crime.c frees one inode wrongly while the daemon runs. *Lead* is the
time from the crime, when the verdict fell, to the kernel's own first complaint in its log; none where the kernel
never complained. *Ahead* is the time from a `double_destroy` to the second free that it announces, as the module
saw that; none where it never came, because two callbacks in one list lost each other.

| kernel | scenario | detected | where it survived | guilty module named | lead | ahead | the kernel itself |
|---|---|---|---|---|---|---|---|
"""

_ALONE = """\
## Who notices without us

The same crimes without the daemon: with what the kernel does anyway (Debian's and the 4.19 kernel have the
hardened freelist), with `slub_debug=FZPU,ext4_inode_cache`, and with `kfence.sample_interval=1` (only Debian's
6.12 has KFENCE), once on a victim as it comes and once on one that KFENCE happened to sample out of 500.
After the crime 4000 files are created and deleted; *silent* means that nothing was said in the 10 s after that.

| kernel | scenario | by itself | slub_debug | KFENCE | KFENCE, object sampled | ebpfwatch |
|---|---|---|---|---|---|---|
"""

_MISTAKES = """\
## Mistakes, before anything is freed twice

tests/vm/modules/causes.c makes each of these on purpose, in a guest of its own, and ordinary work goes on: churn,
`drop_caches` on both CPUs, files closed. The hooks on `iput()` and `__fput()` are armed. *Mistake to verdict* is by the
module's own line, *verdict to the kernel's first word* ends at the first warning, BUG or oops in its log, and is empty where
the kernel never spoke. *Nothing armed* is the time from the mistake to the first verdict that needs no armed hook: what the
default configuration tells. "No" there means: not before the kernel's first word, or not at all where it never spoke.

| kernel | mistake | told | mistake to verdict | verdict to the kernel's first word | nothing armed | where it survived | module named | the kernel itself |
|---|---|---|---|---|---|---|---|---|
"""

_CHURN = """\
## Churn

150 s in each guest (emulated, 1 GB, two CPUs): files and trees made, renamed and deleted in a loop, `find /` and
`drop_caches`, and a process that takes memory until kswapd works. *Explained* is freed +
missed + forgotten + torn; the difference to the evicted are inodes in their grace period.

| kernel | evicted | in reclaim | freed | missed | forgotten | torn | false positives |
|---|---|---|---|---|---|---|---|
"""

_LEGAL = """\
## Legal work

What looks like a mistake from near, and is none. The armed hooks are attached. *legal-load*: files, pipes and sockets at
different priorities while a CPU goes and comes, `find` and `drop_caches`. *neighbours*: deep trees in reclaim, renames, dying
processes, FUSE, overlayfs, file handles, unnamed files, hard links, directories and files deleted while open, mounts,
quota, CPU hotplug, one after the other. *Missed*: frees that no program saw, which the table knows; the difference to
the evicted are inodes in their grace period.

| kernel | work | minutes | evicted | in reclaim | freed | missed | forgotten | torn | unlinked | dentries killed | `iput` | `__fput` | false verdicts |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
"""

_PRICE = """\
## What a rung costs

A thousand files created and deleted, with an empty program on one place against the same without, five pairs, in
a 6.12 guest whose clock counts instructions (QEMU `-icount`): the median ratio and the extremes. The fentry
programs of destroy and rcu_free also ask for their function's caller, which a kprobe has in a register. Real
silicon adds the price of the kprobe's trap, which no instruction count shows.

| role | rung | ratio | pairs |
|---|---|---|---|
"""

_REST = """\
## The rest

| kernel | scenario | result |
|---|---|---|
"""

_MISSING = """\
## What did not run

| guest | why |
|---|---|
"""

_OWN_TABLES = ("churn", "price", "legal-load", "neighbours")
_TOOLS = ("nothing", "slub_debug", "kfence", "kfence-sampled")


def sections(rows: list[Row], missing: Mapping[str, str]) -> dict[str, str]:
    """Each part of the page by its mark, "" where there is nothing for it; ``missing`` are the
    guests that were not run for it, and why.
    """
    alone = [scenario.name for scenario in SCENARIOS if scenario.alone]
    judges = [scenario.name for scenario in SCENARIOS if scenario.judges]
    mistakes = [row for row in rows if row.scenario.startswith("cause:")]
    crimes = [row for row in rows if row.scenario not in alone + judges and row not in mistakes]
    compared = [row for row in rows if row.scenario in alone]
    churned = [row for row in rows if row.scenario == "churn"]
    legal = [row for row in rows if row.scenario in ("legal-load", "neighbours")]
    prices = [row.extra.splitlines() for row in rows if row.scenario == "price" and row.ok]
    priced = [f"| {' | '.join(line.split('|'))} |\n" for lines in prices for line in lines]
    rest = [row for row in rows if row.scenario in judges and row.scenario not in _OWN_TABLES]
    parts: dict[str, tuple[str, Iterable[str]]] = {
        "crimes": (_CRIMES, map(_crime, crimes)),
        "mistakes": (_MISTAKES, map(_mistake, mistakes)),
        "alone": (_ALONE, [_comparison(compared, crimes)] if compared else []),
        "churn": (_CHURN, map(_churn, churned)),
        "legal": (_LEGAL, _legal(legal)),
        "price": (_PRICE, priced),
        "rest": (_REST, (f"| {r.release} | {r.what} | {r.why or 'passed'} |\n" for r in rest)),
        "missing": (_MISSING, (f"| {guest} | {why} |\n" for guest, why in missing.items())),
    }
    texts = {mark: (head, "".join(lines)) for mark, (head, lines) in parts.items()}
    return {mark: head + lines if lines else "" for mark, (head, lines) in texts.items()}


def table(rows: list[Row], missing: Mapping[str, str]) -> str:
    """The whole page."""
    parts = sections(rows, missing).items()
    return _HEAD + "".join(f"\n<!-- {mark} -->\n{text}<!-- /{mark} -->\n" for mark, text in parts)


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} ms"


def _detected(row: Row) -> str:
    return "; ".join(row.detected[:3]) or row.why or "nothing, rightly"


def _crime(row: Row) -> str:
    cells = (
        row.release,
        row.what,
        _detected(row),
        ", ".join(whole(row.places)),
        "yes" if row.named else "",
        _ms(row.lead_ms),
        _ms(row.early_ms),
        row.ended,
    )
    return f"| {' | '.join(cells)} |\n"


def _mistake(row: Row) -> str:
    cells = (
        row.release,
        row.what,
        _detected(row),
        _ms(row.told_ms),
        _ms(row.word_ms),
        (_ms(row.default_ms) or "no") if row.told_ms is not None else "",
        ", ".join(row.places),
        "yes" if row.named else "",
        row.ended,
    )
    return f"| {' | '.join(cells)} |\n"


def _comparison(compared: list[Row], crimes: list[Row]) -> str:
    said = {(row.kernel, row.scenario): row.ended if row.ok else row.why for row in compared}
    ours = {(row.kernel, row.scenario): _detected(row) for row in crimes}
    lines = []
    for row in compared:
        tool, _, crime = row.scenario.partition(":")
        if tool == _TOOLS[0]:
            cells = [said.get((row.kernel, f"{name}:{crime}"), "not there") for name in _TOOLS]
            cells.append(ours.get((row.kernel, crime), ""))
            lines.append(f"| {row.release} | {row.what} | {' | '.join(cells)} |\n")
    return "".join(lines)


def _churn(row: Row) -> str:
    numbers = _numbers(row)
    cells = [numbers.get(name, "") for name in ("evicted", "in_reclaim", "freed")]
    cells += [numbers.get(name, "") for name in ("missed", "forgotten", "torn")]
    return f"| {row.release} | {' | '.join(cells)} | {'0' if row.ok else row.why} |\n"


def _numbers(row: Row) -> dict[str, str]:
    """What scripts/sums.py printed: "evicted 1000 in_reclaim 10 ..."."""
    for line in row.extra.splitlines():
        words = line.split()
        if words[:1] == ["evicted"]:
            return dict(zip(words[::2], words[1::2]))
    return {}


#: The columns of the table of legal work, as scripts/sums.py names them.
_COUNTED = (
    *("minutes", "evicted", "in_reclaim", "freed", "missed", "forgotten", "torn"),
    *("unlinked", "dentries", "put", "closed"),
)


def _legal(rows: list[Row]) -> list[str]:
    """A line for each guest, and one that sums them up."""
    lines, sums = [], dict.fromkeys(_COUNTED, 0.0)
    for row in rows:
        numbers = {"minutes": f"{row.minutes:g}", **_numbers(row)}
        cells = [row.release, row.scenario, *(numbers.get(name, "") for name in _COUNTED)]
        lines.append(f"| {' | '.join(cells)} | {'0' if row.ok else row.why} |\n")
        for name in _COUNTED:
            sums[name] += float(numbers.get(name, 0))
    wrong = len([row for row in rows if not row.ok])
    cells = ["all", f"guests: {len(rows)}", *(f"{sums[name]:.10g}" for name in _COUNTED)]
    return [*lines, f"| {' | '.join(cells)} | {wrong or 0} |\n"] if lines else []
