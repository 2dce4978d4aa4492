"""`pytest -p tests.trust.survived`: what was done to the daemon, a table in docs/reliability.md.

A test's name is a sentence, and its row; what was skipped says why.
"""

from __future__ import annotations

import collections

import pytest

from tests.trust.figures import record

_ENDS: collections.defaultdict[str, collections.Counter[str]] = collections.defaultdict(
    collections.Counter
)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """How one test ended, as all its parameters together."""
    if report.when != "call" and report.passed:
        return
    why = f": {report.longrepr[2]}" if isinstance(report.longrepr, tuple) else ""
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
    record("faults", "make faults", lines + [f"{row} |" for row in rows])
