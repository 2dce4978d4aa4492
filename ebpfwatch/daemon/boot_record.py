"""This boot's record, and the report on the last one: ``lastboot`` as the daemon uses it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ebpfwatch.errors import EbpfwatchError
from ebpfwatch.host.sources import Sources
from ebpfwatch.kernel.symbols import Symbols
from ebpfwatch.paths import Paths
from ebpfwatch.postmortem.last_boot import BootRecord, ended, kernel_boot_id
from ebpfwatch.sinks.store import read_all
from ebpfwatch.system.log import say
from ebpfwatch.text.printable import printable
from ebpfwatch.verdicts.finding import Finding

__all__ = ["BootWatch"]

_MOST_FINDINGS = 5


class BootWatch:
    """Keeps boot.json true; ``last`` is how the boot before ended, "" where nobody knows."""

    def __init__(
        self,
        state_directory: Path,
        paths: Paths,
        symbols: Symbols,
        started: float,
        test_page: range,
        armed: bool = False,
    ) -> None:
        self.last = ""
        self._directory = state_directory
        self._paths = paths
        self._symbols = symbols
        self._record = BootRecord(
            "",
            os.uname().release,
            started,
            test_page=(test_page.start, test_page.stop),
            armed=armed,
        )

    @property
    def _file(self) -> Path:
        return self._directory / "boot.json"

    @property
    def armed(self) -> bool:
        """Whether we (or one of us that was killed) set ftrace_dump_on_oops in this boot."""
        return self._record.armed

    def look_back(self, sources: Sources) -> None:
        """Report how the last boot ended, then begin this boot's own record."""
        before = BootRecord.read(self._file)
        self._record.boot_id = sources.read("boot_id", lambda: kernel_boot_id(self._paths), "")
        if before is not None and before.boot_id == self._record.boot_id:
            self._record.armed |= before.armed  # killed before it could be put back
        if before is not None and before.boot_id != self._record.boot_id:
            report = ended(before, self._paths, self._findings_since(before.started))
            self.last = report.how
            for line in report.lines:
                say(line, "notice" if report.how == "clean" else "err")
        self.remember()

    def remember(self, clean: bool = False) -> None:
        """Write down where everything lies, and whether we stop in order; never raises."""
        self._record.clean = clean
        self._record.armed &= not clean
        self._record.text = self._symbols.start
        self._record.modules = self._symbols.modules
        try:
            self._record.write(self._file)
        except OSError as error:
            say(f"cannot write boot.json for the next start: {error.strerror}", "warning")

    def _findings_since(self, started: float) -> list[str]:
        lines: list[str] = []
        with contextlib.suppress(EbpfwatchError):
            for body in read_all(self._directory):
                if len(lines) == _MOST_FINDINGS:
                    break
                # Another version's, or damaged: the others count.
                with contextlib.suppress(Exception):
                    finding = Finding.from_json(body)
                    if finding.realtime_us < started * 1e6:
                        break
                    if not finding.test:
                        lines.append(printable(f"{finding.verdict.value}: {finding.summary}"))
        return lines
