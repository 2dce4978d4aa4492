"""The flight recorder: the machine's last minutes in lines, and what was found of which object."""

from __future__ import annotations

import collections

from ebpfwatch.verdicts.finding import Finding, Moment, Responsible

__all__ = ["Recorder"]

#: A stale RCU callback may hit an address long after it was queued, but not after this.
_SAME_STORY_NS = 300_000_000_000


class Recorder:
    """A bounded ring of moments, and the last finding about each of the last objects.

    Invariant: never more than ``capacity`` of either; the oldest goes first.  Of a finding only
    what a later one asks for is kept, not its stacks and the machine's state.
    """

    def __init__(self, capacity: int = 256) -> None:
        self._moments: collections.deque[Moment] = collections.deque(maxlen=capacity)
        self._objects: collections.OrderedDict[int, tuple[int, str, Responsible]] = (
            collections.OrderedDict()
        )
        self._capacity = capacity

    def note(self, ns: int, line: str) -> None:
        """Remember what happened at that moment."""
        self._moments.append(Moment(ns, line))

    def found(self, finding: Finding) -> None:
        """Remember a finding: as a moment of the machine, and as part of its object's story."""
        self.note(finding.ns, f"finding {finding.id}: {finding.headline}")
        address = finding.identity.object_address
        self._objects[address] = finding.ns, finding.id, finding.responsible
        self._objects.move_to_end(address)
        if len(self._objects) > self._capacity:
            self._objects.popitem(last=False)

    def before(
        self, ns: int, window_ns: int = 30_000_000_000, most: int = 20
    ) -> tuple[Moment, ...]:
        """The last moments up to ``window_ns`` before that one, oldest first."""
        return tuple([m for m in self._moments if ns - window_ns <= m.ns <= ns][-most:])

    def earlier(self, object_: int, ns: int) -> tuple[str, Responsible] | None:
        """The last finding about this object in the minutes before: its id, and whom it named."""
        told = self._objects.get(object_)
        if told is None or not ns - _SAME_STORY_NS <= told[0] < ns:
            return None
        return told[1:]
