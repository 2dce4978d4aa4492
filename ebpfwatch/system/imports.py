"""Imports that cost the daemon memory it never uses.

``http.client`` and ``prometheus_client.exposition`` import ``ssl``, and with it OpenSSL, for the
HTTPS of clients, which a server never speaks: some 4 of the daemon's 32 MB.  Where TLS is
configured, ``sinks/web/guard.py`` imports the real one.  ``urllib.request`` imports ``hashlib``,
which prefers OpenSSL's functions to Python's own: the same again.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator

__all__ = ["absent", "without"]


def without(name: str) -> contextlib.AbstractContextManager[None]:
    """What is imported inside finds a module of that name where everything is None; afterwards it
    can be imported for real.  Nothing happens where it has been imported already.
    """
    hollow = types.ModuleType(name)
    # prometheus_client asks for a constant, for the default of a parameter.
    hollow.__getattr__ = lambda attribute: None  # type: ignore[method-assign]
    return _standing_in(name, hollow)


def absent(name: str) -> contextlib.AbstractContextManager[None]:
    """The same, but there is no such module, and what is imported takes its own second choice."""
    return _standing_in(name, None)


@contextlib.contextmanager
def _standing_in(name: str, module: types.ModuleType | None) -> Iterator[None]:
    if name in sys.modules:
        yield
        return
    sys.modules[name] = module  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
