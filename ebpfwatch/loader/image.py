"""A compiled unit as data, and its loading: the same way, whether it was compiled now or kept.

What only the running kernel tells (``HOLES``: addresses, a task's number, the clock) is compiled in
as recognisable constants, one ``ld_imm64`` for each use, and put in place when the programs are
loaded.  Which map an instruction means stands beside the code, as an index, for the fds are new at
each start.

Invariant: the code in an image has no fd and no value of a running kernel in it, so two
compilations of the same source with the same flags are equal, byte by byte.
"""

from __future__ import annotations

import base64
import dataclasses
import os
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence

from ebpfwatch.kernel.libbpf import possible_cpus
from ebpfwatch.loader.bpf import PROGRAM_TYPES, Function, create_map, load_program

__all__ = ["HOLES", "Code", "Image", "Map", "Module", "defines", "scan", "without_fds"]

#: What is put in place when the programs are loaded, and what stands there until then: constants
#: that nothing else in the programs is equal to.  TICK_NS is left out where the tick is not known.
HOLES: dict[str, int] = {
    name: 0xEBF1_5EED_0000_C0DE + (index << 16)
    for index, name in enumerate(
        (
            "EXT4_INODE_CACHE",
            "EXT4_FREE_SITE",
            "OFF_VFS_INODE",
            "DEAD_STATE",
            "TICK_NS",
            "TICK_OFFSET_NS",
            "LEARNER_TGID",
        ),
        1,
    )
}

_LD_IMM64 = 0x18
_PSEUDO_MAP_FD = 1
_CALL = 0x85
_PSEUDO_KFUNC_CALL = 2
_FIRST_FUNCTION = 4096  #: no helper has such a number: it is a kernel function's type in BTF
_SIZE = 8
_RINGBUF, _PERF_EVENT_ARRAY = 27, 4  #: enum bpf_map_type


def defines(names: Sequence[str]) -> list[str]:
    """The compiler's flags that leave a hole wherever one of these names stands.

    The assembler's word keeps the compiler from calculating with the constant.
    """
    return [
        f'-D{name}=({{ unsigned long long v; asm("%0 = {HOLES[name]:#x} ll" : "=r"(v)); v; }})'
        for name in names
    ]


@dataclasses.dataclass(frozen=True)
class Map:
    """A map as it is made; sizes in bytes."""

    name: str
    kind: int
    key: int
    value: int
    entries: int
    flags: int


@dataclasses.dataclass(frozen=True)
class Code:
    """One program: its instructions (base64), and which of them mean a map or are a hole."""

    name: str
    instructions: str
    maps: dict[str, tuple[int, ...]]
    holes: dict[str, tuple[int, ...]]

    def filled(self, maps: Mapping[str, int], values: Mapping[str, int]) -> bytes:
        """The instructions with these fds and values; raises ``KeyError`` if one is missing."""
        code = bytearray(base64.b64decode(self.instructions))
        for name, places in self.maps.items():
            for at in places:
                struct.pack_into("<i", code, at * _SIZE + 4, maps[name])
        for name, places in self.holes.items():
            for at in places:
                value = values[name] % 2**64
                struct.pack_into("<I", code, at * _SIZE + 4, value & 0xFFFFFFFF)
                struct.pack_into("<I", code, at * _SIZE + 12, value >> 32)
        return bytes(code)


@dataclasses.dataclass(frozen=True)
class Image:
    """All maps and programs of one unit."""

    maps: tuple[Map, ...] = ()
    programs: tuple[Code, ...] = ()


def scan(code: bytes) -> Iterator[tuple[int, int, int]]:
    """Of each 64-bit constant: its instruction's number, its source register (1: the fd of a map)
    and its value.
    """
    at = 0
    while at * _SIZE < len(code):
        wide = code[at * _SIZE] == _LD_IMM64
        if wide:
            low, high = (struct.unpack_from("<I", code, at * _SIZE + by)[0] for by in (4, 12))
            yield at, code[at * _SIZE + 1] >> 4, low | high << 32
        at += 2 if wide else 1


def _kernel_calls(code: bytes) -> Iterator[int]:
    """Where a kernel function is called: to the compiler it is a helper of that number."""
    at = 0
    while at * _SIZE < len(code):
        opcode, registers, number = struct.unpack_from("<BBxxi", code, at * _SIZE)
        if opcode == _CALL and not registers >> 4 and number >= _FIRST_FUNCTION:
            yield at
        at += 2 if opcode == _LD_IMM64 else 1


def without_fds(name: str, code: bytes, fds: Mapping[int, str]) -> Code:
    """A program as it was compiled; ``fds`` says which map each fd in it means.

    Raises ``ValueError`` where the code does not hold together.
    """
    maps: dict[str, list[int]] = {}
    holes: dict[str, list[int]] = {}
    by_value = {value: name for name, value in HOLES.items()}
    bare = bytearray(code)
    for at in _kernel_calls(code):
        bare[at * _SIZE + 1] |= _PSEUDO_KFUNC_CALL << 4
    for at, source, value in scan(code):
        if source == _PSEUDO_MAP_FD:
            if value not in fds:
                raise ValueError(f"{name} uses a map that is not of its unit")
            maps.setdefault(fds[value], []).append(at)
        elif value in by_value:
            holes.setdefault(by_value[value], []).append(at)
        else:
            continue
        for by in (4, 12):
            struct.pack_into("<I", bare, at * _SIZE + by, 0)
    return Code(
        name,
        base64.b64encode(bare).decode(),
        {name: tuple(places) for name, places in maps.items()},
        {name: tuple(places) for name, places in holes.items()},
    )


class Module:
    """An image in the kernel: its maps at once, a program when it is asked for.

    Its fds are closed with it, so keep it until they are sent.
    """

    def __init__(self, image: Image, version: int, values: Mapping[str, int]) -> None:
        self._codes = {code.name: code for code in image.programs}
        self._version = version
        self._values = values
        self._maps: dict[str, int] = {}
        self._programs: dict[str, int] = {}
        try:
            for shape in image.maps:
                self._maps[shape.name] = _create(shape)
        except OSError:
            self.close()
            raise

    def load(self, kind: str, function: str, place: Function | None = None) -> int:
        """The fd of one program; ``place``: what a fentry program will stand in.  Raises
        ``OSError`` with the verifier's reason.
        """
        if function not in self._programs:
            code = self._codes[function].filled(self._maps, self._values)
            number = PROGRAM_TYPES[kind]
            self._programs[function] = load_program(number, code, self._version, function, place)
        return self._programs[function]

    def load_together(self, wanted: Sequence[tuple[str, str, Function | None]]) -> None:
        """Load these on two CPUs: the verifier takes a tenth of a second for each of the two
        largest.  What is refused is left for ``load``, which says why.
        """
        size = {name: len(code.instructions) for name, code in self._codes.items()}
        queue = sorted(wanted, key=lambda one: size[one[1]])

        def work() -> None:
            while True:
                try:
                    kind, function, place = queue.pop()
                    self.load(kind, function, place)
                except IndexError:
                    return
                except OSError:
                    continue

        other = threading.Thread(target=work)
        other.start()
        work()
        other.join()

    def map(self, name: str) -> int:
        """The fd of a map."""
        return self._maps[name]

    def close(self) -> None:
        """Unload."""
        for fds in (self._programs, self._maps):
            while fds:
                os.close(fds.popitem()[1])


def _create(shape: Map) -> int:
    # One entry a CPU, of this machine; the others count what they hold.
    entries = possible_cpus() if shape.kind == _PERF_EVENT_ARRAY else shape.entries
    key, value = (0, 0) if shape.kind == _RINGBUF else (shape.key, shape.value)
    return create_map(shape.kind, key, value, entries, shape.flags, shape.name)
