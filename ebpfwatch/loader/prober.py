"""Attach an empty program: only that shows whether a hook exists on this kernel.

Runs in the loader child.  Nothing stays attached.
"""

from __future__ import annotations

import ctypes
import functools
import os

from ebpfwatch.catalogue.ladder import Attachment, Rung
from ebpfwatch.errors import EbpfwatchError
from ebpfwatch.kernel.attach import attach, perf_is_restricted
from ebpfwatch.kernel.libbpf import ENOTSUPP, library
from ebpfwatch.loader.bpf import EXIT, PROGRAM_TYPES, instruction, load_program
from ebpfwatch.loader.btf import Btf, BtfError, module_fd
from ebpfwatch.loader.offsets import from_btf
from ebpfwatch.loader.places import Places

__all__ = ["Prober"]

_SOCKET_FILTER = 1
_RINGBUF = 27

_CMPXCHG = (
    instruction(0x7A, dst=10, off=-8)  # *(u64 *)(fp - 8) = 0
    + instruction(0xB7)  # r0 = 0
    + instruction(0xB7, dst=1)  # r1 = 0
    + instruction(0xDB, dst=10, src=1, off=-8, imm=0xF1)  # cmpxchg(fp - 8, r0, r1)
    + EXIT
)

#: What our fentry programs need (Linux >= 5.17): the argument as a number, not a typed pointer.
_FENTRY_ARGUMENT = (
    instruction(0xB7, dst=2)  # r2 = 0
    + instruction(0xBF, dst=3, src=10)  # r3 = fp
    + instruction(0x07, dst=3, imm=-8)  # r3 -= 8
    + instruction(0x85, imm=183)  # bpf_get_func_arg(r1, r2, r3)
    + EXIT
)

_PROBE_READ_KERNEL = (
    instruction(0xBF, dst=1, src=10)  # r1 = fp
    + instruction(0x07, dst=1, imm=-8)  # r1 -= 8
    + instruction(0xB7, dst=2, imm=8)  # r2 = 8
    + instruction(0xB7, dst=3)  # r3 = NULL
    + instruction(0x85, imm=113)  # bpf_probe_read_kernel(r1, r2, r3)
    + EXIT
)

#: A struct of nothing but numbers, which is longer than an inode: counters of the kernel's memory.
_WORDS = "vm_event_state"


def _direct_read(words: int, cast: int) -> bytes:
    return (
        instruction(0xB7, dst=1)  # r1 = NULL
        + instruction(0xB7, dst=2, imm=words)
        + instruction(0x85, src=2, imm=cast)  # r0 = bpf_rdonly_cast(r1, r2)
        + instruction(0xBF, dst=6)  # r6 = r0
        + instruction(0x79, src=6, off=8)  # r0 = *(u64 *)(r6 + 8)
        + instruction(0x61, src=6, off=12)  # r0 = *(u32 *)(r6 + 12)
        + EXIT
    )


def _says(code: int) -> str:
    return "not supported by this kernel" if code == ENOTSUPP else os.strerror(code)


def _restricted(kind: str) -> str:
    """What may be behind a kprobe that cannot be attached: libbpf's last try, in a tracefs that the
    unit may not write, says nothing of it.
    """
    if kind != "kprobe" or not perf_is_restricted():
        return ""
    return " (kernel.perf_event_paranoid is above 2, which may want CAP_SYS_ADMIN here)"


class Prober:
    """Tries rungs and kernel features; ``symbols`` maps a function's name to what it is called
    here.
    """

    def __init__(self, version: int, symbols: dict[str, str], btf: Btf | None) -> None:
        self.version = version
        self.symbols = symbols
        self._btf = btf

    def why_not(self, rung: Rung) -> str:
        """An empty string if every attachment of the rung holds, else the reason in words."""
        if rung.kind == "kprobe" and not os.path.exists("/sys/bus/event_source/devices/kprobe"):
            return "this kernel has no kprobes (CONFIG_KPROBE_EVENTS)"
        for attachment in rung.attachments:
            why_not = self._why_not(rung.kind, attachment)
            if why_not and not attachment.optional:
                return why_not
        return ""

    def _why_not(self, kind: str, attachment: Attachment) -> str:
        symbol = self.places.symbol(kind, attachment)
        if not symbol:
            return "not in /proc/kallsyms"
        try:
            program = self._load(kind, symbol)
        except OSError as error:
            return f"the kernel refuses such a program: {_says(error.errno or 0)}"
        if not program:
            return "not in the kernel's BTF" if self._btf else "the kernel has no BTF of its own"
        link = attach(kind, program, attachment, symbol)
        os.close(program)
        if link < 0:
            return f"attaching: {_says(-link)}{_restricted(kind)}"
        os.close(link)
        return ""

    def _load(self, kind: str, symbol: str) -> int:
        """An empty program for this place; 0 if fentry cannot be there; raises ``OSError``."""
        if kind == "fentry":
            function = self.places.function(kind, symbol)
            if function is None:
                return 0
            number = PROGRAM_TYPES[kind]
            return load_program(
                number, _FENTRY_ARGUMENT, self.version, function=function, explain=False
            )
        return load_program(PROGRAM_TYPES[kind], EXIT, self.version, explain=False)

    @functools.cached_property
    def places(self) -> Places:
        """What is known of the functions that were asked for."""
        found: dict[str, int] = {}
        of_ext4 = []
        for symbol in self.symbols.values() if self._btf else ():
            number = self._btf.function(symbol) if self._btf else 0
            if not number and self._ext4 is not None:
                number = self._ext4.function(symbol)
                of_ext4 += [symbol] if number else []
            if number:
                found[symbol] = number
        return Places(dict(self.symbols), found, tuple(of_ext4))

    @functools.cached_property
    def _ext4(self) -> Btf | None:
        """The BTF of ext4 where that is a module (Debian, RHEL, openEuler)."""
        try:
            os.close(module_fd("ext4"))
            return Btf(module="ext4")
        except (BtfError, OSError):
            return None

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

    @functools.cached_property
    def direct_read(self) -> dict[str, int]:
        """What probes/compat.h needs to read kernel memory without a helper; {} where the kernel
        cannot: bpf_rdonly_cast (Linux >= 6.2), and a struct of numbers that reaches as far as we
        read.
        """
        if self._btf is None:
            return {}
        try:
            words, size = self._btf.struct(_WORDS)
            furthest = max(from_btf(self._btf).values())
        except (BtfError, EbpfwatchError):
            return {}
        cast = self._btf.function("bpf_rdonly_cast")
        if not cast or size < furthest + 8:
            return {}
        code = _direct_read(words, cast)
        if not self._loads(PROGRAM_TYPES["raw_tracepoint"], code):
            return {}
        return {"WORDS_TYPE": words, "RDONLY_CAST": cast}

    def features(self) -> dict[str, bool]:
        """All of them, by the name in HAVE_*."""
        return {
            "ringbuf": self.has_ringbuf(),
            "cmpxchg": self.has_cmpxchg(),
            "probe_read_kernel": self.has_probe_read_kernel(),
            "direct_read": bool(self.direct_read),
        }

    def _loads(self, kind: int, code: bytes) -> bool:
        try:
            os.close(load_program(kind, code, self.version, explain=False))
        except OSError:
            return False
        return True
