"""Findings in the journal: structured fields, one MESSAGE_ID a verdict (deploy/ebpfwatch.catalog).

journald writes a record of priority CRIT to disk at once, so it survives the panic that may follow.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.sinks.text import body
from ebpfwatch.system.imports import missing
from ebpfwatch.system.log import put, say
from ebpfwatch.text.printable import printable
from ebpfwatch.verdicts.early import Early
from ebpfwatch.verdicts.finding import Finding

__all__ = [
    "EARLY_ID",
    "Journal",
    "early_fields",
    "fields",
    "read_all",
    "refuse_closed",
]

#: The early warning's: no finding, but worth a catalog entry of its own.
EARLY_ID = "f68048250df04df29d73b7b3bc7b732d"

_PATIENCE_SECONDS = 0.2

#: Where journald keeps what root wrote, in a directory for each machine (systemd-journald(8)).
_KEPT = ("/var/log/journal", "/run/log/journal")


def fields(finding: Finding) -> dict[str, str]:
    """The journal fields of a finding (systemd.journal-fields(7)).

    MESSAGE is the whole report, as systemd-coredump puts its stacks there: its first line is the
    headline, and `journalctl` needs nothing else.
    """
    identity = finding.identity
    return {
        "MESSAGE": body(finding),
        "MESSAGE_ID": finding.verdict.message_id,
        "PRIORITY": str(5 if finding.test else int(finding.severity)),
        "SYSLOG_IDENTIFIER": "ebpfwatch",
        "EBPFWATCH_ID": finding.id,
        "EBPFWATCH_VERDICT": finding.verdict.value,
        "EBPFWATCH_KIND": finding.verdict.kind.value,
        "EBPFWATCH_CONFIDENCE": finding.confidence.value,
        "EBPFWATCH_DEV": f"{identity.dev_major}:{identity.dev_minor}",
        "EBPFWATCH_INODE": str(identity.ino),
        "EBPFWATCH_GENERATION": str(identity.generation),
        "EBPFWATCH_OBJECT": f"{identity.object_address:#x}",
        "EBPFWATCH_NAME": printable(finding.name),
        "EBPFWATCH_PATH": printable(finding.path),
        "EBPFWATCH_RESPONSIBLE": printable(finding.responsible.who),
        "EBPFWATCH_RESPONSIBLE_STRENGTH": finding.responsible.strength.value,
        "EBPFWATCH_BROKEN": " ".join(finding.broken),
        "EBPFWATCH_PRECEDED_BY": " ".join(one.id for one in finding.preceded_by),
        "EBPFWATCH_TEST": "1" if finding.test else "0",
        "EBPFWATCH_JSON": json.dumps(finding.to_json(), ensure_ascii=True),
    }


def early_fields(early: Early) -> dict[str, str]:
    """The journal fields of an early warning."""
    return {
        "MESSAGE": f"EARLY WARNING: {printable(early.summary)}",
        "MESSAGE_ID": EARLY_ID,
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "ebpfwatch",
        **{
            f"EBPFWATCH_{name}": printable(reason)
            for name, reason in zip(("PRESSURE", "BURST", "PRECURSOR"), early.reasons)
        },
    }


class Journal:
    """Sends findings to journald, or to stdout as JSON lines where there is none.

    ``errors`` counts records journald did not take; those went to stdout, too.
    """

    def __init__(self, path: Path, mode: str) -> None:
        self._wanted = mode == "auto"
        self._socket = path
        self.errors = 0
        self._send: Any = None
        if self._wanted and path.exists():
            self._send = _sender()
        elif self._wanted:
            say(f"no journald at {path}: findings go to stdout as JSON lines", "notice")

    @property
    def connected(self) -> bool:
        """Whether journald is there."""
        return self._send is not None

    def warn(self, early: Early) -> bool:
        """Deliver an early warning; False where there is no journald to take it."""
        return self._send is not None and self._sent(early_fields(early))

    def write(self, finding: Finding) -> None:
        """Deliver one finding; never raises."""
        missed = 0
        if self._send is not None:
            if self._sent(fields(finding)):
                return
            missed = 1
        if self._wanted and not put("stdout", json.dumps(finding.to_json(), ensure_ascii=True)):
            missed = 1
        self.errors += missed

    def _sent(self, record: dict[str, str]) -> bool:
        try:
            if not self._takes():
                return False
            self._send(*(f"{key}={value}".encode() for key, value in record.items()))
        except OSError:
            return False
        return True

    def _takes(self) -> bool:
        """Whether journald has room: one that hangs would hang us, for its queue is a blocking one.

        Raises ``OSError`` where nobody listens.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            probe.connect(str(self._socket))
            return bool(select.select([], [probe], [], _PATIENCE_SECONDS)[1])


def _sender() -> Any:
    try:
        # systemd.journal.send() would add CODE_LINE and import logging; sendv is what it calls.
        from systemd import _journal
    except ImportError:
        raise missing("systemd", ", or set journal: off") from None
    return _journal.sendv


def read_all() -> Iterator[dict[str, Any]]:
    """Root's findings in the journal as JSON objects, newest first; raises ``EbpfwatchError``.

    Anybody may write a record with our MESSAGE_ID; ``_UID`` is journald's own word.
    """
    try:
        from systemd import journal
    except ImportError:
        raise missing("systemd", ", or use --from files") from None
    refuse_closed(_KEPT)
    reader = journal.Reader()
    try:
        for verdict in Verdict:
            reader.add_match(MESSAGE_ID=verdict.message_id, _UID="0")
        reader.seek_tail()
        while True:
            entry = reader.get_previous()
            if not entry:
                return
            try:
                body = json.loads(entry["EBPFWATCH_JSON"])
            except (KeyError, ValueError, TypeError):
                continue
            if isinstance(body, dict):
                yield body
    finally:
        reader.close()


def refuse_closed(kept: Iterable[str]) -> None:
    """Raise ``EbpfwatchError`` where this user may not read what root wrote.

    libsystemd passes such files over in silence: no findings would be the answer.
    """
    for file in (file for directory in kept for file in Path(directory).glob("*/system.journal")):
        if not os.access(file, os.R_OK):
            raise EbpfwatchError(
                f"cannot read {file}: {os.strerror(errno.EACCES)}",
                "run it as root, or as a member of the group systemd-journal",
                Exit.NOPERM,
            )
