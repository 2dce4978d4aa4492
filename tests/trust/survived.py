"""`pytest -p tests.trust.survived`: what was done to the daemon, a table in docs/reliability.md, or
with EBPFWATCH_TABLE=hostile in docs/security.md.

A test's name is a sentence, and its row; what was skipped says why, and what it measured stands
there, too (record_property("figures", ...)).
"""

from __future__ import annotations

import collections
import os
from pathlib import Path

import pytest

from tests.trust.figures import record

_DOCS = Path(__file__).parents[2] / "docs"
_FILES = {"faults": _DOCS / "reliability.md", "hostile": _DOCS / "security.md"}
_ENDS: collections.defaultdict[str, collections.Counter[str]] = collections.defaultdict(
    collections.Counter
)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """How one test ended, as all its parameters together."""
    if report.when != "call" and report.passed:
        return
    why = f": {report.longrepr[2]}" if isinstance(report.longrepr, tuple) else ""
    why += "".join(f": {value}" for name, value in report.user_properties if name == "figures")
    module, _, name = report.nodeid.split("[")[0].rpartition("::")
    sentence = name.removeprefix("test_").replace("_", " ")
    _ENDS[f"| {sentence} | {module} |"][f"{report.outcome}{why}"] += 1


def pytest_sessionfinish() -> None:
    """Write the table."""
    rows = [
        f"{row} " + ", ".join(f"{end} ({n} times)" if n > 1 else end for end, n in ends.items())
        for row, ends in _ENDS.items()
    ]
    lines = ["| what was done | where | how it ended |", "|---|---|---|"]
    table = os.environ.get("EBPFWATCH_TABLE", "faults")
    record(table, f"make {table}", lines + [f"{row} |" for row in rows], _FILES[table])
