"""Rounds of all subjects, and what they say."""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
import time
from collections.abc import Sequence

from tests.bench.subjects import Subject
from tests.bench.workloads import Bench, Workload

__all__ = ["Row", "measure"]

#: What the predecessor's end still costs (RCU frees its programs) is over by then.
_SETTLE_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Row:
    """One subject in one workload: microseconds an operation, and the ratios of paired rounds.

    ``interval`` and ``floor_interval`` are where the medians lie with a confidence of 95 % (0, 0
    where there is no floor).
    """

    workload: str
    subject: str
    rounds: int
    us: float
    to_nothing: float
    to_floor: float | None
    interval: tuple[float, float]
    floor_interval: tuple[float, float]


def measure(
    bench: Bench, workload: Workload, subjects: Sequence[Subject], rounds: float
) -> list[Row]:
    """Every subject once a round; each ratio is of two runs of one round.

    The order is drawn anew each round (with a seed, so that a run can be repeated): in a turning
    one each subject always followed the same other, and whoever came after a tool of many programs
    paid for its end. What is measured has run once before under the same subject, uncounted.
    """
    chosen = [subject for subject in subjects if workload.takes(subject.name)]
    workload.run(bench)  # what is only done once
    seconds: dict[str, list[float]] = {subject.name: [] for subject in chosen}
    count = max(3, round(workload.rounds * rounds))
    order = random.Random(workload.name)
    for _ in range(count):
        for subject in order.sample(chosen, len(chosen)):
            with subject.on():  # type: ignore[attr-defined]
                time.sleep(_SETTLE_SECONDS)
                if workload.warm:
                    workload.run(bench)
                took, operations = workload.run(bench)
            seconds[subject.name].append(took / operations)
    return [_row(workload, subject, seconds, count) for subject in chosen]


def _row(workload: Workload, subject: Subject, seconds: dict[str, list[float]], rounds: int) -> Row:
    mine = seconds[subject.name]
    ratios = [a / b for a, b in zip(mine, seconds["nothing"])]
    above = [a / b for a, b in zip(mine, seconds.get(subject.floor, []))]
    return Row(
        workload.name,
        subject.name,
        rounds,
        statistics.median(mine) * 1e6,
        statistics.median(ratios),
        statistics.median(above) if above else None,
        _interval(ratios),
        _interval(above) if above else (0.0, 0.0),
    )


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """By order: how many of n lie below the true median is binomial, whatever their spread."""
    ordered, half = sorted(values), 0.98 * math.sqrt(len(values))
    low = max(0, math.floor(len(values) / 2 - half))
    return ordered[low], ordered[len(values) - 1 - low]
