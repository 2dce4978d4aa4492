"""What of a guest's finding lies where nobody alive is needed to read it.

A place counts only if it tells the verdict, the inode and both contexts: who was first (freed,
destroyed or evicted the object) and who came second.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ebpfwatch.kernellog.traced import traced
from tests.vm import guest

__all__ = ["PLACES", "SECOND_FREE", "journaled", "places"]

#: In the order in which the machine may die.
PLACES = ("trace buffer on the console", "journal", "kernel log", "finding on disk")

#: What the module says when the object of a double destroy is freed again; ns.
SECOND_FREE = re.compile(r"crime: freed again object=.* at=(\d+)")


def journaled(results: Path) -> list[dict[str, Any]]:
    """The findings in the guest's journal, read offline: the JSON form, and ``journal_ns``, when
    journald took it (CLOCK_MONOTONIC).
    """
    files = sorted(results.glob("journald/*/*.journal*"))
    if not files:
        return []
    words = ["journalctl", "--no-pager", "-q", "--all", "-o", "json", "EBPFWATCH_TEST=0"]
    words += [f"--file={file}" for file in files]
    said = subprocess.run(words, capture_output=True).stdout.decode(errors="replace")
    found = []
    for line in said.splitlines():
        entry = json.loads(line)
        if entry.get("EBPFWATCH_JSON"):
            body = json.loads(entry["EBPFWATCH_JSON"])
            body["journal_ns"] = int(entry["__MONOTONIC_TIMESTAMP"]) * 1000
            found.append(body)
    return found


def places(outcome: guest.Outcome, verdict: str) -> dict[str, str]:
    """What each place lacks of the finding, "" for nothing; only places that have something."""
    found: dict[str, str] = {}
    for place, lacks in _all(outcome, verdict):
        if place not in found or not lacks:  # the best of several
            found[place] = lacks
    return {place: found[place] for place in PLACES if place in found}


def _all(outcome: guest.Outcome, verdict: str) -> Iterator[tuple[str, str]]:
    for told in traced(outcome.console.splitlines()):
        if told.verdict == verdict:
            yield PLACES[0], _lacks(told.ino, told.first_caller or told.evicted_by, told.caller)
    for body in journaled(outcome.results):
        if body["verdict"] == verdict:
            yield PLACES[1], _lacks_json(body)
    for line in re.findall(rf"\] ebpfwatch: {verdict} [^\n]*", outcome.console):
        first, now = re.search(r"; first \S", line), re.search(r"; now \S", line)
        yield PLACES[2], _lacks(re.search(r"; ino \d+", line), first, now)
    for file in sorted((outcome.results / "state/findings").glob("*.json")):
        body = json.loads(file.read_text())
        if body["verdict"] == verdict:
            yield PLACES[3], _lacks_json(body)


def _lacks_json(body: dict[str, Any]) -> str:
    first = body["first"] or body["destroyed_by"] or body["evicted_by"]
    return _lacks(body["identity"]["ino"], first, body["second"])


def _lacks(ino: object, first: object, second: object) -> str:
    parts = {"the inode": ino, "the first context": first, "the second context": second}
    return ", ".join(name for name, value in parts.items() if not value)
