"""Imports that cost the daemon memory it never uses, and modules that are not installed.

``http.client`` and ``prometheus_client.exposition`` import ``ssl``, and with it OpenSSL, for the
HTTPS of clients, which a server never speaks: some 4 of the daemon's 32 MB.  Where TLS is
configured, ``sinks/web/guard.py`` imports the real one.  ``urllib.request`` imports ``hashlib``,
which prefers OpenSSL's functions to Python's own: the same again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import types
from collections.abc import Iterator

from ebpfwatch.errors import EbpfwatchError, Exit

__all__ = ["absent", "missing", "not_installed", "require", "without"]

#: Modules that are not ours and not Python's, and the Debian package of each.
_PACKAGES = {
    "bcc": "python3-bpfcc",
    "prometheus_client": "python3-prometheus-client",
    "systemd": "python3-systemd",
    "yaml": "python3-yaml",
}


def missing(name: str, otherwise: str = "") -> EbpfwatchError:
    """The error (exit 69) for a module that is not installed; ``otherwise``: what else helps."""
    return EbpfwatchError(
        f"the Python module {name} is missing",
        f"install it: apt-get install {_PACKAGES[name]}{otherwise}",
        Exit.UNAVAILABLE,
    )


def not_installed(error: ImportError) -> EbpfwatchError | None:
    """The same for an import that failed; None where that is a defect: the module is none of those
    that may be missing.
    """
    name = (error.name or "").partition(".")[0]
    return missing(name) if isinstance(error, ModuleNotFoundError) and name in _PACKAGES else None


def require(name: str, otherwise: str = "") -> None:
    """Raises ``missing`` where there is no such module; it is not imported."""
    if importlib.util.find_spec(name) is None:
        raise missing(name, otherwise)


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
