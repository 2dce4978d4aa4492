"""Just enough of x86-64 to read the ``Code:`` line of an oops: what touches memory, and how long
the rest is.

Encodings: Intel SDM volume 2, chapter 2 and appendix A.  Text is as objdump writes it (AT&T), and
the tests hold each opcode to objdump's.  What is not known is None or has no text, never a guess:
vector instructions, two addresses at once, segments other than %gs and %fs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

__all__ = [
    "Instruction",
    "Memory",
    "address",
    "canonical",
    "code",
    "decode",
    "leading",
    "loader_of",
    "value",
]

_MASK = 2**64 - 1

_QUADS = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
_OLD_BYTES = "al cl dl bl ah ch dh bh".split()
_BYTES = "al cl dl bl spl bpl sil dil".split()
_CONDITIONS = "o no b ae e ne be a s ns p np l ge le g".split()
_ARITHMETIC = "add or adc sbb and sub xor cmp".split()
_SUFFIX = {1: "b", 2: "w", 4: "l", 8: "q"}


@dataclasses.dataclass(frozen=True)
class Memory:
    """``segment:offset(base,index,scale)``; registers by their 64-bit name, "" for none."""

    base: str
    index: str
    scale: int
    offset: int
    segment: str = ""

    def __str__(self) -> str:
        if not self.base and not self.index:
            inside, offset = "", self.offset & _MASK
        else:
            base = f"%{self.base}" if self.base else ""
            index = f",%{self.index},{self.scale}" if self.index else ""
            inside, offset = f"({base}{index})", self.offset
        shown = f"{offset:#x}" if offset or not inside or not self.base else ""
        segment = f"%{self.segment}:" if self.segment else ""
        return f"{segment}{shown}{inside}"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """``text`` is "" where only the length is known.

    ``access`` is "reads", "writes", "reads and writes" or "" of ``memory``.  ``register`` is the
    other operand.  ``sets`` is the register it leaves another value in, "" for none, None where
    that is not known.
    """

    length: int
    text: str = ""
    memory: Memory | None = None
    access: str = ""
    register: str = ""
    sets: str | None = None

    @property
    def compares(self) -> bool:
        """Whether it compares a register with memory."""
        return self.text.startswith("cmp ") and bool(self.register)


def code(line: str) -> tuple[bytes, int]:
    """The bytes of a ``Code:`` line and the index of the one in angle brackets, -1 without one.

    Anything else on the line, as "Unable to access opcode bytes", is no code.
    """
    found, marked = bytearray(), -1
    for word in line.split():
        match = _BYTE.fullmatch(word)
        if match is None:
            return b"", -1
        if match[1]:
            marked = len(found)
        found.append(int(match[2], 16))
    return bytes(found), marked


_BYTE = re.compile(r"([<(])?([0-9a-f]{2})[>)]?")


class _Reader:
    """Bytes from the front; ``IndexError`` at their end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def byte(self) -> int:
        """The next one."""
        self.at += 1
        return self._data[self.at - 1]

    def number(self, size: int) -> int:
        """A signed number of so many bytes."""
        part = self._data[self.at : self.at + size]
        if len(part) < size:
            raise IndexError
        self.at += size
        return int.from_bytes(part, "little", signed=True)


@dataclasses.dataclass
class _Prefixes:
    """What stands before the opcode."""

    rex: int = 0
    wide: bool = False  # 66
    lock: bool = False
    repeat: int = 0  # f2 or f3
    segment: str = ""
    odd: bool = False  # one that the text would have to show, and does not

    def size(self, byte: bool) -> int:
        """Of the operand."""
        if byte:
            return 1
        return 8 if self.rex & 8 else 2 if self.wide else 4

    def immediate(self) -> int:
        """Bytes of a number in the code, where it may be four."""
        return 2 if self.wide and not self.rex & 8 else 4

    def register(self, number: int, size: int) -> str:
        """A register's name at a size."""
        if size == 8:
            return _QUADS[number]
        if number >= 8:
            return _QUADS[number] + {1: "b", 2: "w", 4: "d"}[size]
        if size == 1:
            return (_BYTES if self.rex else _OLD_BYTES)[number]
        return ("e" if size == 4 else "") + _QUADS[number][1:]


@dataclasses.dataclass(frozen=True)
class _Operand:
    """ModRM: ``reg`` with REX.R; a memory operand, or a register with REX.B."""

    reg: int
    memory: Memory | None
    rm: int = 0


def decode(data: bytes) -> Instruction | None:
    """The first instruction; None if even its length is not known, or if it is cut off."""
    reader = _Reader(data[:15])
    try:
        prefixes, opcode = _prefixes(reader)
        if prefixes is None:
            return None
        found = _long(reader, prefixes) if opcode == 0x0F else _short(reader, prefixes, opcode)
    except IndexError:
        return None
    if found is None:
        return None
    length = reader.at
    # Only these two need the prefixes that the others must not have.
    if prefixes.odd or prefixes.repeat and not found.text.startswith("rep "):
        return Instruction(length, sets=found.sets)
    if prefixes.lock and found.text:
        found = dataclasses.replace(found, text=f"lock {found.text}")
        if found.access != "reads and writes":
            return Instruction(length)
    return dataclasses.replace(found, length=length)


def _prefixes(reader: _Reader) -> tuple[_Prefixes | None, int]:
    found, seen = _Prefixes(), set()
    while True:
        byte = reader.byte()
        if byte & 0xF0 == 0x40:
            found.rex = byte
            byte = reader.byte()
            # A prefix behind REX makes it void: nobody's compiler does that.
            return (None if byte in _LEGACY or byte & 0xF0 == 0x40 else found), byte
        if byte not in _LEGACY:
            return found, byte
        if _LEGACY[byte] in seen or byte == 0x67:
            return None, byte
        seen.add(_LEGACY[byte])
        found.wide |= byte == 0x66
        found.lock |= byte == 0xF0
        found.repeat = byte if byte in (0xF2, 0xF3) else found.repeat
        found.segment = {0x64: "fs", 0x65: "gs"}.get(byte, found.segment)
        found.odd |= byte in (0x26, 0x2E, 0x36, 0x3E)


#: Prefix: its group; of each group there may be one.
_LEGACY = {
    **dict.fromkeys((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65), "segment"),
    **dict.fromkeys((0xF2, 0xF3), "repeat"),
    0x66: "operand",
    0x67: "address",
    0xF0: "lock",
}


def _modrm(reader: _Reader, prefixes: _Prefixes) -> _Operand:
    byte, rex = reader.byte(), prefixes.rex
    mod, reg, rm = byte >> 6, byte >> 3 & 7 | (rex & 4) << 1, byte & 7
    if mod == 3:
        return _Operand(reg, None, rm | (rex & 1) << 3)
    base, index, scale = _QUADS[rm | (rex & 1) << 3], "", 1
    if rm == 4:
        sib = reader.byte()
        number = sib >> 3 & 7 | (rex & 2) << 2
        if number != 4:
            index, scale = _QUADS[number], 1 << (sib >> 6)
        base = _QUADS[sib & 7 | (rex & 1) << 3]
        if sib & 7 == 5 and mod == 0:
            return _Operand(reg, Memory("", index, scale, reader.number(4), prefixes.segment))
    elif rm == 5 and mod == 0:
        base, mod = "rip", 2
    offset = reader.number({0: 0, 1: 1, 2: 4}[mod])
    return _Operand(reg, Memory(base, index, scale, offset, prefixes.segment))


def _other(sets: str | None = None) -> Instruction:
    """Only the length is known, and perhaps what it leaves alone."""
    return Instruction(0, sets=sets)


def _with_register(
    prefixes: _Prefixes, operand: _Operand, name: str, access: str, size: int, to: bool = False
) -> Instruction:
    """An instruction between memory and a register; ``to``: the register is its destination."""
    quad = _QUADS[operand.reg if size > 1 or prefixes.rex or operand.reg < 4 else operand.reg - 4]
    harmless = name in ("cmp", "test")
    if operand.memory is None:
        return _other("" if harmless else None)
    register = f"%{prefixes.register(operand.reg, size)}"
    words = f"{operand.memory},{register}" if to else f"{register},{operand.memory}"
    sets = quad if to and not harmless else ""
    if access == "reads and writes" and name in ("xchg", "xadd", "cmpxchg"):
        sets = quad if name != "cmpxchg" else "rax"
    return Instruction(0, f"{name} {words}", operand.memory, access, quad, sets)


def _alone(
    operand: _Operand, name: str, access: str, size: int, immediate: int | None = None
) -> Instruction:
    """An instruction on memory without a register: its size is in its name."""
    harmless = name in ("cmp", "test")
    if operand.memory is None:
        return _other("" if harmless else None)
    shown = "" if immediate is None else f"${immediate & (1 << size * 8) - 1:#x},"
    text = f"{name}{_SUFFIX[size]} {shown}{operand.memory}"
    return Instruction(0, text, operand.memory, access, "", "")


def _short(reader: _Reader, prefixes: _Prefixes, opcode: int) -> Instruction | None:
    """The one-byte opcodes."""
    if opcode < 0x40:
        return _arithmetic(reader, prefixes, opcode)
    if opcode in _MODRM:
        return _general(reader, prefixes, opcode)
    if opcode in (0xAA, 0xAB) and not prefixes.segment:
        size = prefixes.size(opcode == 0xAA)
        rep = {0: "", 0xF3: "rep "}.get(prefixes.repeat)
        if rep is None:
            return _other()
        text = f"{rep}stos %{prefixes.register(0, size)},%es:(%rdi)"
        return Instruction(0, text, Memory("rdi", "", 1, 0), "writes", "rax", "rdi")
    if 0xB8 <= opcode < 0xC0:
        reader.number(8 if prefixes.rex & 8 else prefixes.immediate())
        return _other(_QUADS[opcode & 7 | (prefixes.rex & 1) << 3])
    if opcode in _IMMEDIATE:
        size = _IMMEDIATE[opcode]
        if opcode in (0xE8, 0xE9) and prefixes.wide:
            return None  # Intel and AMD do not agree on its length
        reader.number(prefixes.immediate() if size == 4 else size)
        # Jumps that were not taken change nothing; a call changes what it likes.
        return _other("" if 0x70 <= opcode < 0x80 or opcode == 0x90 else None)
    return None


def _arithmetic(reader: _Reader, prefixes: _Prefixes, opcode: int) -> Instruction | None:
    name, form = _ARITHMETIC[opcode >> 3], opcode & 7
    if form > 5:
        return None
    if form > 3:
        reader.number(1 if form == 4 else prefixes.immediate())
        return _other("" if name == "cmp" else "rax")
    size, to = prefixes.size(not form & 1), form >= 2
    access = "reads" if to or name == "cmp" else "reads and writes"
    return _with_register(prefixes, _modrm(reader, prefixes), name, access, size, to)


def _general(reader: _Reader, prefixes: _Prefixes, opcode: int) -> Instruction | None:
    """Those with ModRM."""
    operand = _modrm(reader, prefixes)
    size, which = prefixes.size(not opcode & 1), operand.reg & 7
    immediate = _immediate(reader, prefixes, opcode, which)
    if opcode in (0x80, 0x81, 0x83):
        name = _ARITHMETIC[which]
        access = "reads" if name == "cmp" else "reads and writes"
        return _alone(operand, name, access, size, immediate)
    if opcode in (0x84, 0x85):
        return _with_register(prefixes, operand, "test", "reads", size)
    if opcode in (0x86, 0x87):
        return _with_register(prefixes, operand, "xchg", "reads and writes", size)
    if opcode in (0x88, 0x89):
        return _with_register(prefixes, operand, "mov", "writes", size)
    if opcode in (0x8A, 0x8B):
        return _with_register(prefixes, operand, "mov", "reads", size, to=True)
    if opcode == 0x8D:
        if operand.memory is None or operand.memory.segment:
            return None
        found = _with_register(prefixes, operand, "lea", "", prefixes.size(False), to=True)
        return dataclasses.replace(found, memory=None)
    if opcode == 0x63:
        if not prefixes.rex & 8:
            return _other()
        return _with_register(prefixes, operand, "movslq", "reads", 8, to=True)
    if opcode in (0xC6, 0xC7):
        return _alone(operand, "mov", "writes", size, immediate) if which == 0 else None
    if opcode in (0xF6, 0xF7):
        names = {0: "test", 2: "not", 3: "neg"}
        if which not in names:
            return _other()
        return _alone(operand, names[which], "reads" if which == 0 else _BOTH, size, immediate)
    if opcode in (0xFE, 0xFF) and which < 2:
        return _alone(operand, ("inc", "dec")[which], _BOTH, size)
    if opcode == 0xFF and which in (2, 4, 6) and not prefixes.wide and operand.memory:
        text = {2: "call *", 4: "jmp *", 6: "push "}[which] + str(operand.memory)
        return Instruction(0, text, operand.memory, "reads", "", "" if which == 6 else None)
    if opcode == 0xFE or opcode == 0xFF and which in (3, 5, 7) or opcode == 0x8F and which:
        return None
    return _other()


_BOTH = "reads and writes"


def _immediate(reader: _Reader, prefixes: _Prefixes, opcode: int, which: int) -> int | None:
    if opcode in (0x6B, 0x80, 0x83, 0xC0, 0xC1, 0xC6) or opcode == 0xF6 and which < 2:
        return reader.number(1)
    if opcode in (0x69, 0x81, 0xC7) or opcode == 0xF7 and which < 2:
        return reader.number(prefixes.immediate())
    return None


#: One-byte opcodes with ModRM, from 40 on.
_MODRM = {
    *(0x63, 0x69, 0x6B, 0x80, 0x81, 0x83, *range(0x84, 0x8C), 0x8D, 0x8F, 0xC0, 0xC1, 0xC6, 0xC7),
    *(*range(0xD0, 0xD4), 0xF6, 0xF7, 0xFE, 0xFF),
}
#: One-byte opcodes without it: bytes of what follows.
_IMMEDIATE = {
    **dict.fromkeys((*range(0x50, 0x60), *range(0x90, 0x9A), 0x9C, 0x9D, 0xA4, 0xA5), 0),
    **dict.fromkeys((0xAA, 0xAB, 0xC3, 0xC9, 0xCC, 0xF4, *range(0xF8, 0xFE)), 0),
    **dict.fromkeys((0x6A, *range(0x70, 0x80), 0xA8, *range(0xB0, 0xB8), 0xEB), 1),
    **dict.fromkeys((0x68, 0xA9, 0xE8, 0xE9), 4),
}


def _long(reader: _Reader, prefixes: _Prefixes) -> Instruction | None:
    """The opcodes behind 0f."""
    opcode = reader.byte()
    if opcode == 0x0B:
        return _other()
    if 0x80 <= opcode < 0x90:
        if prefixes.wide:
            return None
        reader.number(4)
        return _other("")
    if opcode not in _LONG_MODRM:
        return None
    operand = _modrm(reader, prefixes)
    size, which = prefixes.size(False), operand.reg & 7
    if 0x40 <= opcode < 0x50:
        name = f"cmov{_CONDITIONS[opcode & 15]}"
        return _with_register(prefixes, operand, name, "reads", size, to=True)
    if 0x90 <= opcode < 0xA0:
        if operand.memory is None:
            return _other()
        text = f"set{_CONDITIONS[opcode & 15]} {operand.memory}"
        return Instruction(0, text, operand.memory, "writes", "", "")
    if opcode == 0xAF:
        return _with_register(prefixes, operand, "imul", "reads", size, to=True)
    if opcode in (0xB0, 0xB1, 0xC0, 0xC1):
        name = "cmpxchg" if opcode < 0xC0 else "xadd"
        return _with_register(prefixes, operand, name, _BOTH, prefixes.size(not opcode & 1))
    if opcode in (0xB6, 0xB7, 0xBE, 0xBF):
        return _extend(prefixes, operand, opcode, size)
    if opcode == 0xBA:
        immediate = reader.number(1)
        if which < 4:
            return None
        found = _alone(operand, ("bt", "bts", "btr", "btc")[which - 4], _BOTH, size)
        if not found.text or not 0 <= immediate < size * 8:
            return _other()
        name, _, place = found.text.partition(" ")
        access = "reads" if which == 4 else _BOTH
        return dataclasses.replace(found, text=f"{name} ${immediate:#x},{place}", access=access)
    if opcode == 0xC7:
        if which != 1 or operand.memory is None or prefixes.wide:
            return None
        name = "cmpxchg16b" if prefixes.rex & 8 else "cmpxchg8b"
        # Two registers are set, so none is told.
        return Instruction(0, f"{name} {operand.memory}", operand.memory, _BOTH, "", None)
    return _other("" if opcode == 0x1F else None)


def _extend(prefixes: _Prefixes, operand: _Operand, opcode: int, size: int) -> Instruction:
    narrow = 2 if opcode & 1 else 1
    if narrow >= size:
        return _other()
    name = f"mov{'z' if opcode < 0xB8 else 's'}{_SUFFIX[narrow]}{_SUFFIX[size]}"
    return _with_register(prefixes, operand, name, "reads", size, to=True)


#: 0f 0d and 18 prefetch, 1e and 1f do nothing, a3 to bb find bits by a register that may be large.
_LONG_MODRM = {
    *(0x0D, 0x18, 0x1E, 0x1F, *range(0x40, 0x50), *range(0x90, 0xA0), 0xA3, 0xAB, 0xAF, 0xB0, 0xB1),
    *(0xB3, 0xB6, 0xB7, 0xBA, 0xBB, 0xBC, 0xBD, 0xBE, 0xBF, 0xC0, 0xC1, 0xC7),
}


#: Hardly an instruction is longer, and each start too many is a reading that has no time to agree.
_STARTS = 8


def leading(data: bytes, marked: int) -> list[Instruction]:
    """What stands before the byte ``marked``, oldest first, as far as it can be told.

    x86 cannot be read backwards, and the line begins in the middle of an instruction: it is read
    from each of its first bytes on, for readings soon fall into step, and what counts is the end on
    which all that arrive at ``marked`` agree.
    """
    starts = range(min(_STARTS, marked // 3))
    ways = [way for start in starts if (way := _walk(data, start, marked))]
    if not ways:
        return []
    common: list[tuple[int, Instruction]] = []
    for steps in zip(*(reversed(way) for way in ways)):
        if any(step != steps[0] for step in steps):
            break
        common.append(steps[0])
    return [instruction for _, instruction in reversed(common)]


def _walk(data: bytes, at: int, end: int) -> list[tuple[int, Instruction]]:
    """From one place to another, instruction by instruction; [] if that does not come out."""
    steps = []
    while at < end:
        instruction = decode(data[at:end])
        if instruction is None:
            return []
        steps.append((at, instruction))
        at += instruction.length
    return steps


def value(register: str, registers: Mapping[str, int]) -> int | None:
    """A register's content by its 64-bit name; an oops calls r8 "R08"."""
    name = register.upper()
    return registers.get(f"R0{name[1:]}" if name in ("R8", "R9") else name)


def address(memory: Memory, registers: Mapping[str, int]) -> int | None:
    """Where it points to; None where a register is not in the log, or a segment has a base."""
    if memory.segment or memory.base == "rip":
        return None
    found = memory.offset
    for register, scale in ((memory.base, 1), (memory.index, memory.scale)):
        if register:
            content = value(register, registers)
            if content is None:
                return None
            found += content * scale
    return found & _MASK


def canonical(place: int) -> bool:
    """Whether an address is one at all: with 48 bits, the rest is a copy of the highest."""
    return place >> 47 in (0, (1 << 17) - 1)


def loader_of(register: str, before: Sequence[Instruction]) -> Instruction | None:
    """The instruction that loaded a register last, if nothing unknown came after it."""
    for instruction in reversed(before):
        if instruction.sets is None:
            return None
        if instruction.sets == register:
            reads = instruction.memory is not None and instruction.access == "reads"
            return instruction if reads and instruction.text.startswith("mov") else None
    return None
