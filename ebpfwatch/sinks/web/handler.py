"""What is answered to a request, and with which headers."""

from __future__ import annotations

import http.client
import http.server
import io
import ipaddress
import re
import socket
import time
from typing import TYPE_CHECKING, Any, Callable, Protocol

from prometheus_client.exposition import choose_encoder

from ebpfwatch import __version__
from ebpfwatch.sinks.web import runbook
from ebpfwatch.sinks.web.page import finding_page, page, runbook_page, style_hash

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from ebpfwatch.sinks.status import Status
    from ebpfwatch.sinks.web.guard import Guard
    from ebpfwatch.verdicts.finding import Finding

__all__ = ["REQUEST_BYTES", "Answers", "Handler", "Pages", "head"]

REQUEST_BYTES = 16384  #: request line and headers; http.server alone would take 6 MB of them
_END = re.compile(rb"\n\r?\n")
_OLD = re.compile(rb"\s*\S+\s+\S+\s*\n")  # HTTP/0.9: a method and a path, and no headers
_WEIGHT = re.compile(r";\s*q\s*=\s*([0-9.]+)", re.IGNORECASE)

_Answer = tuple[int, str, bytes, str]  #: code, content type, body, what the policy allows


def head(data: bytes) -> bytes:
    """The request line and the headers, without what comes after them; b"" while they are not all
    there, and all of it where that is too much.
    """
    found = _END.search(data) or _OLD.match(data)
    if found and found.end() <= REQUEST_BYTES:
        return data[: found.end()]
    return data if len(data) > REQUEST_BYTES else b""


class Pages:
    """What /metrics and the page say, made once for each state of the daemon: a flood of visits
    costs one of each a second.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        status: Callable[[], Status],
        findings: Callable[[], tuple[Finding, ...]],
    ) -> None:
        self._registry = registry
        self.status = status
        self._findings = findings
        self._made: dict[str, tuple[object, bytes]] = {}

    def metrics(self, accept: str) -> tuple[str, bytes]:
        """Content type and body."""
        encoder, kind = choose_encoder(accept)
        return kind, self._cached(kind, self.status(), lambda: encoder(self._registry))

    def page(self) -> bytes:
        """The page."""
        status, findings = self.status(), self._findings()
        return self._cached(
            "page", (status, findings), lambda: page(status, findings, time.time()).encode()
        )

    def finding(self, id_: str) -> bytes | None:
        """The page of one of the last findings; None for any other."""
        found = next((finding for finding in self._findings() if finding.id == id_), None)
        if found is None:
            return None
        return self._cached("finding", found, lambda: finding_page(found, time.time()).encode())

    def runbook(self, path: str) -> bytes:
        """The runbook in the language of this path; read once."""
        return self._cached(path, None, lambda: runbook_page(path).encode())

    def _cached(self, name: str, state: object, make: Callable[[], bytes]) -> bytes:
        known = self._made.get(name)
        if known is None or not _same(known[0], state):
            known = self._made[name] = state, make()
        return known[1]


def _same(one: object, other: object) -> bool:
    """By identity: comparing two states would cost more than making the page."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return one[0] is other[0] and one[1] == other[1]
    return one is other


class Answers(Protocol):
    """What the handler needs of the server."""

    guard: Guard
    pages: Pages
    local: bool  #: only this machine can reach us

    def defect(self, path: str, error: Exception) -> None:
        """An answer could not be made."""


class Handler(http.server.BaseHTTPRequestHandler):
    """One request as it was read, and the bytes to answer with; nothing here waits for a client.

    ``undecided`` is true, and there is no answer, where the password has to be hashed first: then
    the same request is handled again, with what came out as ``right``.
    """

    server_version = f"ebpfwatch/{__version__}"
    sys_version = ""

    def __init__(self, data: bytes, server: Answers, right: bool | None = None) -> None:
        self._data = data
        self._right = right
        self._answers = server
        self.code = 0
        self.path = ""
        self.undecided = False
        self.authorization: str | None = None
        super().__init__(b"", ("", 0), server)  # type: ignore[arg-type]

    @property
    def answer(self) -> bytes:
        """All of it; b"" where there is none."""
        return bytes(self._written.getvalue())

    def setup(self) -> None:
        """Read from memory, and write there."""
        self._written = io.BytesIO()
        self.rfile: Any = io.BytesIO(self._data)
        self.wfile: Any = self._written

    def handle(self) -> None:
        """One request: HTTP/1.0 ends with the answer."""
        self.requestline, self.command = "", ""
        if len(self._data) > REQUEST_BYTES:
            self.send_error(431)
            return
        self.handle_one_request()
        if not self.code and not self.undecided:
            self.send_error(400)  # an empty line: http.server would say nothing

    def finish(self) -> None:
        """The answer is taken from ``answer``."""

    def do_GET(self) -> None:
        """The answer, or 500 where making it failed: that is a defect of ours and is said."""
        self.authorization = self.headers.get("Authorization")
        try:
            right = self._answers.guard.knows(self.authorization)
            right = self._right if right is None else right
            if right is None:
                self.undecided = True
                return
            if not self._meant():
                answer = _text(
                    421, "this ebpfwatch has another host name than you asked for: see docs/web.md"
                )
            elif right:
                answer = self._route(self.path.partition("?")[0])
            else:
                answer = _text(401, "a user name and a password are needed (metrics.web_config)")
        except Exception as error:
            self._answers.defect(self.path, error)
            answer = _text(500, "a defect of ebpfwatch; its log has the line")
        self._answer(*answer)

    do_HEAD = do_GET

    def _meant(self) -> bool:
        """Whether the Host is one of ours, where only this machine can reach us.

        Else a page on the web could give its own name our address (DNS rebinding) and have a
        browser on this machine read what we answer.
        """
        host = (self.headers.get("Host") or "").strip().lower()
        if not self._answers.local or not host:
            return True
        name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
        name = name.rstrip(".")
        try:
            ipaddress.ip_address(name)
        except ValueError:
            own = socket.gethostname().lower()
            return name in ("localhost", own, own.partition(".")[0]) or name.endswith(".localhost")
        return True

    def _route(self, path: str) -> _Answer:
        pages = self._answers.pages
        if path == "/metrics":
            kind, body = pages.metrics(_wanted(self.headers.get("Accept", "")))
            return 200, kind, body, ""
        if path == "/":
            return _html(pages.page())
        if path in runbook.LANGUAGES:
            return _html(pages.runbook(path))
        if path.startswith("/findings/"):
            found = pages.finding(path.removeprefix("/findings/"))
            return _html(found) if found else _text(404, "not one of the last; ebpfwatch report ID")
        if path == "/-/healthy":
            return _text(200, "healthy")
        if path == "/-/ready":
            return _text(200, "ready") if pages.status().ready else _text(503, "loading")
        return _text(404, "not found; there are /, /runbook, /findings/ID and /metrics")

    def _answer(self, code: int, kind: str, body: bytes, policy: str) -> None:
        self.code = code
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
        if self.path == "/":
            self.send_header("Refresh", "60")  # without a script, which the policy forbids
        if code == 503:
            self.send_header("Retry-After", "1")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server refuses, with the headers of every answer."""
        self.request_version = "HTTP/1.0"  # it may have been refused before it was known
        self._answer(*_text(int(code), f"{int(code)} {http.client.responses.get(code, '')}"))

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are no news."""


def _html(body: bytes) -> _Answer:
    return 200, "text/html; charset=utf-8", body, f"style-src {style_hash()}; "


def _text(code: int, text: str) -> _Answer:
    return code, "text/plain; charset=utf-8", f"{text}\n".encode(), ""


def _wanted(accept: str) -> str:
    """The header Accept without what the client does not want (RFC 9110, 12.4.2: a weight of 0)."""
    kept = []
    for part in accept.split(","):
        found = _WEIGHT.search(part)
        if not found or found.group(1).strip("0."):
            kept.append(part)
    return ",".join(kept)
