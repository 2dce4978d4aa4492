"""The kernel's messages while we run: counted, noted for findings, part of an early warning."""

from __future__ import annotations

import selectors
import time
from collections.abc import Iterable

from ebpfwatch.daemon.this_boot import Count, ThisBoot
from ebpfwatch.host.zoneinfo import Zone
from ebpfwatch.kernellog.known import DISK_ERROR, KNOWN, Relation, disk_of
from ebpfwatch.kernellog.report import Report
from ebpfwatch.kernellog.watcher import Event, Watcher
from ebpfwatch.paths import Paths
from ebpfwatch.sinks.journal import Journal
from ebpfwatch.system.log import say
from ebpfwatch.verdicts.early import EarlyWarning
from ebpfwatch.verdicts.finding import Finding
from ebpfwatch.verdicts.recorder import Recorder

__all__ = ["Precursors"]

_TOLD_SECONDS = 60.0  # between two lines in our log about one kind
_NOTED_SECONDS = 1.0  # between two moments of the flight recorder about one kind
_NS = 1_000_000_000
_WARNS = (Relation.PRECURSOR, Relation.DAMAGE)


class Precursors:
    """Counts the messages in ``ThisBoot``; ``active``: the early warning stands."""

    def __init__(self, paths: Paths, recorder: Recorder, this_boot: ThisBoot) -> None:
        """Open the kernel's log, while we may; without one ``watcher.missing`` says why."""
        self.watcher = Watcher(paths.dev / "kmsg")
        self._this_boot = this_boot
        self.active = False
        self._recorder = recorder
        self._early = EarlyWarning()
        self._reason = ""  # the last message that warns of damage, and that nobody has taken yet
        self._told: dict[str, float] = {}
        self._noted: dict[str, int] = {}

    def look_back(self) -> None:
        """Count and say what this boot's log held before us: it is why somebody may have started
        us.
        """
        before = self.watcher.before
        self.watcher.own.clear()
        for kind, count in before.items():
            last_ns = self.watcher.before_ns.get(kind, 0)
            self._this_boot.kernel_log.setdefault(kind, Count()).at_least(count, last_ns)
        for disk, count in self.watcher.disk_errors_before.items():
            known = self._this_boot.disk_errors.get(disk, 0)
            self._this_boot.disk_failed(disk, max(0, count - known))
        warning = {known.kind for known in KNOWN if known.relation in _WARNS} & before.keys()
        if warning:
            # Whoever starts us when the machine is damaged already wants to see all there is.
            self._reason = f"this boot's kernel log holds: {', '.join(sorted(warning))}"
        if before:
            kinds = ", ".join(f"{count} {kind}" for kind, count in before.items())
            say(f"the kernel log of this boot already holds: {kinds}", "notice")

    def poll(self, selector: selectors.BaseSelector) -> None:
        """Let the loop wake up for the kernel's log, but not while a flood used up its budget."""
        registered = self.watcher.fd in selector.get_map() if self.watcher.fd >= 0 else False
        if self.watcher.wanted and not registered:
            selector.register(self.watcher.fd, selectors.EVENT_READ)
        elif registered and not self.watcher.wanted:
            selector.unregister(self.watcher.fd)

    def drain(self) -> None:
        """Take what the kernel wrote; a flood is taken in portions."""
        batch = self.watcher.read()
        for event in batch.events:
            self._count(event)
        for report in batch.reports:
            self._note_report(report)

    def _count(self, event: Event) -> None:
        kind, relation = event.known.kind, event.known.relation
        count = self._this_boot.kernel_said(kind, event.ns)
        if kind == DISK_ERROR:
            self._this_boot.disk_failed(disk_of(event.text))
        if event.ns - self._noted.get(kind, 0) >= _NOTED_SECONDS * _NS:
            self._noted[kind] = event.ns
            self._recorder.note(event.ns, f"kernel log: {event.text} ({count} since the boot)")
        if relation not in _WARNS:
            return
        now = event.ns / _NS
        self._early.precursor(now, event.text)
        self._reason = f"the kernel said: {event.text}"
        if now - self._told.get(kind, -float("inf")) >= _TOLD_SECONDS:
            self._told[kind] = now
            say(f"the kernel says ({kind}, {count} since the boot): {event.text}", "warning")

    def take_reason(self) -> str:
        """The last message of damage or early warning since this was last asked, as the end of
        "because ..."; "" if there was none.
        """
        reason, self._reason = self._reason, ""
        return reason

    def broken_rule(self, finding: Finding) -> None:
        """A finding that warns as much as all three together."""
        self._early.broken_rule(finding.ns / _NS)
        self.active = True

    def _note_report(self, report: Report) -> None:
        """Its stack, now that it is whole: which task, which path."""
        stack = " < ".join(str(frame) for frame in report.frames[:6])
        if stack and report.known.relation in _WARNS:
            self._recorder.note(
                time.monotonic_ns(),
                f"{report.title}, by {report.comm} on CPU {report.cpu}: {stack}",
            )

    def judge(
        self,
        zones: Iterable[Zone],
        burst: tuple[float, str],
        again_seconds: float,
        journal: Journal,
    ) -> None:
        """Weigh what came together; ``burst`` is the time and line of the latest one."""
        now = time.monotonic()
        self._early.pressure(now, zones)
        self._early.burst(*burst)
        early = self._early.judge(now, again_seconds)
        self.active = self._early.active(now)
        if early is not None:
            self._reason = f"of an early warning: {early.summary}"
            self._recorder.note(int(now * _NS), f"early warning: {early.summary}")
            if not journal.warn(early):
                say(f"EARLY WARNING: {early.summary}", "err")
