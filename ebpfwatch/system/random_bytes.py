"""Random bytes without waiting for them."""

from __future__ import annotations

__all__ = ["random_bytes"]


def random_bytes(count: int) -> bytes:
    """So many bytes of the kernel's random numbers; raises ``OSError`` where /dev is not there.

    Not by os.urandom(): it asks getrandom(), which before Linux 5.6 waits for ever on a machine
    without a source of entropy, as many VMs are (random(7)).  The device never waits.
    """
    with open("/dev/urandom", "rb", buffering=0) as device:
        return device.read(count)
