"""What was missed, and when: so that a verdict knows whether a loss could have forged it."""

from __future__ import annotations

import collections

__all__ = ["LossHistory"]


class LossHistory:
    """Totals of skipped runs by role over time, bounded.

    Invariant: asking about a window older than the history answers with everything ever lost, never
    with less than the truth.
    """

    def __init__(self, capacity: int = 512) -> None:
        self._history: collections.deque[tuple[int, dict[str, int]]] = collections.deque(
            maxlen=capacity
        )

    def record(self, ns: int, totals: dict[str, int]) -> None:
        """Remember the totals (since loading) at this CLOCK_MONOTONIC time."""
        if len(self._history) > 1 and self._history[-1][1] == self._history[-2][1] == totals:
            # Nothing new: keep where the span began, and stretch its end.
            self._history.pop()
        self._history.append((ns, dict(totals)))

    def lost(self, role: str, since_ns: int) -> int:
        """How many runs of the role were lost since then, as far as is known."""
        if not self._history:
            return 0
        before: int | None = None
        for ns, totals in self._history:
            if ns > since_ns:
                break
            before = totals.get(role, 0)
        return self._history[-1][1].get(role, 0) - (before or 0)
