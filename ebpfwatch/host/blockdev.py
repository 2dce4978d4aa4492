"""What is behind a block device: dm, md and loop stacks followed down to the drivers of the disks.

The question behind it (docs/case.md's crash): is the disk virtio or vfio?  A disk that a hypervisor
emulates has a virtio driver or its vendor's PCI numbers; any other PCI device in a guest was passed
through (vfio), and writes into this machine's memory by itself.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from ebpfwatch.host.fields import optional
from ebpfwatch.host.mounts import Mount
from ebpfwatch.paths import Paths

__all__ = ["Stack", "behind", "is_guest"]

_DEEPEST = 16  #: a stack deeper than that is a loop
_WIDEST = 64  #: disks of one array that are looked at

#: PCI vendors of hypervisors (device or subsystem): Red Hat/QEMU, VMware, Microsoft, VirtualBox,
#: Xen, Parallels, Amazon, Google.
_TEST_OBJECT = {
    "0x1af4",
    "0x1b36",
    "0x15ad",
    "0x1414",
    "0x80ee",
    "0x5853",
    "0x1ab8",
    "0x1d0f",
    "0x1ae0",
}

#: Buses whose drivers sit between the disk and what moves its data.
_UPPER_BUSES = {"scsi", "block", "nvme"}


@dataclasses.dataclass(frozen=True)
class Stack:
    """``layers`` from the top ("dm-0", "loop1 (/a/file)", "vda2", "vda"); the ``drivers`` at the
    bottom; ``passed`` are the PCI addresses of devices passed through to this guest.
    """

    layers: tuple[str, ...] = ()
    drivers: tuple[str, ...] = ()
    passed: tuple[str, ...] = ()


def behind(paths: Paths, major: int, minor: int, mounted: Mapping[str, Mount]) -> Stack:
    """The stack below a device; ``mounted``, by mount point, says what a loop's file lies on.
    What cannot be found is left out.
    """
    walk = _Walk(paths, mounted)
    walk.number(f"{major}:{minor}", 0)
    return Stack(
        *(tuple(dict.fromkeys(found)) for found in (walk.layers, walk.drivers, walk.passed))
    )


def is_guest(paths: Paths) -> bool:
    """Whether this is a virtual machine: it has virtio devices, or the CPU says so (x86)."""
    virtio = paths.sys / "bus/virtio/devices"
    if virtio.is_dir() and any(virtio.iterdir()):
        return True
    cpu = optional(paths.proc / "cpuinfo") or ""
    return any(line.startswith("flags") and " hypervisor" in line for line in cpu.split("\n"))


class _Walk:
    def __init__(self, paths: Paths, mounted: Mapping[str, Mount]) -> None:
        self._sys = paths.sys
        self._guest = is_guest(paths)
        self._mounted = mounted
        self.layers: list[str] = []
        self.drivers: list[str] = []
        self.passed: list[str] = []

    def number(self, device: str, depth: int) -> bool:
        """Walk down from "major:minor"; False if there is no such device."""
        link = self._sys / "dev/block" / device
        if link.exists():
            self._device(link.resolve(), depth)
            return True
        return False

    def _device(self, directory: Path, depth: int) -> None:
        if depth > _DEEPEST or len(self.layers) > _WIDEST:
            return
        name = directory.name
        self.layers.append(name)
        below = sorted((directory / "slaves").glob("*"))
        file = optional(directory / "loop/backing_file")
        if (directory / "partition").exists():
            self._device(directory.parent, depth + 1)
        elif below:
            for slave in below:
                self._device(slave.resolve(), depth + 1)
        elif file:
            self.layers[-1] = f"{name} ({file})"
            self._file(file, depth + 1)
        else:
            self._driver(directory)

    def _file(self, file: str, depth: int) -> None:
        """Down to the device of the filesystem with the longest mount point above the file."""
        above = [point for point in self._mounted if _is_below(file, point)]
        if above:
            mount = self._mounted[max(above, key=len)]
            if not self.number(f"{mount.major}:{mount.minor}", depth):
                self.drivers.append(mount.filesystem)  # tmpfs, nfs: no device at all

    def _driver(self, disk: Path) -> None:
        places = [disk / "device", *sorted((disk / "device").glob("nvme*"))]
        for place in places:
            if self._climb(place.resolve()):
                return
        self.drivers.append(disk.name.rstrip("0123456789"))  # zram, nbd, drbd: no bus below them

    def _climb(self, place: Path) -> bool:
        """The first driver that is not of an upper bus, and the PCI device it ends at."""
        driver = ""
        for above in (place, *place.parents):
            if above == self._sys.resolve():
                break
            bus, name = _link(above / "subsystem"), _link(above / "driver")
            if name and bus not in _UPPER_BUSES:
                driver = driver or name
            if name and bus == "pci":
                self._judge(above)
                break
        if driver:
            self.drivers.append(driver)
        return bool(driver)

    def _judge(self, pci: Path) -> None:
        vendors = {optional(pci / name) for name in ("vendor", "subsystem_vendor")}
        if self._guest and not vendors & _TEST_OBJECT:
            self.passed.append(pci.name)


def _is_below(file: str, point: str) -> bool:
    return point == "/" or file == point or file.startswith(point + "/")


def _link(path: Path) -> str:
    """The last name of a link's target, whether that exists or not; "" where there is no link."""
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return ""
