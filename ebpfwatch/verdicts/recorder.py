"""The flight recorder: the machine's last minutes in lines, and what was found of which object."""

from __future__ import annotations

import collections
import dataclasses

from ebpfwatch.catalogue.verdicts import Kind
from ebpfwatch.verdicts.finding import Finding, Moment, Preceding, Responsible

__all__ = ["Recorder"]

#: A mistake may end in a crash minutes later.
_CHAIN_NS = 600_000_000_000
_CHAIN_MOST = 8

#: A stale RCU callback may hit an address long after it was queued, but not after this.
_SAME_STORY_NS = 300_000_000_000


@dataclasses.dataclass(frozen=True)
class _Told:
    """What is kept of a finding for the chain."""

    what: Preceding
    test: bool
    address: int
    directory: tuple[int, int, int]
    responsible: Responsible

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for neighbours that are one link."""
        about = () if self.what.verdict.kind is Kind.CAUSE else (self.address,)
        return (self.what.verdict, self.test, self.responsible.who, *about)


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
        self._told: collections.deque[_Told] = collections.deque(maxlen=capacity)

    def note(self, ns: int, line: str) -> None:
        """Remember what happened at that moment."""
        self._moments.append(Moment(ns, line))

    def found(self, finding: Finding) -> None:
        """Remember a finding: as a moment of the machine, and of its object."""
        self.note(finding.ns, f"finding {finding.id}: {finding.headline}")
        self._tell(finding)
        address = finding.identity.object_address
        self._objects[address] = finding.ns, finding.id, finding.responsible
        self._objects.move_to_end(address)
        if len(self._objects) > self._capacity:
            self._objects.popitem(last=False)

    def _tell(self, finding: Finding) -> None:
        """Hundreds of one kind in a row are one link of the chain, with a count."""
        last = self._told[-1] if self._told else None
        identity = finding.identity
        told = _Told(
            Preceding(finding.id, finding.ns, finding.verdict, "", finding.summary),
            finding.test,
            identity.object_address,
            (identity.dev_major, identity.dev_minor, finding.directory_ino),
            finding.responsible,
        )
        if last is not None and last.kind == told.kind:
            what = dataclasses.replace(last.what, count=last.what.count + 1)
            self._told[-1] = dataclasses.replace(last, what=what)
        else:
            self._told.append(told)

    def preceding(
        self, ns: int, object_: int, directory: tuple[int, int, int], test: bool
    ) -> tuple[Preceding, ...]:
        """Findings of the minutes before, oldest first: about this object or its directory, and
        every broken rule, whatever it was about: what is freed twice may be a bystander.

        ``directory`` is (major, minor, inode number), its number 0 where it is not known.
        """
        found = []
        for told in self._told:
            if told.test is not test or not ns - _CHAIN_NS <= told.what.ns < ns:
                continue
            if told.address == object_:
                relation = "the same object"
            elif directory[2] and told.directory == directory:
                relation = "the same directory"
            elif told.what.verdict.kind is Kind.CAUSE:
                relation = "shortly before"
            else:
                continue
            found.append(dataclasses.replace(told.what, relation=relation))
        return tuple(found[:_CHAIN_MOST])

    def named_by(self, id_: str) -> Responsible | None:
        """Whom that finding named."""
        return next((told.responsible for told in self._told if told.what.id == id_), None)

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
