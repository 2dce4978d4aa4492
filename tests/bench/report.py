"""The tables of docs/performance.md, and the same as JSON."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench.measure import Row
from tests.bench.subjects import Subject
from tests.bench.verdicts import by_role, table
from tests.bench.workloads import WORKLOADS

__all__ = ["GOALS", "Results", "machine", "render"]

#: What must hold. The key is a figure of ``Results.figures``.
GOALS = {
    "storm, to the floor": 1.03,
    "storm, to nothing": 1.06,
    "storm with evictions and contracts only, to nothing": 1.02,
    "reclaim, to nothing": 1.10,
    "churn, to the floor": 1.02,
    "evidence in a storm, percentage points": 2,
    "one-liner's added cost over ours, times": -6.0,
    "growth with cached inodes, ratio of ratios": 1.03,
    "start to ready, s": 0.3,
    "peak of all processes at a start, MB": 45.0,
    "kernel memory, MB": 8.0,
    "daemon RSS at rest, MB": 28.0,
    "daemon CPU in a storm, %": 2.0,
}
_PREFIXES = {
    "daemon CPU at rest": 0.1,
    "event to file in a storm, p99": 50.0,
    "scrape that reads every collector anew, p99": 20.0,
    "daemon RSS growth": 1.0,
}


@dataclasses.dataclass
class Results:
    """Everything one run has found."""

    where: str
    rows: list[Row] = dataclasses.field(default_factory=list)
    programs: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    about: dict[str, str] = dataclasses.field(default_factory=dict)

    def json(self) -> str:
        """One line."""
        figures = {
            name: None if math.isinf(value) else value for name, value in self.figures.items()
        }
        return json.dumps({**dataclasses.asdict(self), "figures": figures}, sort_keys=True)


def machine() -> str:
    """Which machine, which kernel, how busy."""
    models = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        f"{platform.machine()}, {models[0] if models else 'CPU'} x {os.cpu_count()}, Linux"
        f" {platform.release()}, load {os.getloadavg()[0]:.1f} at the start,"
        f" {now:%Y-%m-%d %H:%M} UTC"
    )


def goal_of(name: str) -> float | None:
    """The goal of a figure; negative: at least."""
    if name in GOALS:
        return GOALS[name]
    return next((goal for prefix, goal in _PREFIXES.items() if name.startswith(prefix)), None)


def _holds(value: float, goal: float) -> bool:
    return value >= -goal if goal < 0 else value <= goal


def render(results: Results) -> str:
    """Markdown."""
    lines = [f"Measured on {results.where}.", ""]
    lines += _figures(results.figures)
    for workload in WORKLOADS:
        rows = [row for row in results.rows if row.workload == workload.name]
        if rows:
            lines += _table(f"{workload.name}: {workload.what}", rows)
    if results.programs:
        lines += _programs(results.programs)
    lines += ["", "| subject | what |", "|---|---|"]
    lines += [f"| {name} | {what} |" for name, what in results.about.items()]
    lines += [f"\n{name}: not measured: {why}" for name, why in results.missing.items()]
    return "\n".join(lines) + "\n"


def _figures(figures: Mapping[str, float]) -> list[str]:
    lines = ["| figure | measured | goal | |", "|---|---|---|---|"]
    for name, value in figures.items():
        goal = goal_of(name)
        word = "" if goal is None else f"at {'least' if goal < 0 else 'most'} {abs(goal):g}"
        verdict = "" if goal is None else "holds" if _holds(value, goal) else "**missed**"
        shown = "it was ended" if math.isinf(value) else f"{value:.4g}"
        lines.append(f"| {name} | {shown} | {word} | {verdict} |")
    return lines


def _table(title: str, rows: Sequence[Row]) -> list[str]:
    lines = ["", f"**{title}** ({rows[0].rounds} rounds)", ""]
    lines += [
        "| subject | us/op | to nothing | 95 % | to its floor | 95 % |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        floor = f"{row.to_floor:.3f} | {_range(row.floor_interval)}" if row.to_floor else " | "
        lines.append(
            f"| {row.subject} | {row.us:.2f} | {row.to_nothing:.3f}"
            f" | {_range(row.interval)} | {floor} |"
        )
    return lines


def _range(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.3f} to {ends[1]:.3f}"


def _programs(programs: Mapping[str, tuple[float, float]]) -> list[str]:
    """The clock's two readings around each run are taken off."""
    return ["", "**what each verdict costs**", "", *table("ns", by_role(programs))]


def about(subjects: Sequence[Subject]) -> dict[str, str]:
    """What each subject is."""
    return {subject.name: subject.what for subject in subjects}
