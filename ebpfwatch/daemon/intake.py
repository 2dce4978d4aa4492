"""Gives each record of the ring to the part that handles it; a damaged one is skipped."""

from __future__ import annotations

from typing import Callable

from ebpfwatch.daemon.judging import Judging
from ebpfwatch.daemon.liveness import Liveness
from ebpfwatch.events import wire
from ebpfwatch.kernel.session import Session
from ebpfwatch.paths import Paths
from ebpfwatch.system.lock import SELFTEST
from ebpfwatch.system.log import defect, say
from ebpfwatch.verdicts.finding import Finding

__all__ = ["Intake"]


class Intake:
    """``errors`` counts records that could not be decoded or handled; ``told`` is called with
    each finding that was told.
    """

    def __init__(
        self,
        session: Session,
        liveness: Liveness,
        judging: Judging,
        told: Callable[[Finding], None],
    ) -> None:
        self.errors = 0
        self._session = session
        self._liveness = liveness
        self._judging = judging
        self._told = told

    def drain(self) -> None:
        """Read and handle what is in the ring; a flood is handled in portions."""
        self._session.consume()
        while self._session.records:
            record = self._session.records.popleft()
            try:
                self._handle(wire.decode(record))
            except Exception as error:  # a defect costs one event, never the watch
                self.errors += 1
                if self.errors == 1:
                    what = error if isinstance(error, wire.DecodeError) else defect(error)
                    say(f"cannot handle an event: {what}; later ones are only counted", "err")

    def _handle(self, event: wire.Event) -> None:
        if isinstance(event, wire.StepEvent):
            self._liveness.feed(event)
        elif isinstance(event, wire.VerdictEvent):
            finding = self._judging.handle(event)
            if finding is not None:
                self._told(finding)

    def take_selftest(self, paths: Paths) -> None:
        """`ebpfwatch selftest` where programs cannot be run by hand: a record through our sinks."""
        try:
            ino, generation = map(int, (paths.run / SELFTEST).read_text().split())
        except (OSError, ValueError):
            return
        self._session.records.append(self._judging.selftest_record(ino, generation))
