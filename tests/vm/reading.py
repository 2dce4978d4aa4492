"""Reads the dump of a guest on this machine, and says what it should have told and did not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

__all__ = ["audit", "too_much"]

ROOT = Path(__file__).parents[2]
#: A dump of 512 MB in a minute and a gigabyte.
_SECONDS, _KIB = 60, 1 << 20


def _run(*words: str | Path) -> tuple[str, float, int]:
    """What a command says; its seconds and the most memory (KiB) that it took."""
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        command = [sys.executable, "-m", "ebpfwatch", *words]
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode not in (0, 1):
            raise RuntimeError(f"{words[0]} of {words[1]}: {err.read().strip()}")
        return out.read(), time.monotonic() - began, usage.ru_maxrss


def _by(symbols: Path | None) -> list[str | Path]:
    return [] if symbols is None else ["--vmlinux", symbols]


def audit(vmcore: Path, symbols: Path | None, *more: str) -> tuple[Any, float, int]:
    """What it says, as JSON; raises ``RuntimeError``."""
    said, seconds, memory = _run("audit", vmcore, "--json", *_by(symbols), *more)
    return json.loads(said), seconds, memory


def too_much(seconds: float, memory: int) -> bool:
    """Whether a dump cost more than it may."""
    return seconds > _SECONDS or memory > _KIB
