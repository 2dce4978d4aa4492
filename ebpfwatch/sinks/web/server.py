"""The HTTP server: one thread, which waits for no client.

A connection that says nothing costs a file descriptor and has a clock; when there are too many,
the oldest of the address that has most of them goes.  So whoever sends his request at once is
answered, however many others hold their connections open.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import ipaddress
import os
import selectors
import socket
import threading
import time
from typing import Callable

from prometheus_client import CollectorRegistry

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.sinks.status import Status, WebState
from ebpfwatch.sinks.web.guard import Guard
from ebpfwatch.sinks.web.handler import REQUEST_BYTES, Handler, Pages, head
from ebpfwatch.sinks.web.passwords import Hasher
from ebpfwatch.system import privileges
from ebpfwatch.system.log import say
from ebpfwatch.text.printable import printable
from ebpfwatch.verdicts.finding import Finding

__all__ = ["Server", "Web"]

REQUEST_SECONDS = 5.0  #: from the connection to the end of the request, handshake included
ANSWER_SECONDS = 10.0  #: to take the answer
_HASH_SECONDS = 20.0  #: to wait for a password's turn, and its hash
_GOODBYE_SECONDS = 1.0

#: Connections at once: in all, of one address, and of those in all that only addresses may use
#: which were served before.  Where there is TLS each costs some 50 KB.
_PLAIN, _TLS = (256, 192, 32), (96, 64, 16)

_ACCEPTS = 32  # at a time, so that those who are here are looked after in between
_LOOK_SECONDS = 0.25
_PAUSE_SECONDS = 0.2
_REMEMBERED = 256
_BUSY = (
    b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n"
    b"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\r\n"
)


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
        self.url = f"{scheme}://{place}:{self._server.port}"
        if self.exposed:
            say(
                f"{self.url}/metrics is open to the network without {self.exposed}: file and task"
                " names can be read there; listen on a loopback address or set metrics.web_config",
                "warning",
            )

    @property
    def exposed(self) -> str:
        """What should stand between the network and us and does not, in words; "" if nothing."""
        return "" if self._server.local else " and ".join(self._server.guard.missing)

    def state(self) -> WebState:
        """Our part of the snapshot."""
        guard = self._server.guard
        return WebState(self.exposed, guard.up_to_date, guard.expires)

    def start(
        self,
        registry: CollectorRegistry,
        status: Callable[[], Status],
        findings: Callable[[], tuple[Finding, ...]],
    ) -> None:
        """Serve in a thread of its own; the callables must be safe to call from there.  Raises
        ``EbpfwatchError`` (exit 71) where no thread is to be had.
        """
        self._server.pages = Pages(registry, status, findings)
        self._thread = threading.Thread(target=self._server.serve, name="http", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise EbpfwatchError(f"no thread for /metrics: {error}", "", Exit.OSERR) from None

    def stop(self) -> None:
        """Close every socket."""
        self._server.stop()
        self._thread.join(_GOODBYE_SECONDS)


class _Stage(enum.Enum):
    HELLO, HANDSHAKE, REQUEST, PASSWORD, ANSWER, GOODBYE = range(6)


class _Visit:
    """One connection."""

    __slots__ = (
        "address",
        "answer",
        "code",
        "data",
        "fd",
        "open",
        "sent",
        "socket",
        "stage",
        "until",
        "waits",
    )

    def __init__(self, connection: socket.socket, address: str, stage: _Stage) -> None:
        self.socket = connection
        self.fd = connection.fileno()
        self.address = address
        self.stage = stage
        self.until = time.monotonic() + REQUEST_SECONDS
        self.waits = selectors.EVENT_READ
        self.data = b""
        self.answer = b""
        self.sent = 0
        self.code = 0
        self.open = True


class Server:
    """Bounded in clients, in time and in memory."""

    pages: Pages

    def __init__(
        self, address: tuple[str, int], family: socket.AddressFamily, guard: Guard
    ) -> None:
        self.guard = guard
        self.local = _is_loopback(address[0])
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(address)
            self._listener.listen(512)
            self._listener.setblocking(False)
        except BaseException:
            self._listener.close()
            raise
        self.port = int(self._listener.getsockname()[1])
        self._visits: dict[int, _Visit] = {}
        self._by: dict[str, collections.OrderedDict[int, _Visit]] = {}
        self._served: collections.OrderedDict[str, None] = collections.OrderedDict()
        self._hasher = Hasher(self._hashed)
        self._outcomes: collections.deque[tuple[_Visit, bool]] = collections.deque()
        self._wakeup, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._deaf_until = 0.0  # no connection is accepted before
        self._stopping = False
        self._defects = 0

    def stop(self) -> None:
        """Let ``serve`` end."""
        self._stopping = True
        self._wake()

    def close(self) -> None:
        """Close what is open; ``serve`` does so at its end."""
        self._hasher.stop()
        for visit in list(self._visits.values()):
            self._close(visit)
        self._selector.close()
        self._listener.close()
        for fd in (self._wakeup, self._waker):
            os.close(fd)

    def serve(self) -> None:
        """Until ``stop``."""
        # For maps, where the kernel asks for them; no file of others and no kernel address.
        privileges.shed(("bpf", "sys_admin"))
        look_at = 0.0
        while not self._stopping:
            called = False
            for key, _ in self._selector.select(_LOOK_SECONDS):
                called |= key.fileobj is self._listener
                if key.data is not None and key.data.open:
                    self._go(key.data)
            with contextlib.suppress(BlockingIOError):
                os.read(self._wakeup, 4096)
            while self._outcomes:
                visit, right = self._outcomes.popleft()
                if visit.open:
                    self._respond(visit, right)
            if called:
                self._accept()
            if (now := time.monotonic()) >= look_at:
                look_at = now + _LOOK_SECONDS
                self._look_after(now)
        self.close()

    # -- who may come in

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            try:
                connection, peer = self._listener.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError:
                # No descriptor or no memory to be had (accept(2)): the connection stays in the
                # queue, so the listener would call again at once.
                if self._visits:
                    for _ in range(1 + len(self._visits) // 4):
                        self._make_room()
                    continue
                self._deaf_until = time.monotonic() + _PAUSE_SECONDS
                self._selector.unregister(self._listener)
                return
            connection.setblocking(False)
            address = _network(str(peer[0]))
            self.guard.refresh()
            most, share, reserve = _TLS if self.guard.tls else _PLAIN
            mine = self._by.get(address)
            if mine and len(mine) >= share:
                self._turn_away(_oldest(mine))
            if len(self._visits) >= most - (0 if address in self._served else reserve):
                self._make_room()
            stage = _Stage.HELLO if self.guard.tls else _Stage.REQUEST
            visit = _Visit(connection, address, stage)
            self._visits[visit.fd] = visit
            self._by.setdefault(address, collections.OrderedDict())[visit.fd] = visit
            self._selector.register(visit.fd, selectors.EVENT_READ, visit)
            self._go(visit)  # most send their request with the connection

    def _make_room(self) -> None:
        """The oldest goes of the address that has most, and of those never served, if possible."""
        if self._by:
            address = max(self._by, key=lambda a: (a not in self._served, len(self._by[a])))
            self._turn_away(_oldest(self._by[address]))

    def _turn_away(self, visit: _Visit) -> None:
        if visit.stage is _Stage.REQUEST and not self.guard.tls:
            with contextlib.suppress(OSError):
                visit.socket.send(_BUSY)
        self._close(visit)

    def _look_after(self, now: float) -> None:
        """Whoever has stayed too long goes; and what was full may have room again."""
        for visit in [v for v in self._visits.values() if now > v.until]:
            if visit.stage is _Stage.PASSWORD:
                self._hasher.forget(visit)
                self._send(visit, _BUSY, 503)
            else:
                self._close(visit)
        if self._deaf_until and now > self._deaf_until:
            self._deaf_until = 0.0
            self._selector.register(self._listener, selectors.EVENT_READ)

    # -- one visit

    def _go(self, visit: _Visit) -> None:
        """As far as it goes without waiting."""
        try:
            wanted = self._step(visit)
        except BlockingIOError:
            wanted = selectors.EVENT_WRITE if visit.stage is _Stage.ANSWER else selectors.EVENT_READ
        except OSError as error:
            # By name: ssl is not imported where nobody asks for it.
            wants = {"SSLWantReadError": selectors.EVENT_READ}
            wants["SSLWantWriteError"] = selectors.EVENT_WRITE
            wanted = wants.get(type(error).__name__, 0)
        except Exception as error:  # a defect costs this visit
            self.defect("a request", error)
            wanted = 0
        if not wanted:
            self._close(visit)
        elif visit.open and wanted != visit.waits:
            visit.waits = wanted
            self._selector.modify(visit.fd, wanted, visit)

    def _step(self, visit: _Visit) -> int:
        """What to wait for next; 0 ends the visit.  Raises ``OSError``, also for "not yet"."""
        if visit.stage is _Stage.HELLO:
            # Only who has sent something gets a TLS state.
            if not visit.socket.recv(1, socket.MSG_PEEK):
                return 0
            plain, visit.socket = visit.socket, self.guard.wrap(visit.socket)
            visit.stage = _Stage.REQUEST if visit.socket is plain else _Stage.HANDSHAKE
        if visit.stage is _Stage.HANDSHAKE:
            visit.socket.do_handshake()  # type: ignore[attr-defined]
            visit.stage = _Stage.REQUEST
        if visit.stage is _Stage.REQUEST:
            while not (request := head(visit.data)):
                more = visit.socket.recv(REQUEST_BYTES + 1 - len(visit.data))
                visit.data += more
                if not more:  # that was all of it
                    request = visit.data
                    break
            if not request:
                return 0
            visit.data = request
            self._respond(visit, None)
            return visit.waits
        if visit.stage is _Stage.ANSWER:
            while visit.sent < len(visit.answer):
                rest = memoryview(visit.answer)[visit.sent :]
                visit.sent += visit.socket.send(rest)
            self._say_goodbye(visit)
            return selectors.EVENT_READ
        # While the password waits its turn, or after the answer: what still comes is thrown away,
        # and the end of it ends the visit.
        return selectors.EVENT_READ if socket.socket.recv(visit.socket, 65536) else 0

    def _respond(self, visit: _Visit, right: bool | None) -> None:
        """Answer, or let the password wait for its turn."""
        handler = Handler(visit.data, self, right)
        if not handler.undecided:
            self._send(visit, handler.answer, handler.code)
            return
        visit.stage, visit.until = _Stage.PASSWORD, time.monotonic() + _HASH_SECONDS
        header, allows = handler.authorization, self.guard.allows
        gone = self._hasher.submit(visit.address, visit, lambda: allows(header))
        if gone is not None:
            self._send(gone, _BUSY, 503)

    def _hashed(self, visit: _Visit, right: bool) -> None:
        """Called by the hasher's thread."""
        if not self._stopping:
            self._outcomes.append((visit, right))
            self._wake()

    def _send(self, visit: _Visit, answer: bytes, code: int) -> None:
        visit.stage, visit.until = _Stage.ANSWER, time.monotonic() + ANSWER_SECONDS
        visit.answer, visit.code = answer, code
        self._go(visit)

    def _say_goodbye(self, visit: _Visit) -> None:
        """Close our half first: closing all while something is unread would reset the connection,
        and the client might lose the answer with it.
        """
        if visit.code == 200:
            self._served[visit.address] = None
            self._served.move_to_end(visit.address)
            if len(self._served) > _REMEMBERED:
                self._served.popitem(last=False)
        visit.stage, visit.until = _Stage.GOODBYE, time.monotonic() + _GOODBYE_SECONDS
        visit.answer = visit.data = b""
        with contextlib.suppress(OSError, AttributeError):
            visit.socket.unwrap()  # type: ignore[attr-defined]
        # Not SSLSocket's own, which would forget that there is TLS.
        socket.socket.shutdown(visit.socket, socket.SHUT_WR)

    def _close(self, visit: _Visit) -> None:
        if not visit.open:
            return
        visit.open = False
        if visit.stage is _Stage.PASSWORD:
            self._hasher.forget(visit)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(visit.fd)
        del self._visits[visit.fd]
        mine = self._by[visit.address]
        del mine[visit.fd]
        if not mine:
            del self._by[visit.address]
        visit.socket.close()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._waker, b"!")

    def defect(self, path: str, error: Exception) -> None:
        """An answer that could not be made: one line for the first, the rest are only 500s."""
        if not self._defects:
            say(f"cannot answer {printable(path)}: {type(error).__name__}: {error}", "err")
        self._defects += 1


def _oldest(visits: collections.OrderedDict[int, _Visit]) -> _Visit:
    """The first that has not sent its request yet, else the first."""
    for visit in visits.values():
        if visit.stage.value <= _Stage.REQUEST.value:
            return visit
    return next(iter(visits.values()))


def _network(address: str) -> str:
    """Whom an address stands for: one machine has all of 127.0.0.0/8, and mostly a whole IPv6
    network of 64 bits.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    if found.is_loopback:
        return "loopback"
    return str(found) if found.version == 4 else str(ipaddress.ip_network((found, 64), False))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
