"""Findings on disk: one JSON file each, whole or not at all, and never more than so many."""

from __future__ import annotations

import collections
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.system import durable
from ebpfwatch.system.files import open_regular, why_not_ours
from ebpfwatch.verdicts.finding import Finding

__all__ = ["Store", "read_all"]

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

    def write(self, finding: Finding) -> None:
        """Write one finding durably; raises ``OSError`` (full disk ...) and then leaves nothing
        behind.
        """
        data = json.dumps(finding.to_json(), ensure_ascii=True).encode() + b"\n"
        name = f"{finding.id}.json"
        durable.write(self.directory / name, data)
        self._names.append(name)
        while len(self._names) > self.keep:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.directory / self._names.popleft())


def _is_finding(name: str) -> bool:
    return name.endswith(".json")


def read_all(state_directory: Path, other: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """The findings as JSON objects, newest first; the names of files that should be findings and
    are none go to ``other``.

    Raises ``EbpfwatchError`` where the directory cannot be read; a missing one holds no findings.
    """
    directory = state_directory / "findings"
    try:
        names = sorted(os.listdir(directory), reverse=True)
    except FileNotFoundError:
        return
    except PermissionError as error:
        raise EbpfwatchError(
            f"cannot read {directory}: {error.strerror}", "run it as root", Exit.NOPERM
        ) from None
    except OSError as error:
        raise EbpfwatchError(
            f"cannot read {directory}: {error.strerror}", "is it the daemon's?", Exit.OSERR
        ) from None
    for name in names:
        if not _is_finding(name):
            continue
        try:
            # A file of gigabytes would fill memory: it is none of ours.
            fd = open_regular(directory / name, os.O_NOFOLLOW)
            with os.fdopen(fd, encoding="utf-8") as file:
                body = json.loads(file.read(_MAX_CHARACTERS))
        except (OSError, ValueError, RecursionError):
            body = None
        if isinstance(body, dict) and "verdict" in body:
            yield body
        elif other is not None:
            other.append(name)
