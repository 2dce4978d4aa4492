"""The links: where each program is attached. One lives in its fd, so closing that detaches it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ebpfwatch.catalogue.ladder import Attachment

__all__ = ["Links"]


@dataclasses.dataclass
class _Link:
    role: str
    kind: str
    attachment: Attachment
    symbol: str
    fd: int  #: -1 = detached


class Links:
    """All links of a session, by role.

    ``described`` is what the loader said of each (role, kind, symbol and the fields of
    ``Attachment``), ``fds`` are in the same order; fewer fds: the rest is not attached.
    """

    def __init__(
        self,
        described: Sequence[Mapping[str, Any]],
        fds: Sequence[int],
        programs: Mapping[str, int],
    ) -> None:
        self._programs = programs
        padded = [*fds, *[-1] * (len(described) - len(fds))]
        self._links = [
            _Link(
                one["role"],
                one["kind"],
                Attachment(one["target"], one["function"], one["at_return"]),
                one["symbol"],
                fd,
            )
            for one, fd in zip(described, padded)
        ]

    def attached(self, role: str) -> bool:
        """Whether the role has links, and all of them hold."""
        fds = [link.fd for link in self._links if link.role == role]
        return bool(fds) and all(fd >= 0 for fd in fds)

    def functions(self, role: str) -> tuple[str, ...]:
        """The programs of a role, by name."""
        return tuple(link.attachment.function for link in self._links if link.role == role)

    @property
    def order(self) -> tuple[str, ...]:
        """The programs in the order in which they are attached."""
        return tuple(link.attachment.function for link in self._links)

    def detach(self, role: str = "") -> None:
        """Close the links of a role, or of all; what begins something before what ends it."""
        for link in reversed(self._links):
            if link.fd >= 0 and role in ("", link.role):
                os.close(link.fd)
                link.fd = -1

    def attach(self, role: str = "") -> None:
        """Attach what is not attached, in the ladder's order; raises ``EbpfwatchError`` where the
        kernel wants a capability for it that the daemon has given up.
        """
        from ebpfwatch.kernel.attach import attach_or_fail  # the daemon hardly ever needs it

        for link in self._links:
            if link.fd < 0 and role in ("", link.role):
                program = self._programs[link.attachment.function]
                link.fd = attach_or_fail(link.kind, program, link.attachment, link.symbol)
