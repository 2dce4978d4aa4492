"""Attaching a loaded program to its place in the kernel; closing the link's fd detaches it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from ebpfwatch.catalogue.ladder import Attachment
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.kernel.libbpf import library

__all__ = ["attach", "attach_or_fail", "perf_is_restricted"]


def attach(kind: str, program_fd: int, attachment: Attachment, symbol: str) -> int:
    """Attach a loaded program; returns the link's fd or -errno. Closing the fd detaches."""
    ctypes.set_errno(0)
    if kind == "raw_tracepoint":
        fd = library().bpf_attach_raw_tracepoint(program_fd, symbol.encode())
    elif kind == "fentry":
        fd = library().bpf_attach_raw_tracepoint(program_fd, None)  # the program names its place
    elif kind == "tracepoint":
        category, _, name = symbol.partition(":")
        fd = library().bpf_attach_tracepoint(program_fd, category.encode(), name.encode())
    else:
        event = f"ebpfwatch_{attachment.function}_{os.getpid()}".encode()
        fd = library().bpf_attach_kprobe(
            program_fd,
            int(attachment.at_return),
            event,
            symbol.encode(),
            ctypes.c_uint64(0),
            0,
        )
    return int(fd) if fd >= 0 else -(ctypes.get_errno() or 1)


def attach_or_fail(kind: str, program_fd: int, attachment: Attachment, symbol: str) -> int:
    """The link's fd; raises ``EbpfwatchError`` (exit 71) naming program and place."""
    link = attach(kind, program_fd, attachment, symbol)
    if link < 0:
        raise EbpfwatchError(
            f"attaching {attachment.function} to {symbol}: {os.strerror(-link)}",
            "see `ebpfwatch check`",
            Exit.OSERR,
        )
    return link


def perf_is_restricted(sysctl: Path = Path("/proc/sys/kernel/perf_event_paranoid")) -> bool:
    """Whether perf_event_open() has the level that distributions add.

    Debian's patch "security,perf: Allow further restriction of perf_event_open" lets CAP_PERFMON do
    in newer kernels what only CAP_SYS_ADMIN may in those of Debian 11 and 12.
    """
    try:
        return int(sysctl.read_text()) >= 3
    except (OSError, ValueError):
        return False
