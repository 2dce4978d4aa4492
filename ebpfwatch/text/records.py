"""Frozen dataclasses as JSON and back, checked: what crosses from one process to another.

Understood are bool, int, float, text, whole-number enums, dataclasses, ``tuple[X, ...]`` and
``dict[str, X]``.  Every field is in the JSON, whatever its default, so a key that is missing is an
error like one that nobody knows.
"""

from __future__ import annotations

import dataclasses
import enum
import typing
from typing import Any, TypeVar

__all__ = ["from_json", "to_json"]

_T = TypeVar("_T")
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def to_json(record: Any) -> dict[str, Any]:
    """The record as plain values."""
    return dataclasses.asdict(record)


def from_json(cls: type[_T], said: object) -> _T:
    """The record that ``said`` is; raises ``ValueError`` saying which key is wrong, and how."""
    return typing.cast(_T, _record(cls, said, cls.__name__))


def _record(cls: Any, said: object, where: str) -> Any:
    if not isinstance(said, dict):
        raise ValueError(f"{where} must be an object, and is {said!r:.60}")
    kinds = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    unknown = [name for name in said if name not in names]
    missing = [name for name in names if name not in said]
    if unknown or missing:
        name, problem = (unknown[0], "is unknown") if unknown else (missing[0], "is missing")
        raise ValueError(f"{where}.{name:.60} {problem}")
    return cls(**{name: _value(kinds[name], said[name], f"{where}.{name}") for name in names})


def _value(kind: Any, said: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _record(kind, said, where)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        if not isinstance(said, list):
            raise ValueError(f"{where} must be a list, and is {said!r:.60}")
        return tuple(_value(inner[0], one, f"{where}[{at}]") for at, one in enumerate(said))
    if origin is dict:
        if not isinstance(said, dict):
            raise ValueError(f"{where} must be an object, and is {said!r:.60}")
        return {name: _value(inner[1], one, f"{where}.{name:.60}") for name, one in said.items()}
    if issubclass(kind, enum.IntEnum):
        return kind(_value(int, said, where))
    right = isinstance(said, (int, float)) if kind is float else isinstance(said, kind)
    if not right or (isinstance(said, bool) and kind is not bool):
        raise ValueError(f"{where} must be {_WORDS[kind]}, and is {said!r:.60}")
    return float(said) if kind is float else said
