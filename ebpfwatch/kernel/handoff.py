"""What the loader child and the daemon say to each other: one JSON message each way, fds attached.

The message is a datagram on a SOCK_SEQPACKET socketpair, so it arrives whole or not at all.
"""

from __future__ import annotations

import array
import json
import socket
from typing import Any

__all__ = ["receive", "send"]

_MAX_MESSAGE = 65536
_MAX_FDS = 128


def send(connection: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """Send one message with its fds; raises ``OSError`` when the other side is gone."""
    ancillary = []
    if fds:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    connection.sendmsg([json.dumps(message).encode()], ancillary)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message and its fds (close-on-exec); ``EOFError`` when the other side closed."""
    size = array.array("i").itemsize
    data, ancillary, flags, _ = connection.recvmsg(
        _MAX_MESSAGE, socket.CMSG_SPACE(_MAX_FDS * size), socket.MSG_CMSG_CLOEXEC
    )
    if not data:
        raise EOFError("the other side closed the connection")
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % size])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise OSError("the loader's message was cut off")
    message: dict[str, Any] = json.loads(data)
    return message, list(fds)
