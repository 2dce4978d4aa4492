"""Passwords: right ones are remembered, others are hashed one at a time in a thread of their own.

bcrypt costs tens of milliseconds on purpose, and nobody who is right already may wait for it.  A
scraper comes every few seconds, so what was right once is remembered, as a keyed hash: no password
stays in memory, and how long the look-up takes says nothing to somebody who does not know the key.
"""

from __future__ import annotations

import base64
import binascii
import collections
import threading
import time
from typing import Any, Callable

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.system.imports import absent
from ebpfwatch.system.random_bytes import random_bytes

__all__ = ["Hasher", "Passwords"]

_REMEMBERED = 100
_WAITING = 8
_ADDRESSES = 1000
#: After a wrong password the next is hashed so many times its CPU time later: for addresses that
#: were wrong before (a tenth of one core), and for the others (half a core).
_REST, _REST_OF_OTHERS = 9, 1


class Passwords:
    """The users of one web configuration."""

    def __init__(self, users: dict[str, str]) -> None:
        """Raises ``EbpfwatchError`` where there are users, but no bcrypt."""
        self._users = {name.encode(): hashed.encode() for name, hashed in users.items()}
        self._known: set[bytes] = set()
        if users:
            self._secret = random_bytes(32)
            try:
                # bcrypt 3 imports hmac, and with it, as hashlib does, OpenSSL: 3.5 MB of memory.
                with absent("_hashlib"):
                    from hashlib import blake2b

                    import bcrypt
            except ImportError:
                raise EbpfwatchError(
                    "basic_auth_users needs bcrypt", "apt-get install python3-bcrypt", Exit.CONFIG
                ) from None
            self._check, self._hash = bcrypt.checkpw, blake2b

    def known(self, header: str | None) -> bool | None:
        """Whether this Authorization header is right; None where only hashing can tell."""
        if not self._users:
            return True
        credentials = _basic(header)
        if credentials is None:
            return False
        return True if self._digest(*credentials) in self._known else None

    def allow(self, header: str | None) -> bool:
        """The same, by hashing where it has to be."""
        known = self.known(header)
        credentials = _basic(header)
        if known is not None or credentials is None:
            return bool(known)
        user, password = credentials
        # A user who does not exist takes as long as one who does.
        right = self._matches(password, self._hashed(user)) and user in self._users
        if right:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known.add(self._digest(user, password))
        return right

    def _hashed(self, user: bytes) -> bytes:
        return self._users.get(user) or next(iter(self._users.values()))

    def _matches(self, password: bytes, hashed: bytes) -> bool:
        try:
            return bool(self._check(password, hashed))
        except ValueError:  # a NUL byte, or (newer versions) more than 72 bytes
            return False

    def _digest(self, user: bytes, password: bytes) -> bytes:
        parts = user, self._hashed(user), password
        return self._hash(repr(parts).encode(), key=self._secret).digest()


class Hasher:
    """Hashes for visits that wait, in a thread; ``told`` is called there with each outcome.

    Bounded in those that wait, and in CPU time: after a wrong password it rests.  An address that
    was not wrong before goes first, and takes the place of one that was.
    """

    def __init__(self, told: Callable[[Any, bool], None]) -> None:
        self._told = told
        self._changed = threading.Condition()
        self._waiting: list[tuple[str, Any, Callable[[], bool]]] = []
        self._wrong: collections.OrderedDict[str, int] = collections.OrderedDict()
        self._rest_until = self._others_until = 0.0
        self._stopped = False
        self._thread: threading.Thread | None = None

    def submit(self, address: str, visit: Any, job: Callable[[], bool]) -> Any:
        """Let the visit wait for its job.  Returns the visit that must go instead: None, another
        one, or this one itself.
        """
        with self._changed:
            turned_away = None
            if len(self._waiting) >= _WAITING:
                worst = max(self._waiting, key=lambda entry: self._wrong.get(entry[0], 0))
                if self._wrong.get(worst[0], 0) <= self._wrong.get(address, 0):
                    return visit
                self._waiting.remove(worst)
                turned_away = worst[1]
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="passwords", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no thread to be had; the next visit tries again
                    return visit
                self._thread = thread
            self._waiting.append((address, visit, job))
            self._changed.notify()
            return turned_away

    def forget(self, visit: Any) -> None:
        """The visit has ended: nobody wants to know any more."""
        with self._changed:
            self._waiting = [entry for entry in self._waiting if entry[1] is not visit]

    def stop(self) -> None:
        """End the thread, after what it has at hand."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while (entry := self._next()) is None:
                    if self._stopped:
                        return
                    self._changed.wait(self._pause())
            address, visit, job = entry
            began = time.thread_time()
            right = job()
            spent, now = time.thread_time() - began, time.monotonic()
            with self._changed:
                if right:
                    self._wrong.pop(address, None)
                else:
                    self._wrong[address] = self._wrong.get(address, 0) + 1
                    self._wrong.move_to_end(address)
                    if len(self._wrong) > _ADDRESSES:
                        self._wrong.popitem(last=False)
                    self._rest_until = now + _REST * spent
                    self._others_until = now + _REST_OF_OTHERS * spent
            self._told(visit, right)

    def _next(self) -> tuple[str, Any, Callable[[], bool]] | None:
        """Who is due: first come, first served among those who were wrong least often."""
        now = time.monotonic()
        if self._stopped or not self._waiting or now < self._others_until:
            return None
        best = min(self._waiting, key=lambda entry: self._wrong.get(entry[0], 0))
        if self._wrong.get(best[0], 0) and now < self._rest_until:
            return None
        self._waiting.remove(best)
        return best

    def _pause(self) -> float | None:
        """Seconds until somebody may be due; None: until somebody comes."""
        if not self._waiting:
            return None
        now = time.monotonic()
        wrong = all(self._wrong.get(entry[0], 0) for entry in self._waiting)
        return max(0.001, (self._rest_until if wrong else self._others_until) - now)


def _basic(header: str | None) -> tuple[bytes, bytes] | None:
    scheme, _, encoded = (header or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None
    return (user, password) if colon else None
