"""The state of the machine: one reader a file, pure parsers over text; unknown text is an error,
counted.
"""

from __future__ import annotations

__all__ = ["ParseError"]


class ParseError(ValueError):
    """A file of /proc that is not what it should be; says which line."""
