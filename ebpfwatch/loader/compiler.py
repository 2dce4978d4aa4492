"""bcc: the only module that imports it, in the loader child only."""

from __future__ import annotations

import ctypes
import os
import platform
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.loader import source
from ebpfwatch.loader.fentry import Function, load_fentry
from ebpfwatch.loader.prober import PROGRAM_TYPES
from ebpfwatch.paths import PROBES

__all__ = ["Compiler", "Module"]

_SHIM = PROBES / "shim"


class Module:
    """One compiled unit; its fds are closed with it, so keep it until they are sent."""

    def __init__(self, bpf: Any) -> None:
        self._bpf = bpf
        self._fds: list[int] = []

    def load(self, kind: str, function: str, place: Function | None = None) -> int:
        """Load one function; the program's fd. ``place``: what a fentry program will stand in."""
        if kind == "fentry":
            assert place is not None
            return self._load_fentry(function, place)
        return int(self._bpf.load_func(function.encode(), PROGRAM_TYPES[kind]).fd)

    def _load_fentry(self, function: str, place: Function) -> int:
        # bcc takes the target from the function's name and cannot be told another.
        from bcc.libbcc import lib

        code = ctypes.string_at(
            lib.bpf_function_start(self._bpf.module, function.encode()),
            lib.bpf_function_size(self._bpf.module, function.encode()),
        )
        self._fds.append(load_fentry(code, place, function))
        return self._fds[-1]

    def map(self, name: str) -> int:
        """The fd of a map."""
        return int(self._bpf[name.encode()].map_fd)

    def close(self) -> None:
        """Unload."""
        while self._fds:
            os.close(self._fds.pop())
        self._bpf.cleanup()


class Compiler:
    """Compiles our units against the shim, or against the running kernel's headers.

    ``version`` is LINUX_VERSION_CODE (before Linux 5.0 it must be the running kernel's exactly);
    ``features`` are the HAVE_* that the prober proved.  ``page`` is the size of a page, 0 = this
    machine's.
    """

    def __init__(self, version: int, features: Mapping[str, bool], page: int = 0) -> None:
        os.environ["BCC_KERNEL_SOURCE"] = str(_SHIM)
        try:
            import bcc
        except ImportError as error:
            raise EbpfwatchError(
                f"cannot compile the probes: {error}",
                "install it: apt-get install python3-bpfcc",
                Exit.UNAVAILABLE,
            ) from None
        self._bcc = bcc
        if not Path("/usr/include/linux/bpf.h").exists():
            raise EbpfwatchError(
                "no /usr/include/linux/bpf.h",
                "install it: apt-get install linux-libc-dev",
                Exit.UNAVAILABLE,
            )
        triplet = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
        self._shim_flags = [
            "-I/usr/include",
            f"-I/usr/include/{triplet}",
            f"-DLINUX_VERSION_CODE={version:#x}",
            # For the size of the ring, which bcc's macro counts in pages: the machine's own.
            f"-DPAGE_SIZE={page or os.sysconf('SC_PAGE_SIZE')}",
        ]
        self._flags = [f"-DHAVE_{name.upper()}" for name, have in features.items() if have]

    def compile(self, unit: str, flags: list[str], more: str = "") -> Module:
        """Compile a unit of probes/, and ``more`` C after it, without kernel headers; raises bcc's
        own exceptions.
        """
        return self._compile(unit, _SHIM, self._shim_flags + self._flags + flags, more)

    def compile_with_headers(self, unit: str, headers: Path) -> Module:
        """Compile a unit that includes the kernel's headers."""
        return self._compile(unit, headers, self._flags)

    def _compile(self, unit: str, tree: Path, flags: list[str], more: str = "") -> Module:
        os.environ["BCC_KERNEL_SOURCE"] = str(tree)
        text = source.unit(PROBES, unit) + more
        return Module(self._bcc.BPF(text=text.encode(), cflags=flags))
