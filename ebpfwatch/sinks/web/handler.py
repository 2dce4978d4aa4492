"""What is answered to which path, and with which headers."""

from __future__ import annotations

import http.client
import http.server
import time
from typing import TYPE_CHECKING, Any

from prometheus_client.exposition import choose_encoder

from ebpfwatch import __version__
from ebpfwatch.sinks.web.page import page, style_hash

if TYPE_CHECKING:
    from ebpfwatch.sinks.web.server import Server

__all__ = ["TIMEOUT_SECONDS", "Handler"]

TIMEOUT_SECONDS = 5.0  #: for one read or write; the whole visit has a budget too (server.py)
_REQUEST_BYTES = 16384  #: request line and headers; http.server alone would take 6 MB of them


_Answer = tuple[int, str, bytes, str]  #: code, content type, body, what the policy allows


def _text(code: int, text: str) -> _Answer:
    return code, "text/plain; charset=utf-8", f"{text}\n".encode(), ""


class Handler(http.server.BaseHTTPRequestHandler):
    """One visit, one request: HTTP/1.0 frees the slot at once."""

    server: Server
    timeout = TIMEOUT_SECONDS
    server_version = f"ebpfwatch/{__version__}"
    sys_version = ""

    def setup(self) -> None:
        """As usual, with a bound on what is read."""
        super().setup()
        self.rfile: Any = _Bounded(self.rfile)

    def do_GET(self) -> None:
        """The answer, or 500 where making it failed: that is a defect of ours and is said."""
        try:
            if self.server.guard.allows(self.headers.get("Authorization")):
                answer = self._route(self.path.partition("?")[0])
            else:
                answer = _text(401, "who are you?")
        except Exception as error:
            self.server.defect(self.path, error)
            answer = _text(500, "a defect of ebpfwatch; its log has the line")
        self._answer(*answer)

    do_HEAD = do_GET

    def _route(self, path: str) -> _Answer:
        if path == "/metrics":
            encoder, kind = choose_encoder(self.headers.get("Accept", ""))
            return 200, kind, encoder(self.server.registry), ""
        if path == "/":
            body = page(self.server.status(), self.server.findings(), time.time())
            return 200, "text/html; charset=utf-8", body.encode(), f"style-src {style_hash()}; "
        if path == "/-/healthy":
            return _text(200, "healthy")
        if path == "/-/ready":
            return _text(200, "ready") if self.server.status().ready else _text(503, "loading")
        return _text(404, "not found; try /metrics")

    def _answer(self, code: int, kind: str, body: bytes, policy: str) -> None:
        self.send_response(code)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            (
                "Content-Security-Policy",
                f"default-src 'none'; {policy}base-uri 'none'; form-action 'none';"
                " frame-ancestors 'none'",
            ),
        ):
            self.send_header(name, value)
        if code == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="ebpfwatch", charset="UTF-8"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are no news."""


class _Bounded:
    """The request as it is read; ends with ``LineTooLong`` (431) where a request is too long."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = _REQUEST_BYTES

    def readline(self, limit: int = -1) -> bytes:
        """One line, within what is left."""
        line: bytes = self._file.readline(min(limit, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise http.client.LineTooLong("request")
        return line

    def close(self) -> None:
        """The file's."""
        self._file.close()

    @property
    def closed(self) -> bool:
        """The file's."""
        return bool(self._file.closed)
