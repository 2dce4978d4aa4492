"""/metrics, a status page and two health checks over HTTP, for few and bounded clients."""

from __future__ import annotations

from ebpfwatch.sinks.web.server import Web

__all__ = ["Web"]
