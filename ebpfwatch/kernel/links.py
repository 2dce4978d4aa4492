"""The links: where each program is attached. One lives in its fd, so closing that detaches it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

from ebpfwatch.kernel.protocol import Place

__all__ = ["Links"]


@dataclasses.dataclass
class _Link:
    place: Place
    fd: int  #: -1 = detached


class Links:
    """All links of a session, by role.

    ``fds`` are in the order of ``places``; fewer fds: the rest is not attached.
    """

    def __init__(
        self, places: Sequence[Place], fds: Sequence[int], programs: Mapping[str, int]
    ) -> None:
        self.places = tuple(places)
        self._programs = programs
        padded = [*fds, *[-1] * (len(places) - len(fds))]
        self._links = [_Link(place, fd) for place, fd in zip(places, padded)]

    def attached(self, role: str) -> bool:
        """Whether the role has links, and all of them hold."""
        fds = [link.fd for link in self._links if link.place.role == role]
        return bool(fds) and all(fd >= 0 for fd in fds)

    def functions(self, role: str) -> tuple[str, ...]:
        """The programs of a role, by name."""
        return tuple(place.attachment.function for place in self.places if place.role == role)

    @property
    def order(self) -> tuple[str, ...]:
        """The programs in the order in which they are attached."""
        return tuple(place.attachment.function for place in self.places)

    def detach(self, role: str = "") -> None:
        """Close the links of a role, or of all; what begins something before what ends it."""
        for link in reversed(self._links):
            if link.fd >= 0 and role in ("", link.place.role):
                os.close(link.fd)
                link.fd = -1

    def attach(self, role: str = "") -> None:
        """Attach what is not attached, in the ladder's order; raises ``EbpfwatchError`` where the
        kernel wants a capability for it that the daemon has given up.
        """
        from ebpfwatch.kernel.attach import attach_or_fail  # the daemon hardly ever needs it

        for link in self._links:
            place = link.place
            if link.fd < 0 and role in ("", place.role):
                program = self._programs[place.attachment.function]
                link.fd = attach_or_fail(place.kind, program, place.attachment, place.symbol)
