"""Repetitions become a count, and findings a minute are limited: nothing is dropped without being
counted.
"""

from __future__ import annotations

import collections

from ebpfwatch.catalogue.verdicts import Kind
from ebpfwatch.verdicts.finding import Finding

__all__ = ["Folder"]

_Key = tuple[object, ...]

#: Frames of a stack that make two mistakes one.
_SAME_FRAMES = 6


def _key(finding: Finding) -> _Key:
    """What makes two findings one: the same object; of broken rules the same rule, broken on the
    same way, whatever the object: one mistake is made on hundreds of them.
    """
    identity = finding.identity
    if finding.verdict.kind is not Kind.CAUSE:
        return (
            finding.verdict,
            identity.object_address,
            identity.ino,
            identity.generation,
            finding.test,
        )
    stack = finding.second.stack if finding.second else ()
    way = tuple((f.symbol, f.module) for f in stack[:_SAME_FRAMES])
    return (finding.verdict, finding.broken, way, finding.what, finding.test)


class Folder:
    """Decides which findings are written.

    ``fold_seconds``: the same finding again within that time is only counted.  ``per_minute``:
    more than that are only counted, too: of damage, of mere candidates and context, and of each
    played by the self-test, so that none of them takes the place of damage.  Bounded: at most
    ``capacity`` findings are remembered.
    """

    def __init__(self, fold_seconds: float, per_minute: int, capacity: int = 1024) -> None:
        self.fold_seconds = fold_seconds
        self.per_minute = per_minute
        self._capacity = capacity
        self._open: collections.OrderedDict[_Key, tuple[float, int]] = collections.OrderedDict()
        self._written: dict[tuple[bool, bool], collections.deque[float]] = {}
        self.limited = 0

    def admit(self, finding: Finding, now: float) -> tuple[bool, int]:
        """(write it?, how many like it were folded since the last one written); ``now`` in
        seconds.
        """
        key = _key(finding)
        self._forget(now)
        since, folded = self._open.get(key, (None, 0))
        if since is not None and now - since < self.fold_seconds:
            self._open[key] = (since, folded + 1)
            return False, 0
        kind = finding.verdict.damage, finding.test
        written = self._written.setdefault(kind, collections.deque())
        while written and now - written[0] >= 60:
            written.popleft()
        if len(written) >= self.per_minute:
            self.limited += 1
            return False, 0
        written.append(now)
        self._open[key] = (now, 0)
        self._open.move_to_end(key)
        if len(self._open) > self._capacity:
            self._open.popitem(last=False)
        return True, folded

    def _forget(self, now: float) -> None:
        """The oldest, unless a count of theirs is still to be told."""
        while self._open:
            since, folded = next(iter(self._open.values()))
            if folded or now - since < self.fold_seconds:
                return
            self._open.popitem(last=False)
