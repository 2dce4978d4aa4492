"""Text that anybody may have chosen (names of files, tasks, mounts), made safe for one line.

Every sink that people or terminals read goes through here: a control character could move a
cursor, a newline could forge a line of the log, a bidirectional override could turn text around.
"""

from __future__ import annotations

import unicodedata

__all__ = ["printable"]

_UNSAFE = {"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"}


def printable(text: str) -> str:
    """The text on one line, with control, format and unassigned characters as \\x.. or \\u...."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if unicodedata.category(c) in _UNSAFE else c for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
