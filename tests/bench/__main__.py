"""`make bench`: what detection costs, side by side with nothing, the floor, and other tools."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ebpfwatch.kernel.libbpf import library
from tests.bench.daemoncost import costs, starts
from tests.bench.measure import Row, measure
from tests.bench.programs import programs
from tests.bench.report import Results, about, machine, render
from tests.bench.subjects import (
    AGAIN,
    NO_EVIDENCE,
    NO_UNLINK,
    ONLY_CAUSES,
    Subject,
    available,
    subjects,
)
from tests.bench.workloads import WORKLOADS, Bench
from tests.live.harness import loop_ext4
from tests.trust.figures import between

_IMAGE_BYTES = 6 << 30
_MKFS = ("-i", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0")  # nothing left to do later


def main() -> None:
    """Print the tables and one line of JSON; with --write put them into the documentation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of every workload")
    parser.add_argument("--rounds", type=float, default=1.0, help="times the usual number")
    parser.add_argument("--only", default="", help="workloads, or start, daemon, programs, growth")
    parser.add_argument("--lives", type=int, default=10_000_000, help="for the growth of RSS")
    parser.add_argument("--rest", type=float, default=300, help="seconds at rest")
    parser.add_argument("--write", type=Path, help="docs/performance.md")
    arguments = parser.parse_args()
    library()
    with contextlib.ExitStack() as stack:
        # In memory, so that no disk is measured.
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir="/dev/shm"))
        mount = stack.enter_context(loop_ext4(Path(name), _IMAGE_BYTES, _MKFS))
        results = _all(Bench(Path(name), mount, arguments.scale), arguments, stack)
    text = render(results)
    print(text)
    print(results.json())
    if arguments.write:
        between(arguments.write, "bench", text)
        arguments.write.with_suffix(".json").write_text(results.json() + "\n")


def _all(bench: Bench, arguments: argparse.Namespace, stack: contextlib.ExitStack) -> Results:
    results = Results(machine())
    wanted = [name.strip() for name in arguments.only.split(",") if name.strip()]

    def chosen(name: str) -> bool:
        if wanted and name not in wanted:
            return False
        print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
        return True

    if chosen("start"):
        results.figures.update(starts(bench))
    if chosen("daemon"):
        results.figures.update(costs(bench, arguments.lives, arguments.rest, 100))
    if chosen("programs"):
        results.programs = programs(bench, max(3, round(9 * arguments.rounds)))
    if wanted and not set(wanted) & {*(workload.name for workload in WORKLOADS), "growth"}:
        return results
    found, results.missing = available(subjects(bench.mount, stack))
    results.about = about(found)
    for workload in WORKLOADS:
        if chosen(workload.name):
            results.rows += measure(bench, workload, found, arguments.rounds)
    if chosen("growth"):
        results.figures.update(_growth(bench, found, arguments.rounds))
    results.figures = {**_ratios(results.rows), **results.figures}
    return results


def _ratios(rows: Sequence[Row]) -> dict[str, float]:
    """The figures that have a goal, from the tables."""
    found = {(row.workload, row.subject): row for row in rows}
    figures: dict[str, float] = {}
    for name, workload in (("storm", "pairs"), ("churn", "churn")):
        row = found.get((workload, "ebpfwatch"))
        if row is not None and row.to_floor is not None:
            figures[f"{name}, to the floor"] = row.to_floor
    ours = found.get(("pairs", "ebpfwatch"))
    if ours is not None:
        figures["storm, to nothing"] = ours.to_nothing
        figures["storm, nothing to nothing"] = found["pairs", AGAIN].to_nothing
        for what, name in (("evidence", NO_EVIDENCE), ("unlink hooks", NO_UNLINK)):
            points = 100 * (ours.to_nothing - found["pairs", name].to_nothing)
            figures[f"{what} in a storm, percentage points"] = points
        figures["storm with evictions and contracts only, to nothing"] = found[
            "pairs", ONLY_CAUSES
        ].to_nothing
    reclaim = found.get(("reclaim", "ebpfwatch"))
    if reclaim is not None:
        figures["reclaim, to nothing"] = reclaim.to_nothing
    ours, theirs = found.get(("storm", "ebpfwatch")), found.get(("storm", "bpftrace one-liner"))
    if ours is not None and theirs is not None:
        added = max(ours.to_nothing - 1, 0.001)
        figures["one-liner's added cost over ours, times"] = (theirs.to_nothing - 1) / added
    return figures


def _growth(bench: Bench, found: Sequence[Subject], rounds: float) -> dict[str, float]:
    """What a storm costs with a million inodes cached, against with none: ours over nothing's."""
    storm = next(workload for workload in WORKLOADS if workload.name == "storm")
    two = [subject for subject in found if subject.name in ("nothing", "ebpfwatch")]
    ratios = []
    count = bench.count(1_000_000) // 1000 * 1000
    bench.files(count)
    for cached in (False, True):
        Path("/proc/sys/vm/drop_caches").write_text("2")
        if cached:
            bench.cache(count)
        rows = measure(bench, storm, two, rounds)
        ratios.append(next(row.to_nothing for row in rows if row.subject == "ebpfwatch"))
    return {
        f"storm to nothing, {count:,} inodes cached": ratios[1],
        "growth with cached inodes, ratio of ratios": ratios[1] / ratios[0],
    }


if __name__ == "__main__":
    main()
