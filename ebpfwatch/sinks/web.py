"""/metrics, a landing page and two health checks over HTTP, for few and bounded clients.

One thread accepts; each request gets a short-lived thread, at most ``_MAX_CLIENTS`` at once, each
with a timeout, so a slow or hanging client costs one slot for seconds and nothing else.
"""

from __future__ import annotations

import contextlib
import html
import http.server
import ipaddress
import socket
import socketserver
import threading
from typing import Any, Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from ebpfwatch import __version__
from ebpfwatch.errors import EbpfwatchError, Exit, say
from ebpfwatch.sinks.text import plain
from ebpfwatch.status import Status
from ebpfwatch.verdicts.finding import Finding

__all__ = ["Web", "page"]

_MAX_CLIENTS = 8
_TIMEOUT_SECONDS = 5.0


class Web:
    """The server; bound when made, serving after ``start``."""

    def __init__(self, host: str, port: int) -> None:
        """Bind; raises ``EbpfwatchError`` (exit 71) naming the address if it is taken."""
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._server = _Server((host, port), family)
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise EbpfwatchError(
                f"cannot listen on {host}:{port}: {reason}",
                "choose another address in metrics.listen",
                Exit.OSERR,
            ) from None
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self._server.server_port}"
        if not _is_loopback(host):
            say(
                f"{self.url}/metrics is open to the network, without TLS and without a password;"
                " metrics.listen should be a loopback address behind a proxy",
                "warning",
            )

    def start(
        self,
        registry: CollectorRegistry,
        status: Callable[[], Status],
        findings: Callable[[], tuple[Finding, ...]],
    ) -> None:
        """Serve in a thread of its own; the callables must be safe to call from there."""
        self._server.registry = registry
        self._server.status = status
        self._server.findings = findings
        threading.Thread(target=self._server.serve_forever, name="http", daemon=True).start()

    def stop(self) -> None:
        """Close the socket."""
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 32
    registry: CollectorRegistry
    status: Callable[[], Status]
    findings: Callable[[], tuple[Finding, ...]]

    def __init__(self, address: tuple[str, int], family: socket.AddressFamily) -> None:
        self.address_family = family
        self._slots = threading.BoundedSemaphore(_MAX_CLIENTS)
        super().__init__(address, _Handler)
        self.server_port = int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.settimeout(0.1)
                request.sendall(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n")
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread to be had
            self._slots.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        # The whole visit gets one budget, so a client that sends a byte a second cannot stay.
        timer = threading.Timer(4 * _TIMEOUT_SECONDS, _hang_up, (request,))
        timer.daemon = True
        timer.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            timer.cancel()
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event of ours."""


def _hang_up(request: socket.socket) -> None:
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    timeout = _TIMEOUT_SECONDS
    server_version = f"ebpfwatch/{__version__}"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encoder, kind = choose_encoder(self.headers.get("Accept", ""))
            self._answer(200, kind, encoder(self.server.registry))
        elif path == "/":
            body = page(self.server.status(), self.server.findings())
            self._answer(200, "text/html; charset=utf-8", body.encode())
        elif path == "/-/healthy":
            self._answer(200, "text/plain", b"healthy\n")
        elif path == "/-/ready":
            ready = self.server.status().ready
            self._answer(200 if ready else 503, "text/plain", b"ready\n" if ready else b"loading\n")
        else:
            self._answer(404, "text/plain", b"not found; try /metrics\n")

    do_HEAD = do_GET

    def _answer(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are no news."""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_STYLE = """
:root { color-scheme: light dark; --bad: #b00020; --ok: #1b7f3b; --dim: #777; }
@media (prefers-color-scheme: dark) { :root { --bad: #ff6b7d; --ok: #5fd38a; --dim: #999; } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
} table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem; } th, td { text-align:
left; vertical-align: top; padding: .25rem .75rem .25rem 0; } th { font-weight: 600; border-bottom:
1px solid var(--dim); } td.why, .dim { color: var(--dim); font-size: 13px; } .ok { color:
var(--ok); } .bad { color: var(--bad); font-weight: 600; }
"""


def page(status: Status, findings: tuple[Finding, ...]) -> str:
    """The landing page: are the hooks alive, and what was found. All foreign text is escaped."""
    e = html.escape
    hooks = "".join(
        f"<tr><td>{e(hook.role)}</td><td>{_alive(hook.attached, hook.alive)}</td>"
        f"<td>{e(hook.rung or 'none')}</td><td class=why>{e(hook.reason)}</td></tr>"
        for hook in status.hooks
    )
    rows = "".join(
        f"<tr><td>{e(f.id)}</td><td>{'test: ' if f.test else ''}{e(f.verdict.value)}</td>"
        f"<td>{e(f.confidence.value)}</td><td>{e(plain(f.summary))}</td></tr>"
        for f in findings
    )
    losses = ", ".join(f"{e(k)} {v}" for k, v in status.losses.items() if v) or "nothing"
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>ebpfwatch</title>"
        "<meta name=viewport content='width=device-width'>"
        f"<style>{_STYLE}</style><h1>ebpfwatch</h1>"
        "<p>Watches the life of ext4 inodes inside this kernel. "
        "<a href=/metrics>metrics</a> · <a href=/-/healthy>healthy</a> · "
        "<a href=/-/ready>ready</a></p><h2>Hooks</h2><table><tr><th>hook<th>alive<th>rung<th>why"
        f" no better</tr>{hooks}</table><h2>Last findings</h2>"
        + (
            f"<table><tr><th>id<th>verdict<th>confidence<th>what</tr>{rows}</table>"
            if rows
            else "<p>None since the start.</p>"
        )
        + f"<p class=dim>Lost so far: {losses}. Version {e(__version__)}.</p></html>"
    )


def _alive(attached: bool, alive: object) -> str:
    if not attached:
        return "<span class=dim>absent</span>"
    if alive is None:
        return "not proven yet"
    return "<span class=ok>alive</span>" if alive else "<span class=bad>SILENT</span>"
