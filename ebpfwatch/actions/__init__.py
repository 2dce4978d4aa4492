"""What to do at a finding besides telling of it: off by default, rate-limited, never in the way.

A worker thread does what takes time, one thing after another; what comes while it is busy, or
sooner than ``actions.every_seconds`` allows, is counted as skipped.  The crash alone is not left
to the thread: it is one write to a file that was opened at start.
"""

from __future__ import annotations

import queue
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Callable

from ebpfwatch.config import Config
from ebpfwatch.paths import Paths
from ebpfwatch.sinks.status import ACTIONS, RESULTS
from ebpfwatch.system.log import defect, say
from ebpfwatch.verdicts.finding import Finding, Severity

if TYPE_CHECKING:
    from ebpfwatch.actions.crash import Crash

__all__ = ["Actions"]

_Job = Callable[[Finding], str]


class Actions:
    """``counts`` is by (action, result)."""

    def __init__(self, settings: Config, paths: Paths) -> None:
        """Check the settings against this machine and open what needs privileges.

        Raises ``EbpfwatchError`` where an action that was asked for cannot be done.
        """
        chosen, state = settings.actions, Path(settings.state_directory)
        self.every_seconds = chosen.every_seconds
        # All keys at once: the web server's thread copies it while the worker counts.
        self.counts = {(action, result): 0 for action in ACTIONS for result in RESULTS}
        self._jobs: dict[str, _Job] = {}
        # What nobody asked for is not imported: the daemon stays small.
        if chosen.snapshot:
            from ebpfwatch.actions.snapshot import Snapshot

            self._jobs["snapshot"] = Snapshot(state, chosen.snapshots_kept, paths).take
        if chosen.command:
            from ebpfwatch.actions.command import Command

            self._jobs["command"] = Command(chosen.command, chosen.command_seconds).run
        self._crash: Crash | None = None
        if chosen.crash == "confirmed":
            from ebpfwatch.actions import crash

            self._crash = crash.Crash(paths, state)
        self._last: dict[tuple[str, bool], float] = {}
        self._queue: queue.Queue[tuple[str, Finding]] = queue.Queue(maxsize=len(ACTIONS))
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the worker, if there is anything for it; after privileges are dropped."""
        if self._jobs and self._thread is None:
            thread = threading.Thread(target=self._work, name="actions", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the limit of tasks; the next finding tries again
                return
            self._thread = thread

    def act(self, finding: Finding) -> None:
        """Do what is configured for this finding, which has reached its sinks; never raises.

        A finding below severity ERR starts nothing.  The self-test's own starts everything but the
        crash, and is not counted against the time between two actions.
        """
        if finding.severity > Severity.ERR:
            return
        if self._crash is not None and not finding.test:
            self._note("crash", *self._crash.consider(finding))
        self.start()
        now = time.monotonic()
        for name in self._jobs:
            key = name, finding.test
            if now - self._last.get(key, -float("inf")) < self.every_seconds:
                self._note(name, "skipped")
                continue
            try:
                self._queue.put_nowait((name, finding))
                self._last[key] = now
            except queue.Full:
                self._note(name, "skipped")

    def _work(self) -> None:
        while True:
            name, finding = self._queue.get()
            try:
                self._note(name, "done", self._jobs[name](finding))
            except OSError as error:
                where = f"{error.filename}: " if error.filename else ""
                self._note(name, "failed", f"{where}{error.strerror or error}")
            except Exception as error:  # a defect of one costs that one
                self._note(name, "failed", defect(error))

    def _note(self, name: str, result: str, text: str = "") -> None:
        self.counts[name, result] += 1
        if text:
            say(f"action {name} {result}: {text}", "notice" if result == "done" else "warning")
