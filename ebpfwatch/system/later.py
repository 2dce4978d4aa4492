"""A module that is imported when something is taken from it.

Imports nothing of ours: it runs before all else.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

__all__ = ["later"]


def later(name: str, *functions: str) -> None:
    """Whoever imports this module gets an empty one, until something is taken from it, or until one
    of these ``functions`` is called.

    ``dataclasses`` imports ``inspect``, and with it Python's own parser (1.3 MB), for the
    documentation of classes that have none; up to Python 3.11 for nothing else.  ``pathlib`` takes
    a function from ``urllib.parse`` for URIs.
    (``importlib.util.LazyLoader`` does not help: each import asks a module for its ``__spec__``,
    and that loads it.)
    """
    if name in sys.modules:
        return
    empty = types.ModuleType(name)

    def real(attribute: str) -> Any:
        if sys.modules.get(name) is empty:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    def take(attribute: str) -> Any:
        if attribute.startswith("__"):  # what the import itself asks for
            raise AttributeError(attribute)
        if attribute in functions:
            return lambda *words, **named: real(attribute)(*words, **named)
        return real(attribute)

    empty.__getattr__ = take  # type: ignore[method-assign]
    sys.modules[name] = empty
