"""Reading the machine's state without ever failing: a source that cannot be read is a counter and
one line in the log, never a gap in the rest.
"""

from __future__ import annotations

from typing import Callable, TypeVar

from ebpfwatch.system.log import say

__all__ = ["Sources"]

_T = TypeVar("_T")


class Sources:
    """``errors`` counts failures by source; only the first of each is said."""

    def __init__(self, log: Callable[[str, str], None] = say) -> None:
        self.errors: dict[str, int] = {}
        self._log = log

    def read(self, source: str, read: Callable[[], _T], fallback: _T) -> _T:
        """What ``read`` gives, or the fallback where it raises ``OSError`` or ``ValueError``."""
        try:
            return read()
        except (OSError, ValueError) as error:
            count = self.errors.get(source, 0)
            self.errors[source] = count + 1
            if not count:
                line = f"cannot read {source}: {error}; further failures are only counted"
                self._log(line, "warning")
            return fallback
