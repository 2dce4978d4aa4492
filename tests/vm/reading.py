"""Reads the dump of a guest on this machine, and says what it should have told and did not."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["audit", "found_in_ci", "postmortem", "too_much"]

ROOT = Path(__file__).parents[2]
#: A dump of 512 MB in a minute and a gigabyte.
_SECONDS, _KIB = 60, 1 << 20

#: Of the guest that CI boots anyway (scripts/service.sh): what its daemon had found.
_TOLD = {
    "the verdict": r"double_free \(\w+\): ext4 inode \d+ on ",
    "the culprit": r"Most likely responsible: module crime \(out-of-tree, unsigned\)",
    "the object's transitions": r"inode \d+ on \S+ freed by ",
    "ps": r"\nTasks:\n  \d+ tasks by state: ",
    "the memory": r"\nMemory:\n  total [\d.]+ MiB, free ",
    "the mounts": r"\n  /dev/vdd on /mnt/vdb type ext4",
    "the modules": r"\nModules:\n(  .*\n)*  crime, \d+ KiB \(O",
    "the log": r"cause: dir_put object=",
}


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


def postmortem(vmcore: Path, symbols: Path | None) -> tuple[str, float, int]:
    """What it says; raises ``RuntimeError``."""
    return _run("postmortem", vmcore, *_by(symbols))


def too_much(seconds: float, memory: int) -> bool:
    """Whether a dump cost more than it may."""
    return seconds > _SECONDS or memory > _KIB


def found_in_ci(vmcore: Path) -> str:
    """Of the dump that scripts/service.sh asks for, without debug information: what is not as it
    must be, "" if all is; prints a line.
    """
    if importlib.util.find_spec("drgn") is None:
        print(f"SKIPPED {vmcore.name}: drgn is not installed here (pip has it for x86-64)")
        return ""
    try:
        said, seconds, memory = audit(vmcore, None)
        text, more, most = postmortem(vmcore, None)
    except RuntimeError as error:
        return str(error)
    problems = list(_audited(said))
    problems += [f"postmortem: {what}" for what, how in _TOLD.items() if not re.search(how, text)]
    if too_much(max(seconds, more), max(memory, most)):
        problems.append("too slow, or too large")
    print(
        f"     dump: {vmcore.stat().st_size >> 20} MiB audited in {seconds:.1f} s with"
        f" {memory >> 10} MiB, read by postmortem in {more:.1f} s; missing:"
        f" {', '.join(problems) or 'nothing'}",
        flush=True,
    )
    return "; ".join(problems)


def _audited(said: Any) -> Iterator[str]:
    found = {one["path"]: one["anomaly"]["missing"] for one in said["anomalies"]}
    if found != {"/mnt/vdb/dir": 146}:
        yield f"audit: {found}"
    if said["types"] != "BTF":
        yield f"audit: the types are of {said['types']}"
