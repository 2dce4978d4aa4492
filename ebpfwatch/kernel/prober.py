"""Attach an empty program and see: the only honest answer to "does this hook exist here?".

Runs in the loader child.  Nothing stays attached.
"""

from __future__ import annotations

import ctypes
import os
import struct

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.kernel.ladder import Attachment, Rung
from ebpfwatch.kernel.libbpf import library

__all__ = ["PROGRAM_TYPES", "Prober", "attach", "attach_or_fail"]

PROGRAM_TYPES = {"kprobe": 2, "tracepoint": 5, "raw_tracepoint": 17}

_SOCKET_FILTER = 1
_RINGBUF = 27


def _instruction(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("<BBhi", code, src << 4 | dst, off, imm)


_EXIT = _instruction(0xB7) + _instruction(0x95)  # r0 = 0; exit
_CMPXCHG = (
    _instruction(0x7A, dst=10, off=-8)  # *(u64 *)(fp - 8) = 0
    + _instruction(0xB7)  # r0 = 0
    + _instruction(0xB7, dst=1)  # r1 = 0
    + _instruction(0xDB, dst=10, src=1, off=-8, imm=0xF1)  # cmpxchg(fp - 8, r0, r1)
    + _EXIT
)

_PROBE_READ_KERNEL = (
    _instruction(0xBF, dst=1, src=10)  # r1 = fp
    + _instruction(0x07, dst=1, imm=-8)  # r1 -= 8
    + _instruction(0xB7, dst=2, imm=8)  # r2 = 8
    + _instruction(0xB7, dst=3)  # r3 = NULL
    + _instruction(0x85, imm=113)  # bpf_probe_read_kernel(r1, r2, r3)
    + _EXIT
)


def _load(kind: int, code: bytes, version: int, name: bytes = b"probe") -> int:
    """An fd, or -errno."""
    instructions = ctypes.create_string_buffer(code, len(code))
    ctypes.set_errno(0)
    fd = library().bcc_prog_load(
        kind,
        ctypes.c_char_p(name),
        instructions,
        len(code),
        ctypes.c_char_p(b"GPL"),
        ctypes.c_uint32(version),
        0,
        None,
        0,
    )
    return int(fd) if fd >= 0 else -(ctypes.get_errno() or 1)


def attach(kind: str, program_fd: int, attachment: Attachment, symbol: str) -> int:
    """Attach a loaded program; returns the link's fd or -errno. Closing the fd detaches."""
    ctypes.set_errno(0)
    if kind == "raw_tracepoint":
        fd = library().bpf_attach_raw_tracepoint(program_fd, symbol.encode())
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


class Prober:
    """Tries rungs and kernel features; ``symbols`` maps a function's name to what it is called
    here.
    """

    def __init__(self, version: int, symbols: dict[str, str]) -> None:
        self.version = version
        self.symbols = symbols

    def why_not(self, rung: Rung) -> str:
        """An empty string if every attachment of the rung holds, else the reason in words."""
        if rung.kind == "kprobe" and not os.path.exists("/sys/bus/event_source/devices/kprobe"):
            return "this kernel has no kprobes (CONFIG_KPROBE_EVENTS)"
        program = _load(PROGRAM_TYPES[rung.kind], _EXIT, self.version)
        if program < 0:
            return f"a {rung.kind} program is refused: {os.strerror(-program)}"
        try:
            for attachment in rung.attachments:
                symbol = self.symbol(rung.kind, attachment)
                if not symbol:
                    return f"no function {attachment.target} in /proc/kallsyms"
                link = attach(rung.kind, program, attachment, symbol)
                if link < 0 and attachment.optional:
                    continue
                if link < 0:
                    return f"attaching to {symbol}: {os.strerror(-link)}"
                os.close(link)
        finally:
            os.close(program)
        return ""

    def symbol(self, kind: str, attachment: Attachment) -> str:
        """What to attach to; "" if there is nothing of that name."""
        if kind != "kprobe":
            return attachment.target
        return self.symbols.get(attachment.target, "")

    def has_ringbuf(self) -> bool:
        """Whether the kernel has BPF ring buffers (Linux >= 5.8)."""
        fd = library().bcc_create_map(
            _RINGBUF, ctypes.c_char_p(b"probe"), 0, 0, os.sysconf("SC_PAGE_SIZE"), 0
        )
        if fd >= 0:
            os.close(fd)
        return bool(fd >= 0)

    def has_cmpxchg(self) -> bool:
        """Whether BPF has atomic compare-and-exchange (Linux >= 5.12)."""
        return self._loads(_SOCKET_FILTER, _CMPXCHG)

    def has_probe_read_kernel(self) -> bool:
        """Whether there is a helper of its own for kernel memory (Linux >= 5.5)."""
        return self._loads(PROGRAM_TYPES["raw_tracepoint"], _PROBE_READ_KERNEL)

    def features(self) -> dict[str, bool]:
        """All of them, by the name in HAVE_*."""
        return {
            "ringbuf": self.has_ringbuf(),
            "cmpxchg": self.has_cmpxchg(),
            "probe_read_kernel": self.has_probe_read_kernel(),
        }

    def _loads(self, kind: int, code: bytes) -> bool:
        fd = _load(kind, code, self.version)
        if fd >= 0:
            os.close(fd)
        return fd >= 0
