"""What was missed, and when: so that a verdict knows whether a loss could have forged it."""

from __future__ import annotations

import array
import collections

__all__ = ["LossHistory"]


class LossHistory:
    """Totals of skipped runs by role over time, bounded.

    Invariant: asking about a window older than the history answers with everything ever lost, never
    with less than the truth.
    """

    def __init__(self, capacity: int = 512) -> None:
        # Plain numbers: as dictionaries, an hour's history took a third of a megabyte.
        self._history: collections.deque[array.array[int]] = collections.deque(maxlen=capacity)
        self._roles: list[str] = []

    def record(self, ns: int, totals: dict[str, int]) -> None:
        """Remember the totals (since loading) at this CLOCK_MONOTONIC time."""
        self._roles += [role for role in totals if role not in self._roles]
        entry = array.array("Q", [ns, *(totals.get(role, 0) for role in self._roles)])
        if len(self._history) > 1 and self._history[-1][1:] == self._history[-2][1:] == entry[1:]:
            # Nothing new: keep where the span began, and stretch its end.
            self._history.pop()
        self._history.append(entry)

    def lost(self, role: str, since_ns: int) -> int:
        """How many runs of the role were lost since then, as far as is known."""
        if not self._history or role not in self._roles:
            return 0
        place = self._roles.index(role) + 1
        before = 0
        for entry in self._history:
            if entry[0] > since_ns:
                break
            before = entry[place] if place < len(entry) else 0
        return self._history[-1][place] - before
