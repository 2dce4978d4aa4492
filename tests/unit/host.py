"""The host's state as the fixture trees give it."""

from __future__ import annotations

from pathlib import Path

from ebpfwatch.host.sources import Sources
from ebpfwatch.host.state import HostReader, HostState
from ebpfwatch.paths import Paths

__all__ = ["FIXTURES", "TREES", "fixture", "tree"]

FIXTURES = Path(__file__).parents[1] / "fixtures"

TREES = ("x86", "4.19", "6.12", "case")


def tree(name: str) -> Paths:
    """The roots of one tree."""
    return Paths(proc=FIXTURES / f"proc-{name}", sys=FIXTURES / f"sys-{name}")


def fixture(name: str) -> HostState:
    """What is read from one tree, quietly."""
    return HostReader(tree(name), Sources(lambda line, level: None)).state()
