"""The HTTP server: few clients at once, each with a budget, whatever they do.

One thread accepts; each visit gets a short-lived thread, at most ``MAX_CLIENTS`` at once. A read
or write has a timeout and the whole visit has one too, watched by the accepting thread, so a client
that sends a byte a second costs one slot for seconds and nothing else.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import socketserver
import threading
import time
from typing import Any, Callable

from prometheus_client import CollectorRegistry

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.sinks.status import Status
from ebpfwatch.sinks.web.guard import Guard
from ebpfwatch.sinks.web.handler import TIMEOUT_SECONDS, Handler
from ebpfwatch.system.log import say
from ebpfwatch.text.printable import printable
from ebpfwatch.verdicts.finding import Finding

__all__ = ["Server", "Web"]

MAX_CLIENTS = 8
VISIT_SECONDS = 4 * TIMEOUT_SECONDS


class Web:
    """The server; bound when made, serving after ``start``."""

    def __init__(self, host: str, port: int, web_config: str = "") -> None:
        """Bind; raises ``EbpfwatchError``: exit 71 naming the address if it is taken, 78 if the
        web configuration is wrong.
        """
        guard = Guard(web_config)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._server = Server((host, port), family, guard)
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise EbpfwatchError(
                f"cannot listen on {host}:{port}: {reason}",
                "choose another address in metrics.listen",
                Exit.OSERR,
            ) from None
        scheme = "https" if guard.tls else "http"
        place = f"[{host}]" if ":" in host else host
        self.url = f"{scheme}://{place}:{self._server.server_port}"
        self._open = not _is_loopback(host)
        if self.exposed:
            say(
                f"{self.url}/metrics is open to the network without {self.exposed}: file and task"
                " names can be read there; listen on a loopback address or set metrics.web_config",
                "warning",
            )

    @property
    def exposed(self) -> str:
        """What should stand between the network and us and does not, in words; "" if nothing."""
        return " and ".join(self._server.guard.missing) if self._open else ""

    @property
    def up_to_date(self) -> bool:
        """Whether the web configuration on disk is the one in force."""
        return self._server.guard.up_to_date

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


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Bounded in clients and in time."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 32
    registry: CollectorRegistry
    status: Callable[[], Status]
    findings: Callable[[], tuple[Finding, ...]]

    def __init__(
        self, address: tuple[str, int], family: socket.AddressFamily, guard: Guard
    ) -> None:
        self.address_family = family
        self.guard = guard
        self._slots = threading.BoundedSemaphore(MAX_CLIENTS)
        # By what was accepted: what is spoken over (encrypted or not), and when its budget ends.
        self._visits: dict[socket.socket, tuple[socket.socket, float]] = {}
        self._defects = 0
        super().__init__(address, Handler)
        self.server_port = int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Into a thread, or away with it."""
        if not self._slots.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.settimeout(0.1)
                request.sendall(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n")
            self.shutdown_request(request)
            return
        self._visits[request] = request, time.monotonic() + VISIT_SECONDS
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread to be had
            self._leave(request)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The visit."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._leave(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands where there is TLS, here and not in the accepting thread; then answer."""
        self.guard.refresh()
        request.settimeout(TIMEOUT_SECONDS)
        secured = self.guard.wrap(request)
        if secured is request:
            super().finish_request(request, client_address)
            return
        # The file descriptor has moved.
        self._visits[request] = secured, self._visits[request][1]
        try:
            secured.do_handshake()  # type: ignore[attr-defined]
            super().finish_request(secured, client_address)
        finally:
            self.shutdown_request(secured)

    def service_actions(self) -> None:
        """Twice a second, from the accepting thread: whoever has stayed too long goes."""
        now = time.monotonic()
        for spoken, until in list(self._visits.values()):
            if now > until:
                with contextlib.suppress(OSError):
                    # Past SSLSocket.shutdown(), which would pull the rug from under its thread.
                    socket.socket.shutdown(spoken, socket.SHUT_RDWR)

    def _leave(self, request: socket.socket) -> None:
        self._visits.pop(request, None)
        self._slots.release()

    def defect(self, path: str, error: Exception) -> None:
        """An answer that could not be made: one line for the first, the rest are only 500s."""
        if not self._defects:
            say(f"cannot answer {printable(path)}: {type(error).__name__}: {error}", "err")
        self._defects += 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event of ours."""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
