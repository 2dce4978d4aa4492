"""What would be left of this machine after a crash, and would it come back by itself."""

from __future__ import annotations

import dataclasses
import re

from ebpfwatch.host.fields import number, optional, optional_integer
from ebpfwatch.paths import Paths

__all__ = ["ITEMS", "SLUB_FLAGS", "CrashReadiness", "read"]

#: What has to hold for a crash to leave evidence; the label values of ebpfwatch_crash_ready.
ITEMS = (
    "panic",
    "panic_on_oops",
    "crashkernel",
    "kdump",
    "pstore",
    "ftrace_dump_on_oops",
    "slub_debug",
    "kfence",
)

#: Letter of slub_debug: its file below /sys/kernel/slab/<cache>.
SLUB_FLAGS = {"F": "sanity_checks", "Z": "red_zone", "P": "poison", "U": "store_user"}

_CACHE = "kernel/slab/ext4_inode_cache"
_CRASHKERNEL = re.compile(r"(?:^|\s)crashkernel=(\S+)")
_SLUB_DEBUG = re.compile(r"(?:^|\s)(sl[au]b_debug\S*)")


@dataclasses.dataclass(frozen=True)
class CrashReadiness:
    """None for what this kernel does not have, or does not show to this user.

    ``panic`` is the time in seconds until a reboot, 0 for never; ``crashkernel_bytes`` is what is
    reserved, ``crashkernel`` what the command line asks for; ``pstore`` is the backend's name, ""
    for none; ``slub_debug`` the letters that are on for ext4's inode cache; ``kfence_ms`` the
    sample interval, 0 for off.
    """

    panic: int | None = None
    panic_on_oops: int | None = None
    panic_on_warn: int | None = None
    crashkernel: str = ""
    crashkernel_bytes: int | None = None
    kdump_loaded: bool | None = None
    pstore: str | None = None
    ftrace_dump_on_oops: str | None = None
    slub_debug: str | None = None
    slub_debug_boot: str = ""
    kfence_ms: int | None = None

    def ready(self) -> dict[str, bool | None]:
        """By item of ``ITEMS``; None where nobody knows."""
        return {
            "panic": _is_set(self.panic),
            "panic_on_oops": _is_set(self.panic_on_oops),
            "crashkernel": _is_set(self.crashkernel_bytes),
            "kdump": self.kdump_loaded,
            "pstore": bool(self.pstore),
            "ftrace_dump_on_oops": _is_set(self.ftrace_dump_on_oops, "0"),
            "slub_debug": _is_set(self.slub_debug),
            "kfence": bool(self.kfence_ms),
        }


def _is_set(value: object, off: object = 0) -> bool | None:
    return None if value is None else bool(value) and value != off


def read(paths: Paths) -> CrashReadiness:
    """This machine's; raises ``OSError`` or ``ParseError``."""
    kernel = paths.proc / "sys/kernel"
    command_line = optional(paths.proc / "cmdline") or ""
    asked, slub = _CRASHKERNEL.search(command_line), _SLUB_DEBUG.search(command_line)
    loaded = _kexec(paths, "crash_loaded")
    return CrashReadiness(
        panic=optional_integer(kernel, "panic"),
        panic_on_oops=optional_integer(kernel, "panic_on_oops"),
        panic_on_warn=optional_integer(kernel, "panic_on_warn"),
        crashkernel=asked.group(1) if asked else "",
        crashkernel_bytes=_kexec(paths, "crash_size"),
        kdump_loaded=None if loaded is None else bool(loaded),
        pstore=_pstore(paths),
        # Since Linux 6.9 a list of trace instances may stand here: no number.
        ftrace_dump_on_oops=optional(kernel / "ftrace_dump_on_oops"),
        slub_debug=_slub_debug(paths),
        slub_debug_boot=slub.group(1) if slub else "",
        kfence_ms=_kfence(paths),
    )


def _kexec(paths: Paths, name: str) -> int | None:
    """Newer kernels keep these in a directory of their own, with links at the old place."""
    old = optional_integer(paths.sys / "kernel", f"kexec_{name}")
    return old if old is not None else optional_integer(paths.sys / "kernel/kexec", name)


def _pstore(paths: Paths) -> str | None:
    backend = optional(paths.sys / "module/pstore/parameters/backend")
    return None if backend is None else backend.strip().replace("(null)", "")


def _kfence(paths: Paths) -> int | None:
    return optional_integer(paths.sys / "module/kfence/parameters", "sample_interval")


def _slub_debug(paths: Paths) -> str | None:
    """The letters that are on; None without CONFIG_SLUB_DEBUG, or where only root may look."""
    letters = ""
    try:
        for letter, name in SLUB_FLAGS.items():
            value = optional(paths.sys / _CACHE / name)
            if value is None:
                return None
            letters += letter if number(value.strip(), f"{_CACHE}/{name}") else ""
    except PermissionError:
        return None
    return letters
