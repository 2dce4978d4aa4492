"""How much of one file is in the page cache: cachestat(2), or mincore(2) before Linux 6.5."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Callable

__all__ = ["Residency"]

_CACHESTAT = 451  # the same number on all architectures (arch/*/entry/syscalls since Linux 6.5)
_PAGE = os.sysconf("SC_PAGE_SIZE")
_WINDOW = 1 << 28  # bytes of a file mapped at once for mincore: a vector of 64 KiB
_PROT_READ, _MAP_SHARED = 1, 1


class _Range(ctypes.Structure):
    _fields_ = [("offset", ctypes.c_uint64), ("length", ctypes.c_uint64)]


class _Stat(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    ]


class Residency:
    """``method`` is the system call that works here."""

    def __init__(self, cachestat: bool = True) -> None:
        """``cachestat`` False: as on an older kernel."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_int64,
        ]
        self._libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
        self.method = "cachestat" if cachestat and self._has_cachestat() else "mincore"

    def _has_cachestat(self) -> bool:
        """A wrong descriptor is EBADF where the call exists; seccomp may say EPERM."""
        return self._cachestat(-1)[0] == errno.EBADF

    def measure(self, fd: int, size: int, late: Callable[[], bool] = lambda: False) -> int | None:
        """Bytes of the file in the page cache, in whole pages; None if ``late`` said so.

        Raises ``OSError``: EPERM where this user may not ask about this file.
        """
        if self.method == "mincore":
            return self._mincore(fd, size, late)
        error, stat = self._cachestat(fd)
        if error:
            raise OSError(error, os.strerror(error))
        return int(stat.cached) * _PAGE

    def _cachestat(self, fd: int) -> tuple[int, _Stat]:
        stat = _Stat()
        whole = _Range(0, 0)  # length 0: to the end
        failed = self._libc.syscall(
            ctypes.c_long(_CACHESTAT), fd, ctypes.byref(whole), ctypes.byref(stat), 0
        )
        return (ctypes.get_errno() if failed else 0), stat

    def _mincore(self, fd: int, size: int, late: Callable[[], bool]) -> int | None:
        if not _may_ask(fd):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        pages = 0
        for offset in range(0, size, _WINDOW):
            if late():
                return None
            pages += self._window(fd, offset, min(_WINDOW, size - offset))
        return pages * _PAGE

    def _window(self, fd: int, offset: int, length: int) -> int:
        address = self._libc.mmap(None, length, _PROT_READ, _MAP_SHARED, fd, offset)
        if address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        try:
            vector = ctypes.create_string_buffer((length + _PAGE - 1) // _PAGE)
            if self._libc.mincore(address, length, vector):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            return sum(byte & 1 for byte in vector.raw)
        finally:
            self._libc.munmap(address, length)


def _may_ask(fd: int) -> bool:
    """Since Linux commit 134fca9063ad ("mm/mincore.c: make mincore() more conservative") (in v5.2)
    mincore calls every page resident unless the caller owns the file or may write it.
    """
    if os.geteuid() == 0 or os.fstat(fd).st_uid == os.geteuid():
        return True
    return os.access(f"/proc/self/fd/{fd}", os.W_OK, effective_ids=True)
