"""How records and fds go between the daemon and the loader child: one JSON message each way.

The message is a datagram on a SOCK_SEQPACKET socketpair, so it arrives whole or not at all.
"""

from __future__ import annotations

import array
import json
import socket
from typing import Any, TypeVar

from ebpfwatch.errors import EbpfwatchError, Failure
from ebpfwatch.text.records import from_json, to_json

__all__ = ["receive", "send"]

_MAX_MESSAGE = 65536
_MAX_FDS = 128
_T = TypeVar("_T")


def send(connection: socket.socket, record: Any, fds: tuple[int, ...] = ()) -> None:
    """Send one record with its fds; raises ``OSError`` when the other side is gone."""
    ancillary = []
    if fds:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    message = {type(record).__name__: to_json(record)}
    connection.sendmsg([json.dumps(message).encode()], ancillary)


def receive(connection: socket.socket, kind: type[_T]) -> tuple[_T, list[int]]:
    """The next record, which must be of this kind, and its fds (close-on-exec).

    Raises ``EOFError`` when the other side closed, ``OSError`` if the message was cut off, and
    ``EbpfwatchError``: the sender's own where it sent a ``Failure`` instead, else one that says
    what is wrong with the message.
    """
    size = array.array("i").itemsize
    data, ancillary, flags, _ = connection.recvmsg(
        _MAX_MESSAGE, socket.CMSG_SPACE(_MAX_FDS * size), socket.MSG_CMSG_CLOEXEC
    )
    if not data:
        raise EOFError("the other side closed the connection")
    fds = array.array("i")
    for level, what, payload in ancillary:
        if level == socket.SOL_SOCKET and what == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % size])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise OSError("the loader's message was cut off")
    return _record(data, kind), list(fds)


def _record(data: bytes, kind: type[_T]) -> _T:
    try:
        message = json.loads(data)
        if not isinstance(message, dict) or len(message) != 1:
            raise ValueError(f"one record was expected, and it is {data!r:.60}")
        ((name, said),) = message.items()
        failed = from_json(Failure, said).error if name == Failure.__name__ else None
        if failed is not None:
            raise failed
        if name != kind.__name__:
            raise ValueError(f"{kind.__name__} was expected, and it is {name:.60}")
        return from_json(kind, said)
    except ValueError as error:
        raise EbpfwatchError(
            f"a message between the daemon and its loader is wrong: {error}",
            "this is a defect of ebpfwatch, or its files are of two versions: install it again",
        ) from None
