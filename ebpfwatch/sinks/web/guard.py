"""Who may come in: TLS and passwords, from a file that is read again whenever it changes.

``ssl`` and ``bcrypt`` are imported only where a web configuration asks for them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.sinks.web import webconfig
from ebpfwatch.sinks.web.certificate import expiry
from ebpfwatch.sinks.web.passwords import Passwords
from ebpfwatch.sinks.web.webconfig import TlsServerConfig, WebConfig
from ebpfwatch.system.files import read_regular, why_not_roots
from ebpfwatch.system.log import say

if TYPE_CHECKING:
    import ssl

__all__ = ["Guard"]

_AGAIN_SECONDS = 5.0
_CERTIFICATE_BYTES = 1 << 20


class Guard:
    """The present certificate and users. Without a file: nobody is asked anything."""

    def __init__(self, path: str = "") -> None:
        """Read the file; raises ``EbpfwatchError`` where it is wrong."""
        self._path = path
        self._lock = threading.Lock()
        self._stamp: tuple[object, ...] = ()
        self._config = WebConfig()
        self._context: ssl.SSLContext | None = None
        self._passwords = Passwords({})
        self._problem = ""
        self._said: set[str] = set()
        self._again = 0.0
        self.up_to_date = True  #: False while the file on disk is wrong and an older one is used
        self.expires = 0.0  #: when the certificate does, in seconds since the epoch; 0 without one
        if path:
            self._read()

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted."""
        return self._context is not None

    @property
    def missing(self) -> tuple[str, ...]:
        """What an open network would ask for and is not there."""
        tls = self._config.tls_server_config
        known = self._config.basic_auth_users or tls.client_auth_type.startswith("Require")
        return (*(() if self.tls else ("TLS",)), *(() if known else ("a password",)))

    def refresh(self) -> None:
        """Look at the files, and read them if they are other ones than before.

        A file that is wrong now leaves the last right one in force, with one line in the log: a
        typo must not blind the monitoring.
        """
        if not self._path:
            return
        with self._lock:
            stamp, now = self._files(), time.monotonic()
            if stamp == self._stamp and (self.up_to_date or now < self._again):
                return
            try:
                self._read()
            except EbpfwatchError as error:
                # A file that only the wrong configuration names is not in the stamp: try again.
                self._stamp, self._again = stamp, now + _AGAIN_SECONDS
                self.up_to_date = False
                if str(error) != self._problem:
                    say(f"keeping the old web configuration: {error}", "err")
                self._problem = str(error)
            else:
                self.up_to_date, self._problem = True, ""
                say(f"read {self._path} again")

    def wrap(self, request: socket.socket) -> socket.socket:
        """The connection, encrypted if it has to be; the handshake is the caller's to make."""
        if self._context is None:
            return request
        return self._context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)

    def knows(self, authorization: str | None) -> bool | None:
        """Whether the header names a user and the right password; None: hash it to know."""
        return self._passwords.known(authorization)

    def allows(self, authorization: str | None) -> bool:
        """The same, hashed where it has to be: that takes long."""
        return self._passwords.allow(authorization)

    def _read(self) -> None:
        # The stamps first: what changes while we read is then read again.
        itself = _identity(self._path)
        config = webconfig.load(self._path)
        stamp = (itself, *_identities(config.tls_server_config))
        context = _context(self._path, config.tls_server_config)
        passwords = Passwords(config.basic_auth_users)
        # All of it was right: now it counts.
        self._config, self._context, self._passwords = config, context, passwords
        self._stamp = stamp
        self.expires = _expires(config.tls_server_config)
        self._warn_of_others()

    def _warn_of_others(self) -> None:
        """One line for each file that others could exchange: it decides who may read /metrics."""
        tls = self._config.tls_server_config
        for file in filter(None, (self._path, tls.cert_file, tls.key_file, tls.client_ca_file)):
            with contextlib.suppress(OSError):
                why_not = why_not_roots(file)
                if why_not and why_not not in self._said:
                    self._said.add(why_not)
                    say(f"{file} can be exchanged: {why_not}", "warning")

    def _files(self) -> tuple[object, ...]:
        return _identity(self._path), *_identities(self._config.tls_server_config)


def _identities(tls: TlsServerConfig) -> tuple[object, ...]:
    return tuple(_identity(file) for file in (tls.cert_file, tls.key_file, tls.client_ca_file))


def _identity(path: str) -> object:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _expires(tls: TlsServerConfig) -> float:
    """0 where it cannot be told: that alone must not keep anybody out."""
    if not tls.cert_file:
        return 0.0
    try:
        return expiry(read_regular(tls.cert_file, _CERTIFICATE_BYTES))
    except (OSError, ValueError):
        return 0.0


def _context(path: str, tls: TlsServerConfig) -> ssl.SSLContext | None:
    verified = tls.client_auth_type != "NoClientCert"
    if bool(tls.cert_file) != bool(tls.key_file):
        _refuse(path, "cert_file and key_file need each other")
    if verified != bool(tls.client_ca_file):
        _refuse(path, "client_auth_type and client_ca_file need each other")
    if not tls.cert_file:
        if tls != TlsServerConfig():
            _refuse(path, "tls_server_config needs cert_file and key_file")
        return None
    import ssl

    versions = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = versions[tls.min_version]
    context.maximum_version = versions[tls.max_version]
    if tls.max_version < tls.min_version:
        _refuse(path, "max_version is below min_version")
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # Of TLS 1.2 only what has forward secrecy and authenticated encryption, as TLS 1.3 always has.
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    if not tls.prefer_server_cipher_suites:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    _holds(path, tls.cert_file, "CERTIFICATE")
    _holds(path, tls.key_file, "PRIVATE KEY")
    with _naming(path, f"{tls.cert_file} and {tls.key_file}"):
        # An encrypted key must be an error, not a question on a terminal that nobody watches.
        context.load_cert_chain(tls.cert_file, tls.key_file, password=lambda: b"")
    if verified:
        _holds(path, tls.client_ca_file, "CERTIFICATE")
        with _naming(path, tls.client_ca_file):
            context.load_verify_locations(tls.client_ca_file)
        required = tls.client_auth_type == "RequireAndVerifyClientCert"
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


def _holds(path: str, file: str, what: str) -> None:
    """Refuse in words what OpenSSL calls "PEM lib", and a FIFO before OpenSSL waits for it."""
    try:
        text = read_regular(file, 1 << 20)
    except OSError as error:
        _refuse(path, f"cannot read {file}: {error.strerror}")
    if f"{what}-----".encode() not in text:
        _refuse(path, f"{file} holds no {what.lower()} in PEM")
    if what == "PRIVATE KEY" and os.stat(file).st_mode & 0o022:
        _refuse(path, f"{file} can be written by others: chmod 600")
    if what == "PRIVATE KEY" and b"ENCRYPTED" in text:
        _refuse(path, f"the key in {file} is encrypted, and nobody is there to be asked")


@contextlib.contextmanager
def _naming(path: str, files: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        _refuse(path, f"cannot use {files}: {reason}")


def _refuse(path: str, problem: str) -> NoReturn:
    raise EbpfwatchError(f"{path}: {problem}", "see docs/web.md", Exit.CONFIG)
