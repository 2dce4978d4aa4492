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


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
    """What is imported inside finds a module of that name where everything is None; afterwards it
    can be imported for real.  Nothing happens where it has been imported already.
    """
    if name in sys.modules:
        yield
        return
    hollow = types.ModuleType(name)
    # prometheus_client asks for a constant, for the default of a parameter.
    hollow.__getattr__ = lambda attribute: None  # type: ignore[method-assign]
    sys.modules[name] = hollow
    try:
        yield
    finally:
        del sys.modules[name]


@contextlib.contextmanager
def absent(name: str) -> Iterator[None]:
    """What is imported inside finds that there is no such module, and takes its own second choice;
    afterwards it can be imported.  Nothing happens where it has been imported already.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
