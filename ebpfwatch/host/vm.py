"""/proc/sys/vm: the settings that decide when reclaim runs and what it takes."""

from __future__ import annotations

import dataclasses

from ebpfwatch.host.fields import optional_integer
from ebpfwatch.paths import Paths

__all__ = ["VmSettings", "read"]


@dataclasses.dataclass(frozen=True)
class VmSettings:
    """The sysctls of the same names; None where this kernel has no such setting."""

    overcommit_memory: int | None = None
    overcommit_ratio: int | None = None
    overcommit_kbytes: int | None = None
    min_free_kbytes: int | None = None
    watermark_scale_factor: int | None = None
    swappiness: int | None = None
    vfs_cache_pressure: int | None = None
    dirty_background_ratio: int | None = None
    dirty_background_bytes: int | None = None
    dirty_ratio: int | None = None
    dirty_bytes: int | None = None
    dirty_writeback_centisecs: int | None = None
    dirty_expire_centisecs: int | None = None
    nr_hugepages: int | None = None
    panic_on_oom: int | None = None


def read(paths: Paths) -> VmSettings:
    """This machine's; raises ``OSError`` or ``ParseError``."""
    root = paths.proc / "sys/vm"
    names = [field.name for field in dataclasses.fields(VmSettings)]
    return VmSettings(**{name: optional_integer(root, name) for name in names})
