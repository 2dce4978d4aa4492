"""One finding to every sink, the fastest and most crash-proof first (docs/evidence.md)."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
from pathlib import Path
from typing import Callable

from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.config import Config
from ebpfwatch.errors import EbpfwatchError
from ebpfwatch.paths import Paths
from ebpfwatch.sinks.journal import Journal
from ebpfwatch.sinks.kmsg import KernelLog
from ebpfwatch.sinks.store import Store, of_boot
from ebpfwatch.system.log import defect, say
from ebpfwatch.system.worker import Worker
from ebpfwatch.verdicts.finding import Finding, Severity

__all__ = ["Delivery"]

_RECENT = 50
_ROOM_BYTES = 1 << 20  # some findings with all their stacks


class Delivery:
    """Owns the sinks; what one cannot take is counted, and the others still get it.

    ``disk`` writes to the state directory, so that nothing else has to wait for it.
    """

    def __init__(self, settings: Config, paths: Paths, not_kept: Callable[[Finding], None]) -> None:
        """Open the state directory; raises ``EbpfwatchError``.  ``not_kept`` hears of a finding
        whose file could not be written.
        """
        self._tell_not_kept = not_kept
        self.store = Store(Path(settings.state_directory), settings.findings.keep)
        self._settings = settings
        self._paths = paths
        self._recent: collections.deque[Finding] = collections.deque(maxlen=_RECENT)
        self._store_errors = 0
        self._store_problem = ""
        self.disk = Worker("disk")

    def connect(self) -> None:
        """Open journal and kernel log, while we may; raises ``EbpfwatchError``."""
        self.journal = Journal(self._paths.journal_socket, self._settings.journal)
        evidence = self._settings.evidence
        self.kernel_log = KernelLog(
            str(self._paths.dev / "kmsg") if evidence.kmsg else "",
            str(self._paths.dev / "pmsg0") if evidence.pmsg else "",
        )

    def look_back(self, boot_id: str) -> None:
        """Show the last findings of this boot again; never raises."""
        with contextlib.suppress(EbpfwatchError):
            for body in itertools.islice(
                of_boot(Path(self._settings.state_directory), boot_id), _RECENT
            ):
                with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
                    self._recent.append(Finding.from_json(body))

    def tell(self, finding: Finding) -> None:
        """Deliver one finding; never raises."""
        self.journal.write(finding)
        self.kernel_log.write(finding)
        self._recent.appendleft(finding)
        if finding.verdict is not Verdict.CONCURRENT_UNLINK and not finding.test:
            level = "err" if finding.severity <= Severity.ERR else "warning"
            say(f"{finding.verdict.value} ({finding.confidence.value}): id {finding.id}", level)
        # fsync waits for the disk, and the disk may be what is dying.
        if not self.disk.submit(lambda: self._keep(finding)):
            self._not_kept(finding, "too many are waiting for the disk")

    def _keep(self, finding: Finding) -> None:
        try:
            self.store.write(finding)
        except OSError as error:
            self._not_kept(finding, error.strerror)
        except Exception as error:  # lost all the same
            self._not_kept(finding, defect(error))

    def _not_kept(self, finding: Finding, why: str | None) -> None:
        self._tell_not_kept(finding)
        self._store_errors += 1
        if self._store_errors == 1:
            others = "the journal has them" if self.journal.connected else "there is no journald"
            say(
                f"cannot write findings to {self.store.directory}: {why};"
                f" {others}; further failures are only counted",
                "err",
            )

    def recent(self) -> tuple[Finding, ...]:
        """The last findings, newest first; safe from any thread."""
        return tuple(self._recent)

    def look(self) -> None:
        """Find out, on the disk's thread, whether a finding could be written now."""
        self.disk.submit(self._look)

    def _look(self) -> None:
        try:
            room = os.statvfs(self.store.directory)
        except OSError as error:
            self._store_problem = f"{self.store.directory}: {error.strerror}"
            return
        if room.f_flag & os.ST_RDONLY:
            self._store_problem = f"{self.store.directory} is mounted read-only"
        elif room.f_bfree * room.f_frsize < _ROOM_BYTES or (room.f_files and not room.f_ffree):
            self._store_problem = f"no room in {self.store.directory}"
        else:
            self._store_problem = ""

    @property
    def problems(self) -> dict[str, str]:
        """Sinks that could take no finding now, and why."""
        return {"store": self._store_problem} if self._store_problem else {}

    @property
    def errors(self) -> dict[str, int]:
        """Findings not taken, by sink."""
        return {
            "journal": self.journal.errors,
            "store": self._store_errors,
            "kmsg": self.kernel_log.errors,
        }
