"""Repetitions become a count, and a flood becomes a trickle: nothing is dropped without being
counted.
"""

from __future__ import annotations

import collections

from ebpfwatch.verdicts.finding import Finding

__all__ = ["Folder"]

_Key = tuple[str, int, int, int, bool]


class Folder:
    """Decides which findings are written.

    ``fold_seconds``: the same finding again within that time is only counted.  ``per_minute``:
    more than that are only counted, too.  Bounded: at most ``capacity`` findings are remembered.
    """

    def __init__(self, fold_seconds: float, per_minute: int, capacity: int = 1024) -> None:
        self.fold_seconds = fold_seconds
        self.per_minute = per_minute
        self._capacity = capacity
        self._open: collections.OrderedDict[_Key, tuple[float, int]] = collections.OrderedDict()
        self._written: collections.deque[float] = collections.deque()
        self.limited = 0

    def admit(self, finding: Finding, now: float) -> tuple[bool, int]:
        """(write it?, how many like it were folded since the last one written); ``now`` in
        seconds.
        """
        identity = finding.identity
        key = (
            finding.verdict.value,
            identity.object_address,
            identity.ino,
            identity.generation,
            finding.test,
        )
        since, folded = self._open.get(key, (None, 0))
        if since is not None and now - since < self.fold_seconds:
            self._open[key] = (since, folded + 1)
            return False, 0
        while self._written and now - self._written[0] >= 60:
            self._written.popleft()
        if len(self._written) >= self.per_minute:
            self.limited += 1
            return False, 0
        self._written.append(now)
        self._open[key] = (now, 0)
        self._open.move_to_end(key)
        if len(self._open) > self._capacity:
            self._open.popitem(last=False)
        return True, folded
