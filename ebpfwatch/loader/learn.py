"""What only a living kernel tells, learned from one nameless file of our own (probes/learn.c)."""

from __future__ import annotations

import dataclasses
import itertools
import os
import struct
import time
from collections.abc import Sequence

from ebpfwatch.catalogue.ladder import Rung
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.kernel.attach import attach_or_fail
from ebpfwatch.kernel.libbpf import map_lookup
from ebpfwatch.kernel.protocol import Learned
from ebpfwatch.loader.compiler import Compiler
from ebpfwatch.loader.prober import Prober

__all__ = ["learn"]

_SECONDS = 5.0
_LOOKS = 100
_FIELDS = tuple(field.name for field in dataclasses.fields(Learned))


def learn(
    compiler: Compiler,
    prober: Prober,
    rungs: Sequence[Rung],
    flags: list[str],
    mounts: Sequence[str],
) -> Learned:
    """What the kernel tells; ``rungs`` hook the eviction and the free.

    Raises ``EbpfwatchError`` when no mount lets us create a file, or when it is never freed.
    """
    module = compiler.compile("learn.c", flags)
    links = []
    try:
        for rung in rungs:
            attachment = rung.attachments[0]
            symbol = prober.symbol(rung.kind, attachment)
            program = module.load(rung.kind, attachment.function)
            links.append(attach_or_fail(rung.kind, program, attachment, symbol))
        return _wait(module.map("learned"), mounts)
    finally:
        for link in links:
            os.close(link)
        module.close()


def _wait(fd: int, mounts: Sequence[str]) -> Learned:
    layout = f"{len(_FIELDS)}Q"
    deadline = time.monotonic() + _SECONDS
    # One after the other, not all at once: one that is frozen keeps whoever writes there.
    for mount in itertools.cycle(mounts or ("",)):
        if time.monotonic() > deadline:
            break
        for _ in range(_LOOKS if _die_young(mount) else 1):
            values = struct.unpack(layout, map_lookup(fd, 0, struct.calcsize(layout)))
            if values[0]:
                return Learned(*values)
            time.sleep(0.002)
    raise EbpfwatchError(
        f"no ext4 inode of ours was freed within {_SECONDS:.0f} s, so ext4's cache is not known",
        "mount an ext4 filesystem read-write",
        Exit.UNAVAILABLE,
    )


def _die_young(directory: str) -> bool:
    """Allocate an inode that has no name and let it die at once; False where that cannot be."""
    try:
        os.close(os.open(directory, os.O_TMPFILE | os.O_WRONLY, 0o600))
    except OSError:
        return False  # read-only or full: another mount will do
    return True
