"""How a row of a table becomes the attributes of an enum's member."""

from __future__ import annotations

import dataclasses
from typing import Any

__all__ = ["take_fields"]


def take_fields(member: object, row: Any) -> None:
    """Give the member an attribute for each field of its row, a dataclass."""
    for field in dataclasses.fields(row):
        setattr(member, field.name, getattr(row, field.name))
