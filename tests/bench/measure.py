"""Rounds of all subjects in turn, and what they say."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from tests.bench.subjects import Subject
from tests.bench.workloads import Bench, Workload

__all__ = ["Row", "measure"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One subject in one workload: microseconds an operation, and the ratios of paired rounds.

    ``spread`` is the middle half of the ratios to nothing.
    """

    workload: str
    subject: str
    rounds: int
    us: float
    to_nothing: float
    to_floor: float | None
    spread: tuple[float, float]


def measure(
    bench: Bench, workload: Workload, subjects: Sequence[Subject], rounds: float
) -> list[Row]:
    """Every subject once a round, the order turning; each ratio is of neighbours in time."""
    chosen = [s for s in subjects if not workload.only or s.name in workload.only]
    workload.run(bench)  # what is only done once
    seconds: dict[str, list[float]] = {subject.name: [] for subject in chosen}
    count = max(3, round(workload.rounds * rounds))
    for number in range(count):
        turn = number % len(chosen)
        for subject in chosen[turn:] + chosen[:turn]:
            with subject.on():  # type: ignore[attr-defined]
                took, operations = workload.run(bench)
            seconds[subject.name].append(took / operations)
    return [_row(workload, subject, seconds, count) for subject in chosen]


def _row(workload: Workload, subject: Subject, seconds: dict[str, list[float]], rounds: int) -> Row:
    mine = seconds[subject.name]
    ratios = sorted(a / b for a, b in zip(mine, seconds["nothing"]))
    floor = seconds.get(subject.floor)
    quarters = statistics.quantiles(ratios, n=4)
    return Row(
        workload.name,
        subject.name,
        rounds,
        statistics.median(mine) * 1e6,
        statistics.median(ratios),
        statistics.median(a / b for a, b in zip(mine, floor)) if floor else None,
        (quarters[0], quarters[2]),
    )
