"""Where the system keeps things: the only module that knows system roots.

Tests hand out a ``Paths`` that points into a fixture tree; nothing patches ``open``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

__all__ = ["PROBES", "Paths"]

#: The C sources: beside the package in a checkout, inside it when installed.
PROBES = next(
    path
    for path in (Path(__file__).parent / "probes", Path(__file__).parent.parent / "probes")
    if path.is_dir() or path.parent == Path(__file__).parent.parent
)


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
