"""The flight recorder: the machine's last minutes, in lines, for the finding that needs them."""

from __future__ import annotations

import collections

__all__ = ["Recorder"]


class Recorder:
    """A bounded ring of (CLOCK_MONOTONIC ns, line).

    Invariant: never more than ``capacity`` lines; the oldest goes first.
    """

    def __init__(self, capacity: int = 256) -> None:
        self._lines: collections.deque[tuple[int, str]] = collections.deque(maxlen=capacity)

    def note(self, ns: int, line: str) -> None:
        """Remember what happened at that moment."""
        self._lines.append((ns, line))

    def before(self, ns: int, window_ns: int = 30_000_000_000, most: int = 20) -> tuple[str, ...]:
        """The last lines up to ``window_ns`` before that moment, oldest first, with their
        distance.
        """
        lines = [
            f"{(ns - when) / 1e9:+.3f} s before: {line}".replace("+", "")
            for when, line in self._lines
            if ns - window_ns <= when <= ns
        ]
        return tuple(lines[-most:])
