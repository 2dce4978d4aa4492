"""The disk's account of itself in one line, for a finding: was it the disk?"""

from __future__ import annotations

from collections.abc import Mapping

from ebpfwatch.host.disks import Disk
from ebpfwatch.host.state import HostState

__all__ = ["account", "errors_of"]


def errors_of(disk: Disk, disk_errors: Mapping[str, int]) -> int:
    """Of messages by device, those of a device that this filesystem lies on."""
    names = {disk.device, *(layer.partition(" ")[0] for layer in disk.stack.layers)}
    return sum(disk_errors.get(name, 0) for name in names)


def account(state: HostState, number: str, disk_errors: Mapping[str, int] | None) -> str:
    """What is known of the device ("254:48") below an ext4; "" where it is none that is mounted.

    ``disk_errors`` are messages of disk errors in the kernel's log, by device; None where the log
    is not read.
    """
    disk = next((disk for disk in state.disks if disk.number == number), None)
    if disk is None:
        return ""
    stat = next((stat for stat in state.disk_stats if stat.number == number), None)
    noted = next((found for found in state.ext4 if found.device == disk.device), None)
    says = []
    if stat is not None and not stat.present:
        says.append("it is gone, and its filesystem is still mounted")
    elif stat is not None and stat.stalled_seconds >= 1:
        says.append(f"it has completed no request for {stat.stalled_seconds:.0f} s")
    elif stat is not None:
        says.append("it answers")
    if disk.turned_read_only:
        says.append("ext4 has made itself read-only after an error")
    if noted is not None:
        kind = f" (the last: {noted.last_error})" if noted.last_error else ""
        says.append(f"ext4 has noted {noted.errors or 'no'} errors{kind if noted.errors else ''}")
    if disk_errors is not None:
        told = errors_of(disk, disk_errors)
        says.append(f"{told or 'no'} messages of its errors in the kernel's log")
    return f"{number} ({disk.device}): {'; '.join(says)}" if says else ""
