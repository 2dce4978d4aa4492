"""Dataclasses as the plain values that JSON has."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

__all__ = ["jsonable"]

_SCALARS = {str, int, bool, float, type(None)}


def jsonable(value: Any, unknown: bool = True) -> Any:
    """Like ``dataclasses.asdict``, without its copies: the second free is on its way meanwhile.

    Enums are their values, tuples are lists.  With ``unknown`` false, fields that are None are left
    out.
    """
    if type(value) in _SCALARS:
        return value
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return [jsonable(part, unknown) for part in value]
    if isinstance(value, dict):
        return {name: jsonable(part, unknown) for name, part in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            name: jsonable(part, unknown)
            for name, part in vars(value).items()
            if unknown or part is not None
        }
    return value
