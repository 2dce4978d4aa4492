"""Findings on disk: one JSON file each, whole or not at all, and never more than so many."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ebpfwatch import durable
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.verdicts.finding import Finding

__all__ = ["Store", "read_all"]


class Store:
    """The findings directory of the daemon; see ``read_all`` for everybody else.

    Invariant: at most ``keep`` finding files, each complete; a name is its finding's id, so names
    sort by time.
    """

    def __init__(self, state_directory: Path, keep: int) -> None:
        """Open or create it; raises ``EbpfwatchError`` (exit 73) where nothing can be written."""
        self.directory = state_directory / "findings"
        self.keep = keep
        try:
            self.directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            for name in os.listdir(self.directory):
                if name.startswith(durable.PREFIX):  # a kill -9 between write and rename
                    os.unlink(self.directory / name)
            probe = self.directory / f"{durable.PREFIX}probe"
            os.close(durable.create(probe))
            os.unlink(probe)
        except OSError as error:
            raise EbpfwatchError(
                f"cannot write findings to {self.directory}: {error.strerror}",
                "make it writable or set state_directory to another place",
                Exit.CANTCREAT,
            ) from None

    def write(self, finding: Finding) -> None:
        """Write one finding durably; raises ``OSError`` (full disk ...) and then leaves nothing
        behind.
        """
        data = json.dumps(finding.to_json(), ensure_ascii=True).encode() + b"\n"
        durable.write(self.directory / f"{finding.id}.json", data)
        self._prune()

    def _prune(self) -> None:
        names = sorted(name for name in os.listdir(self.directory) if name.endswith(".json"))
        for name in names[: -self.keep]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.directory / name)


def read_all(state_directory: Path) -> Iterator[dict[str, Any]]:
    """The findings as JSON objects, newest first; files that are no findings are passed over.

    Raises ``EbpfwatchError`` where the directory cannot be read; a missing one holds no findings.
    """
    directory = state_directory / "findings"
    try:
        names = sorted(os.listdir(directory), reverse=True)
    except FileNotFoundError:
        return
    except OSError as error:
        raise EbpfwatchError(
            f"cannot read {directory}: {error.strerror}", "run it as root", Exit.NOPERM
        ) from None
    for name in names:
        if not name.endswith(".json"):
            continue
        try:
            fd = os.open(directory / name, os.O_RDONLY | os.O_NOFOLLOW)
            with os.fdopen(fd, encoding="utf-8") as file:
                body = json.load(file)
        except (OSError, ValueError):
            continue
        if isinstance(body, dict) and "verdict" in body:
            yield body
