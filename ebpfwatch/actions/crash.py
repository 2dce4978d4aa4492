"""Crash the machine on purpose at the earliest proof, so that its memory is kept as it was then.

The later a damaged machine dies, the less its dump says: the object has been reused, its page
returned.  A crash is harm, though, so it is done only for a confirmed verdict that damages memory,
only where something keeps the evidence (kdump loaded, or a pstore backend), and at most once a day,
which is remembered on disk: a machine that crashes at every boot helps nobody.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.host import crash as readiness
from ebpfwatch.paths import Paths
from ebpfwatch.system import durable
from ebpfwatch.system.files import read_regular
from ebpfwatch.system.log import say
from ebpfwatch.verdicts.finding import Confidence, Finding

__all__ = ["Crash"]

_AGAIN_SECONDS = 86_400.0


class Crash:
    """Holds /proc/sysrq-trigger open from the start; needs no capability later."""

    def __init__(self, paths: Paths, state: Path) -> None:
        """Raises ``EbpfwatchError`` where the file cannot be opened."""
        self._paths = paths
        self._marker = state / "crashed.json"
        trigger = paths.proc / "sysrq-trigger"
        try:
            self._fd = os.open(trigger, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            raise EbpfwatchError(
                f"actions.crash: cannot open {trigger}: {error.strerror}",
                "run as root, or set actions.crash: never",
                Exit.NOPERM,
            ) from None
        why_not = self._no_keeper()
        if why_not:
            say(f"actions.crash will do nothing: {why_not}", "warning")

    def consider(self, finding: Finding) -> tuple[str, str]:
        """(result, what to say); does not return where it is done."""
        if not finding.verdict.damage or finding.confidence is not Confidence.CONFIRMED:
            return "skipped", ""
        why_not = self._no_keeper() or self._too_soon()
        if why_not:
            return "skipped", why_not
        try:
            # First the mark, durably: without it the next boot might do it again.
            body = {"finding": finding.id, "time": time.time()}
            durable.write(self._marker, json.dumps(body).encode())
            say(f"crashing this machine for finding {finding.id} (actions.crash)", "err")
            os.write(self._fd, b"c")
        except OSError as error:
            return "failed", str(error.strerror)
        return "done", ""

    def _no_keeper(self) -> str:
        try:
            ready = readiness.read(self._paths)
        except (OSError, ValueError) as error:
            return f"cannot tell whether a dump would be kept: {error}"
        if ready.kdump_loaded or ready.pstore:
            return ""
        return "nothing would keep the evidence: no kdump is loaded, and pstore has no backend"

    def _too_soon(self) -> str:
        try:
            last = float(json.loads(read_regular(self._marker, 4096))["time"])
        except FileNotFoundError:
            return ""
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"cannot read {self._marker}: {error}"
        # A clock that went back must not make it a loop, either.
        if abs(time.time() - last) < _AGAIN_SECONDS:
            return "the machine was crashed for a finding within the last 24 hours"
        return ""
