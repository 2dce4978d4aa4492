"""Findings on disk: one JSON file each, whole or not at all, and never more than so many.

Beside a finding may lie its acknowledgement, ID.ack, which ``ebpfwatch report --ack`` writes; the
daemon only reads it.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.system import durable
from ebpfwatch.system.clock import ahead_ns
from ebpfwatch.system.files import open_regular, why_not_ours
from ebpfwatch.verdicts.finding import Finding

__all__ = [
    "Store",
    "acknowledge",
    "acknowledge_all",
    "acknowledged",
    "acknowledgement",
    "all_acknowledged_until",
    "of_boot",
    "read_all",
]

_ACK = ".ack"
_ALL = "all.ack"  # the one file for what was counted and never written
_ID = re.compile(r"[0-9TZ.]+-[0-9a-f]+")
_MAX_CHARACTERS = 16 << 20  # more than any finding has; what is cut is no JSON, and passed over


class Store:
    """The findings directory of the daemon; see ``read_all`` for everybody else.

    Invariant: at most ``keep`` finding files, each complete; a name is its finding's id, so names
    sort by time.  What goes first is what was there first: after a clock step backwards the newest
    name is not the greatest.
    """

    def __init__(self, state_directory: Path, keep: int) -> None:
        """Open or create it; raises ``EbpfwatchError`` (exit 73) where nothing can be written."""
        self.directory = state_directory / "findings"
        self.keep = keep
        try:
            self.directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            why_not = why_not_ours(self.directory)
            for directory in (state_directory, self.directory):
                for name in os.listdir(directory):
                    if name.startswith(durable.PREFIX):  # a kill -9 between write and rename
                        os.unlink(directory / name)
            self._names = collections.deque(sorted(filter(_is_finding, os.listdir(self.directory))))
            probe = self.directory / f"{durable.PREFIX}probe"
            os.close(durable.create(probe))
            os.unlink(probe)
        except OSError as error:
            raise EbpfwatchError(
                f"cannot write findings to {self.directory}: {error.strerror}",
                "make it writable or set state_directory to another place",
                Exit.CANTCREAT,
            ) from None
        if why_not:
            raise EbpfwatchError(
                f"findings cannot go to {self.directory}: {why_not}",
                "whoever can write there decides where root writes; give it to root alone",
                Exit.CANTCREAT,
            )

    @property
    def newest(self) -> str:
        """The id that sorts last; "" where there is none."""
        return max(self._names, default="").removesuffix(".json")

    def write(self, finding: Finding) -> None:
        """Write one finding durably; raises ``OSError`` (full disk ...) and then leaves nothing
        behind.
        """
        data = json.dumps(finding.to_json(), ensure_ascii=True).encode() + b"\n"
        name = f"{finding.id}.json"
        durable.write(self.directory / name, data)
        self._names.append(name)
        while len(self._names) > self.keep:
            oldest = self.directory / self._names.popleft()
            for path in (oldest, oldest.with_suffix(_ACK)):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)


def _is_finding(name: str) -> bool:
    return name.endswith(".json")


def read_all(state_directory: Path, other: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """The findings as JSON objects, newest first; the names of files that should be findings and
    are none go to ``other``.  One that was acknowledged has the key ``acknowledged``.

    Raises ``EbpfwatchError`` where the directory cannot be read; a missing one holds no findings.
    """
    directory = state_directory / "findings"
    names = _names(directory)
    acks = {name for name in names if name.endswith(_ACK)}
    for name in sorted(filter(_is_finding, names), reverse=True):
        body = _read(directory / name)
        if body is not None and "verdict" in body:
            if f"{name[:-5]}{_ACK}" in acks:
                body["acknowledged"] = acknowledgement(state_directory, name[:-5])
            yield body
        elif other is not None:
            other.append(name)


def of_boot(state_directory: Path, boot_id: str) -> Iterator[dict[str, Any]]:
    """The findings of this boot that have what counting needs.

    One of a version that did not note the boot is of this one if it is younger than it.
    """
    booted_us = ahead_ns(time.CLOCK_REALTIME, time.CLOCK_BOOTTIME) / 1e3
    for body in read_all(state_directory):
        try:
            ours = bool(boot_id) and body["boot_id"] == boot_id
            ours = ours if body.get("boot_id") else body["realtime_us"] >= booted_us
            whole = isinstance(body["id"], str) and isinstance(body["test"], bool)
            if ours and whole and body["ns"] >= 0 and body["folded"] >= 0:
                yield body
        except (KeyError, TypeError):
            continue  # damaged, or of another version


def acknowledge(state_directory: Path, id_: str, by: str, because: str) -> None:
    """Note that somebody has taken care of it; raises ``OSError``."""
    note = {"at_us": time.time_ns() // 1000, "by": by, "because": because}
    path = state_directory / "findings" / f"{id_}{_ACK}"
    durable.write(path, json.dumps(note).encode() + b"\n")


def acknowledge_all(state_directory: Path, boot_id: str, by: str, because: str) -> None:
    """The same for what this boot counted until now and never wrote; raises ``OSError``."""
    until = {"boot_id": boot_id, "until_ns": time.monotonic_ns()}
    note = {**until, "at_us": time.time_ns() // 1000, "by": by, "because": because}
    durable.write(state_directory / "findings" / _ALL, json.dumps(note).encode() + b"\n")


def acknowledged(state_directory: Path) -> set[str]:
    """The ids that somebody has acknowledged; raises ``EbpfwatchError``."""
    names = _names(state_directory / "findings")
    return {name[: -len(_ACK)] for name in names if name.endswith(_ACK) and name != _ALL}


def acknowledgement(state_directory: Path, id_: str) -> dict[str, Any]:
    """When, by whom and why; empty where that cannot be read."""
    if not _ID.fullmatch(id_):
        return {}
    return _read(state_directory / "findings" / f"{id_}{_ACK}") or {}


def all_acknowledged_until(state_directory: Path, boot_id: str) -> int:
    """Until when (CLOCK_MONOTONIC ns) all of this boot is acknowledged; 0 where nothing is."""
    body = _read(state_directory / "findings" / _ALL) or {}
    until = body.get("until_ns")
    return until if isinstance(until, int) and body.get("boot_id") == boot_id else 0


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise EbpfwatchError(
            f"cannot read {directory}: {error.strerror}", "run it as root", Exit.NOPERM
        ) from None
    except OSError as error:
        raise EbpfwatchError(
            f"cannot read {directory}: {error.strerror}",
            "is this the daemon's state directory?",
            Exit.OSERR,
        ) from None


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None; a file that keeps its reader waiting or fills memory is none."""
    try:
        fd = open_regular(path, os.O_NOFOLLOW)
        with os.fdopen(fd, encoding="utf-8") as file:
            body = json.loads(file.read(_MAX_CHARACTERS))
    except (OSError, ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None
