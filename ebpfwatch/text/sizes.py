"""Sizes for people."""

from __future__ import annotations

__all__ = ["size"]


def size(count: int) -> str:
    """Bytes as "112.5 MiB"."""
    if count < 1024:
        return f"{count} B"
    power = min((count.bit_length() - 1) // 10, 4)
    return f"{count / 1024**power:.1f} {'KMGT'[power - 1]}iB"
