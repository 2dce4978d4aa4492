"""The survey: candidates in, the largest out, within limits of time, memory and harm."""

from __future__ import annotations

import dataclasses
import heapq
import os
import stat
import time
from typing import Callable

from ebpfwatch.host import mounts, vfs, zoneinfo
from ebpfwatch.host.mounts import Mount
from ebpfwatch.pagecache.candidates import SLOW, NamedFiles, walk, walkable
from ebpfwatch.pagecache.residency import Residency
from ebpfwatch.paths import Paths

__all__ = ["Limits", "Result", "Survey"]

_LOOK_EVERY = 256  # files between two looks at the machine's own state


@dataclasses.dataclass(frozen=True)
class Limits:
    """``inodes``: how many the walk may add to the kernel's cache; ``top``: files to keep."""

    seconds: float = 10.0
    inodes: int = 20000
    top: int = 50


@dataclasses.dataclass
class Result:
    """Bytes by file (largest first) and by mount; and what was not looked at, and why."""

    method: str
    files: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    mounts: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    asked: int = 0
    holding: int = 0
    bytes: int = 0
    seconds: float = 0.0
    refused: int = 0
    unasked: list[str] = dataclasses.field(default_factory=list)


class Survey:
    """One run; ``progress`` is called now and then with a line about where it is."""

    def __init__(
        self,
        paths: Paths,
        limits: Limits,
        residency: Residency,
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.result = Result(residency.method)
        self._paths = paths
        self._limits = limits
        self._residency = residency
        self._progress = progress
        self._began = time.monotonic()
        self._seen: set[tuple[int, int]] = set()
        self._heap: list[tuple[int, str]] = []
        self._devices: dict[int, Mount] = {}
        self._slow: tuple[str, ...] = ()
        self._inodes = 0
        self._stop = ""
        self._walking = False  #: a walk meets each file once, unless it has several names

    def run(self, roots: list[str]) -> Result:
        """Files of processes first, then the mounts, or only ``roots`` if there are any.

        Raises ``OSError``/``ParseError`` if the mounts cannot be read.
        """
        every = mounts.all_mounts(self._paths)
        walked, left = walkable(every)
        self._devices = {os.makedev(m.major, m.minor): m for m in mounts.one_a_device(every)}
        self._slow = tuple(f"{m.path}/" for m in every if m.filesystem.startswith(SLOW))
        if not roots:
            self._named()
            self._devices_themselves(walked)
            if left:
                names = ", ".join(f"{m.path} ({m.filesystem})" for m in left[:5])
                self.result.unasked.append(f"filesystems that may hang: {names}")
        self._walk(roots or [mount.path for mount in walked])
        self.result.files = sorted(self._heap, reverse=True)
        self.result.seconds = time.monotonic() - self._began
        return self.result

    def _named(self) -> None:
        named = NamedFiles(self._paths)
        for path, name in named:
            if self._late():
                break
            if not name.startswith(self._slow or ("\0",)):
                self._ask(path, name, f"{named.processes} processes")
        if named.hidden:
            self.result.unasked.append(
                f"what {named.hidden} other users' process{'es' * (named.hidden > 1)} had open:"
                " only root may look into them"
            )

    def _devices_themselves(self, walked: list[Mount]) -> None:
        """A disk's own cache holds the filesystem's metadata (Buffers in /proc/meminfo)."""
        for mount in walked:
            device = f"/dev/block/{mount.major}:{mount.minor}"
            if mount.major and os.path.exists(device):
                real = os.path.realpath(device)
                self._ask(device, f"{real} (metadata of {mount.path})", "disks", block=True)

    def _walk(self, roots: list[str]) -> None:
        self._inodes = self._inodes_now()
        self._walking = True
        for number, root in enumerate(roots):
            for count, entry in enumerate(walk(root, self._refused)):
                if self._late() or (count % _LOOK_EVERY == 0 and self._harmful()):
                    break
                self._ask(entry.path, entry.path, root)
            if self._stop:
                rest = ", ".join(roots[number : number + 5])
                self.result.unasked.append(f"the rest of {rest}: {self._stop}")
                return

    def _late(self) -> bool:
        if not self._stop and time.monotonic() - self._began > self._limits.seconds:
            self._stop = f"{self._limits.seconds:g} s are over (--seconds)"
        return bool(self._stop)

    def _harmful(self) -> bool:
        """Whether looking on would push a machine that is short of memory."""
        if self._inodes_now() - self._inodes > self._limits.inodes:
            self._stop = (
                f"the walk itself has put {self._limits.inodes} inodes into memory (--inodes)"
            )
        elif any(zone.level < 2 for zone in self._zones()):
            self._stop = "free memory of a zone is below its low watermark"
        return bool(self._stop)

    def _inodes_now(self) -> int:
        try:
            return vfs.read(self._paths).inodes
        except (OSError, ValueError):
            return 0

    def _zones(self) -> tuple[zoneinfo.Zone, ...]:
        try:
            return zoneinfo.read(self._paths)
        except (OSError, ValueError):
            return ()

    def _ask(self, path: str, name: str, where: str, block: bool = False) -> None:
        """One file; it may vanish, be another's, or be no file any more."""
        result = self.result
        try:
            found = os.stat(path)
            wanted = stat.S_ISBLK(found.st_mode) if block else stat.S_ISREG(found.st_mode)
            key = found.st_dev, found.st_rdev or found.st_ino
            if not wanted or (not block and not found.st_size) or key in self._seen:
                return
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
            try:
                cached = self._residency.measure(fd, found.st_size, self._late)
            finally:
                os.close(fd)
        except PermissionError:
            self._refused()
            return
        except OSError:
            return
        result.asked += 1
        if cached or found.st_nlink > 1 or not self._walking:
            self._seen.add(key)
        if result.asked % 512 == 0:
            self._progress(f"{result.asked} files, {result.bytes >> 20} MiB found; now: {where}")
        if cached:
            self._keep(cached, name, found.st_dev)

    def _refused(self) -> None:
        self.result.refused += 1

    def _keep(self, cached: int, name: str, device: int) -> None:
        result = self.result
        result.holding += 1
        result.bytes += cached
        mount = self._devices.get(device)
        where = (
            f"{mount.path} ({mount.filesystem})"
            if mount
            else "files on no mount that is visible here"
        )
        count, total = result.mounts.get(where, (0, 0))
        result.mounts[where] = count + 1, total + cached
        item = (cached, name)
        if len(self._heap) < self._limits.top:
            heapq.heappush(self._heap, item)
        else:
            heapq.heappushpop(self._heap, item)
