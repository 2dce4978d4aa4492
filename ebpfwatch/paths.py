"""Where the system keeps things: the only module that knows system roots.

Tests hand out a ``Paths`` that points into a fixture tree; nothing patches ``open``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

__all__ = ["PROBES", "Paths", "beside"]


def beside(name: str) -> Path:
    """A directory that lies beside the package in a checkout, and inside it when installed."""
    inside = Path(__file__).parent / name
    return inside if inside.is_dir() else Path(__file__).parent.parent / name


#: The C sources.
PROBES = beside("probes")


@dataclasses.dataclass(frozen=True)
class Paths:
    """System roots."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    run: Path = Path("/run/ebpfwatch")
    dev: Path = Path("/dev")
    pstore: Path = Path("/var/lib/systemd/pstore")
    crash: Path = Path("/var/crash")
    journal_socket: Path = Path("/run/systemd/journal/socket")
