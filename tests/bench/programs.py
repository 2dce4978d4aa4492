"""What each program costs by the kernel's own clock (kernel.bpf_stats_enabled), in a storm.

Complements the ratios: no neighbour can be mistaken for a program here. The two clock readings
around each run are in it; an empty program's are subtracted.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path

from ebpfwatch.catalogue.ladder import Attachment
from ebpfwatch.kernel import libbpf
from ebpfwatch.kernel.attach import attach_or_fail
from ebpfwatch.loader.bpf import EXIT, PROGRAM_TYPES, load_program
from ebpfwatch.loader.running import version_code
from tests.bench.workloads import Bench
from tests.live.harness import load_session

__all__ = ["programs"]

_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
_EMPTY = "(empty)"


def programs(bench: Bench, rounds: int) -> dict[str, tuple[float, float]]:
    """Name: (runs a life, net ns a life); medians over rounds."""
    session = load_session(bench.mount, alloc="auto")
    empty = load_program(PROGRAM_TYPES["raw_tracepoint"], EXIT, version_code())
    place = Attachment("ext4_drop_inode", _EMPTY)  # once a life, and nobody else's
    link = attach_or_fail("raw_tracepoint", empty, place, place.target)
    fds = {**session.programs, _EMPTY: empty}
    count = bench.count(20_000)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in session.programs}
    try:
        for _ in range(rounds):
            before = {name: _runs(fd) for name, fd in fds.items()}
            _STATS.write_text("1")
            bench.run("storm", bench.mount, count)
            _STATS.write_text("0")
            after = {name: _runs(fd) for name, fd in fds.items()}
            spent = {n: (after[n][0] - before[n][0], after[n][1] - before[n][1]) for n in fds}
            clock = spent[_EMPTY][0] / spent[_EMPTY][1]
            for name in found:
                ns, runs = spent[name]
                found[name].append((runs / count, (ns - runs * clock) / count))
    finally:
        _STATS.write_text("0")
        os.close(link)
        os.close(empty)
        session.close()
    return {
        name: (statistics.median(r for r, _ in values), statistics.median(n for _, n in values))
        for name, values in found.items()
        if any(r for r, _ in values)
    }


def _runs(fd: int) -> tuple[int, int]:
    info = libbpf.prog_info(fd)
    return int(info.run_time_ns), int(info.run_cnt)
