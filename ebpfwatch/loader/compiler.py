"""bcc: the only module that imports it, in the loader child only."""

from __future__ import annotations

import ctypes
import os
import platform
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.loader import source
from ebpfwatch.loader.image import Image, Map, without_fds
from ebpfwatch.paths import PROBES

__all__ = ["Compiler"]

_SHIM = PROBES / "shim"


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
        self.version = version
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

    def compile(self, unit: str, flags: list[str], more: str = "") -> Image:
        """Compile a unit of probes/, and ``more`` C after it, without kernel headers; raises bcc's
        own exceptions.
        """
        return self._compile(unit, _SHIM, self._shim_flags + self._flags + flags, more)

    def compile_with_headers(self, unit: str, headers: Path) -> Image:
        """Compile a unit that includes the kernel's headers."""
        return self._compile(unit, headers, self._flags)

    def _compile(self, unit: str, tree: Path, flags: list[str], more: str = "") -> Image:
        os.environ["BCC_KERNEL_SOURCE"] = str(tree)
        text = source.unit(PROBES, unit) + more
        compiled = self._bcc.BPF(text=text.encode(), cflags=flags)
        try:
            return _image(compiled.module)
        finally:
            compiled.cleanup()  # the maps that it has made for itself


#: What bcc's own Python does not ask of a table, in the order of ``Map`` behind the name.
_OF_TABLE = (
    "bpf_table_type_id",
    "bpf_table_key_size_id",
    "bpf_table_leaf_size_id",
    "bpf_table_max_entries_id",
    "bpf_table_flags_id",
)


def _image(module: int) -> Image:
    """What bcc has compiled, as data."""
    from bcc.libbcc import lib

    for name in ("bpf_table_name", "bpf_table_fd_id", *_OF_TABLE):
        getattr(lib, name).argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    lib.bpf_table_name.restype = ctypes.c_char_p
    maps, fds = [], {}
    for index in range(lib.bpf_num_tables(module)):
        name = lib.bpf_table_name(module, index).decode()
        maps.append(Map(name, *(int(getattr(lib, what)(module, index)) for what in _OF_TABLE)))
        fds[int(lib.bpf_table_fd_id(module, index))] = name
    programs = []
    for index in range(lib.bpf_num_functions(module)):
        function = lib.bpf_function_name(module, index)
        size = lib.bpf_function_size(module, function)
        code = ctypes.string_at(lib.bpf_function_start(module, function), size)
        programs.append(without_fds(function.decode(), code, fds))
    return Image(tuple(maps), tuple(programs))
