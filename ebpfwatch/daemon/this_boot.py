"""What was found since the machine booted: counted, and kept over a restart of the daemon.

Damage to the kernel's memory stays until the machine boots, whoever starts this program again.  So
the counts belong to the boot.  At the start they are put together from three places, because each
may lack something: the finding files (the disk may have been full), this_boot.json (written a
moment after a finding), and our own lines in the kernel log (that ring may have been overwritten).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.errors import EbpfwatchError
from ebpfwatch.sinks import store
from ebpfwatch.sinks.status import BootState
from ebpfwatch.system import durable
from ebpfwatch.verdicts.finding import Confidence, Finding

__all__ = ["FILE", "Count", "ThisBoot"]

FILE = "this_boot.json"

_MOST_DISKS = 256

#: (verdict, confidence, is test)
_Key = tuple[str, str, bool]

#: A finding in the kernel log, as sinks/kmsg.py writes it.
_LINE = re.compile(r"ebpfwatch: (\w+) \((\w+)\); ino [^;]*; id ([0-9TZ.]+-[0-9a-f]+);")
_VERDICTS = frozenset(verdict.value for verdict in Verdict)
_CONFIDENCES = frozenset(confidence.value for confidence in Confidence)


@dataclasses.dataclass
class Count:
    """How many, and when the last one was (CLOCK_MONOTONIC ns)."""

    number: int = 0
    last_ns: int = 0

    def add(self, ns: int, number: int = 1) -> None:
        """That many more, the last of them at that time."""
        self.number += number
        self.last_ns = max(self.last_ns, ns)

    def at_least(self, number: int, ns: int) -> None:
        """Another source knows of so many."""
        self.number = max(self.number, number)
        self.last_ns = max(self.last_ns, ns)


class ThisBoot:
    """``findings`` counts repetitions, too; ``kernel_log`` is by kind of kernel message, and
    ``disk_errors`` are its messages of disk errors by device.

    A finding is open until somebody acknowledges it (``ebpfwatch report --ack``).  One that was
    counted but never written, because of the rate limit, has no id: `--ack all` covers it.
    ``last_boot`` is how the boot before ended, "" where nobody knows, and ``last_boot_ns`` when
    that was found out.
    """

    def __init__(self, state_directory: Path, boot_id: str) -> None:
        self.boot_id = boot_id
        self.findings: dict[_Key, Count] = {}
        self.kernel_log: dict[str, Count] = {}
        self.disk_errors: dict[str, int] = {}
        self.last_boot = ""
        self.last_boot_ns = 0
        self._directory = state_directory
        self._open: dict[str, _Key] = {}
        self._unwritten: dict[_Key, Count] = {}
        self._seen_ns = 0  # modification time of the findings' directory when it was last listed
        self._saved = ""

    # -- at the start

    def look_back(self, kernel_log: Iterable[tuple[int, str]] = ()) -> None:
        """Put the counts together; ``kernel_log`` are our own lines in it, with their time."""
        self._read_file()
        known = self._read_findings()
        for ns, text in kernel_log:
            self._read_line(ns, text, known)
        self._saved = self._text()
        self.look_for_acknowledgements()

    def _read_findings(self) -> set[str]:
        counted: dict[_Key, Count] = {}
        known = set()
        try:
            for body in store.of_boot(self._directory, self.boot_id):
                key = _key(body)
                counted.setdefault(key, Count()).add(body["ns"], 1 + body["folded"])
                known.add(body["id"])
                self._opened(body["id"], key)
        except EbpfwatchError:
            pass  # the store has said so, or will at its first write
        for key, count in counted.items():
            self.findings.setdefault(key, Count()).at_least(count.number, count.last_ns)
        return known

    def _read_line(self, ns: int, text: str, known: set[str]) -> None:
        found = _LINE.match(text)
        if found is None or found[1] not in _VERDICTS or found[2] not in _CONFIDENCES:
            return
        key = found[1], found[2], False
        if found[3] in known:
            return
        count = self.findings.setdefault(key, Count())
        if count.last_ns < ns:  # not in the file either
            count.add(ns)
            self._unwritten.setdefault(key, Count()).add(ns)

    def _read_file(self) -> None:
        try:
            body = json.loads((self._directory / FILE).read_text(encoding="ascii"))
            if body["boot_id"] != self.boot_id or not self.boot_id:
                return
            self.findings = {(v, c, bool(t)): Count(n, ns) for v, c, t, n, ns in body["findings"]}
            self._unwritten = {(v, c, False): Count(n, ns) for v, c, n, ns in body["unwritten"]}
            self.kernel_log = {kind: Count(n, ns) for kind, n, ns in body["kernel_log"]}
            self.last_boot, self.last_boot_ns = str(body["last_boot"]), int(body["last_boot_ns"])
            errors = body.get("disk_errors", {})
            self.disk_errors = {str(disk): int(count) for disk, count in errors.items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return  # not there, or damaged: the other two sources count

    # -- while running

    def found(self, finding: Finding, written: bool, limited: bool) -> None:
        """Count one.  Not ``written``: a repetition, or ``limited`` by the rate."""
        key = finding.verdict.value, finding.confidence.value, finding.test
        self.findings.setdefault(key, Count()).add(finding.ns)
        if written:
            self._opened(finding.id, key)
        elif limited and not finding.test:
            self._unwritten.setdefault(key, Count()).add(finding.ns)

    def not_kept(self, finding: Finding) -> None:
        """Its file could not be written, so it cannot be acknowledged by its id."""
        key = self._open.pop(finding.id, None)
        if key is not None:
            self._unwritten.setdefault(key, Count()).add(finding.ns)

    def _opened(self, id_: str, key: _Key) -> None:
        if not key[2]:
            self._open[id_] = key

    def kernel_said(self, kind: str, ns: int) -> int:
        """Count a message of the kernel's log; how many of its kind there are now."""
        count = self.kernel_log.setdefault(kind, Count())
        count.add(ns)
        return count.number

    def disk_failed(self, disk: str, count: int = 1) -> None:
        """Count messages of disk errors; a machine with very many disks has the rest as ""."""
        name = disk if disk in self.disk_errors or len(self.disk_errors) < _MOST_DISKS else ""
        self.disk_errors[name] = self.disk_errors.get(name, 0) + count

    def last_boot_ended(self, how: str) -> None:
        """What this start found out; a later start of the same boot finds out nothing."""
        if how:
            self.last_boot, self.last_boot_ns = how, time.monotonic_ns()

    def look_for_acknowledgements(self) -> bool:
        """Whether there are new ones; lists the directory only where something has changed."""
        try:
            changed_ns = (self._directory / "findings").stat().st_mtime_ns
            if changed_ns == self._seen_ns:
                return False
            acknowledged = store.acknowledged(self._directory)
        except (OSError, EbpfwatchError):
            return False
        self._seen_ns = changed_ns
        before = len(self._open) + len(self._unwritten)
        for id_ in acknowledged & self._open.keys():
            del self._open[id_]
        until_ns = store.all_acknowledged_until(self._directory, self.boot_id)
        self._unwritten = {k: c for k, c in self._unwritten.items() if c.last_ns > until_ns}
        return before != len(self._open) + len(self._unwritten)

    # -- what is told

    @property
    def counts(self) -> dict[_Key, int]:
        """Findings of this boot, repetitions included."""
        return {key: count.number for key, count in list(self.findings.items())}

    @property
    def open(self) -> dict[tuple[str, str], int]:
        """Findings that nobody has acknowledged, by verdict and confidence."""
        result: dict[tuple[str, str], int] = {}
        for verdict, confidence, _ in list(self._open.values()):
            result[verdict, confidence] = result.get((verdict, confidence), 0) + 1
        for (verdict, confidence, _), count in list(self._unwritten.items()):
            result[verdict, confidence] = result.get((verdict, confidence), 0) + count.number
        return result

    def ages(self, now_ns: int) -> dict[tuple[str, str], float]:
        """Seconds since the last finding of each kind that has an open one."""
        return {
            key: (now_ns - self.findings[(*key, False)].last_ns) / 1e9
            for key in self.open
            if (*key, False) in self.findings
        }

    def kernel_log_ages(self, now_ns: int) -> dict[str, float]:
        """Seconds since the kernel's last message of each kind that it has printed."""
        return {k: (now_ns - c.last_ns) / 1e9 for k, c in list(self.kernel_log.items()) if c.number}

    def state(self) -> BootState:
        """Our part of the snapshot."""
        now_ns = time.monotonic_ns()
        return BootState(
            findings=self.counts,
            open=self.open,
            ages=self.ages(now_ns),
            kernel_log={kind: count.number for kind, count in list(self.kernel_log.items())},
            kernel_log_ages=self.kernel_log_ages(now_ns),
            disk_errors=dict(self.disk_errors),
            last_boot=self.last_boot,
            last_boot_age=(now_ns - self.last_boot_ns) / 1e9,
        )

    # -- on disk

    @property
    def changed(self) -> bool:
        """Whether ``save`` has something to do."""
        return self._text() != self._saved

    def save(self) -> None:
        """Write this_boot.json; raises ``OSError``."""
        text = self._text()
        durable.write(self._directory / FILE, text.encode())
        self._saved = text

    def try_save(self) -> None:
        """On the disk's worker: what fails there is tried again at the next tick."""
        with contextlib.suppress(OSError):
            self.save()

    def _text(self) -> str:
        body: dict[str, Any] = {
            "boot_id": self.boot_id,
            "findings": [[*k, c.number, c.last_ns] for k, c in list(self.findings.items())],
            "unwritten": [[*k[:2], c.number, c.last_ns] for k, c in list(self._unwritten.items())],
            "kernel_log": [[k, c.number, c.last_ns] for k, c in list(self.kernel_log.items())],
            "disk_errors": dict(self.disk_errors),
            "last_boot": self.last_boot,
            "last_boot_ns": self.last_boot_ns,
        }
        return json.dumps(body)


def _key(body: dict[str, Any]) -> _Key:
    return str(body["verdict"]), str(body["confidence"]), bool(body["test"])
