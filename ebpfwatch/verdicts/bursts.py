"""Reclaim bursts: many inodes evicted at once is context for a finding, and worth one line."""

from __future__ import annotations

__all__ = ["ReclaimBursts"]


class ReclaimBursts:
    """Turns the running total of inodes evicted by reclaim into bursts; ``last`` is when the
    latest was, in seconds on the caller's clock, and its line.
    """

    def __init__(self) -> None:
        self.last = (-float("inf"), "")
        self._base = 0
        self._noticed = -float("inf")

    def feed(self, total: int, now: float, burst_inodes: int) -> str:
        """A line about the burst since the last call; "" where there was none."""
        evicted, self._base = total - self._base, total
        if evicted < burst_inodes:
            return ""
        self.last = (now, f"reclaim evicted {evicted} ext4 inodes")
        return self.last[1]

    def notice_due(self, now: float, notice_seconds: float) -> bool:
        """Whether people should hear of it, too: at most once in that time."""
        if now - self._noticed < notice_seconds:
            return False
        self._noticed = now
        return True
