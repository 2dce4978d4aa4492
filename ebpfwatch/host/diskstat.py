"""What each ext4's block device says of its own work: /sys/dev/block/MAJOR:MINOR/stat.

The fields are those of Documentation/block/stat.rst.  A device that went away while it is mounted
has no such directory any more; requests that are in flight while none is completed are stuck.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from typing import Callable

from ebpfwatch.host.disks import Disk
from ebpfwatch.host.fields import numbers, present
from ebpfwatch.paths import Paths

__all__ = ["DiskStat", "DiskStatReader"]


@dataclasses.dataclass(frozen=True)
class DiskStat:
    """Of one device, ``number`` as in "254:48".

    ``requests`` and ``request_seconds`` are sums since the device is there.  ``latency_seconds`` is
    the mean of the requests since the look before, None where there were none.
    ``stalled_seconds``: for how long requests have been in flight and none was completed.
    """

    number: str
    present: bool
    requests: int = 0
    request_seconds: float = 0.0
    in_flight: int = 0
    latency_seconds: float | None = None
    stalled_seconds: float = 0.0


class DiskStatReader:
    """Remembers the look before this one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._before: dict[str, DiskStat] = {}
        self._moved: dict[str, float] = {}  # when requests were last completed, or none waited

    def read(self, paths: Paths, disks: Iterable[Disk]) -> tuple[DiskStat, ...]:
        """In the order of the disks; raises ``OSError`` or ``ParseError``."""
        found = {disk.number: self._read(paths, disk.number) for disk in disks if disk.number}
        self._before = found
        self._moved = {number: at for number, at in self._moved.items() if number in found}
        return tuple(found.values())

    def _read(self, paths: Paths, number: str) -> DiskStat:
        directory = paths.sys / "dev/block" / number
        text = present(directory / "stat")
        if text is None:
            return DiskStat(number, directory.exists())
        values = numbers(text, 11, f"/sys/dev/block/{number}/stat")
        # Reads and writes, and what newer kernels add: discards (v4.18), flushes (v5.5).
        requests = values[0] + values[4] + sum(values[11:12]) + sum(values[15:16])
        milliseconds = values[3] + values[7] + sum(values[14:15]) + sum(values[16:17])
        now, before = self._clock(), self._before.get(number)
        done = requests - before.requests if before else 0
        if not values[8] or done or before is None:
            self._moved[number] = now
        latency = None
        if before is not None and done > 0:
            latency = max(0.0, milliseconds / 1000 - before.request_seconds) / done
        return DiskStat(
            number,
            True,
            requests,
            milliseconds / 1000,
            values[8],
            latency,
            now - self._moved.get(number, now),
        )
