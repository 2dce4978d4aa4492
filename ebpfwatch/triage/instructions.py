"""The machine code of an oops' ``Code:`` line, disassembled by Capstone where it is installed.

Capstone (Debian: python3-capstone; PyPI: capstone) reads the instructions of x86-64 and arm64.
Without it ``available`` is False and nothing is decoded.  Capstone 4 and 5 are wrong about what
some instructions write (``cmp`` on arm64 "writes" its first operand, ``cmpxchg`` not its own), so
what an instruction sets is believed only of the mnemonics listed here.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "INSTALL",
    "Instruction",
    "Memory",
    "address",
    "available",
    "canonical",
    "code",
    "decode",
    "leading",
    "loader_of",
    "value",
]

#: How to get the disassembler.
INSTALL = "apt-get install python3-capstone, or pip install capstone"

_MASK = 2**64 - 1


@dataclasses.dataclass(frozen=True)
class Memory:
    """``segment:offset(base, index, scale)``; registers by their 64-bit name, "" for none.

    ``simple`` is False where the index is extended (arm64's uxtw, sxtw): not computed here.
    """

    base: str
    index: str
    scale: int
    offset: int
    segment: str = ""
    simple: bool = True


@dataclasses.dataclass(frozen=True)
class Instruction:
    """``memory`` is None for one that touches no memory, or two places at once.

    ``register`` is its first register operand.  ``sets`` are the registers that it leaves another
    value in, None where that is not known.
    """

    length: int
    text: str
    mnemonic: str
    memory: Memory | None = None
    reads: bool = False
    writes: bool = False
    register: str = ""
    sets: frozenset[str] | None = None

    @property
    def compares(self) -> bool:
        """Whether it compares, and changes only flags."""
        return _COMPARES.fullmatch(self.mnemonic) is not None


_COMPARES = re.compile(r"(?:cmp|test)[bwlq]?|tst|cmn")
#: Instructions whose written registers Capstone names completely.
_HONEST = re.compile(
    # x86-64, in AT&T's spelling
    r"(?:mov|lea|add|sub|and|or|xor|inc|dec|neg|not|shl|shr|sar|xchg|xadd|imul)[bwlq]?"
    r"|movabsq|mov[sz][bwl][wlq]|mov[sz]l?q|set\w{1,3}|cmov\w{1,4}|(?:push|pop)q?|bt[src]?[wlq]"
    # arm64
    r"|ldu?r[bhsw]{0,2}|ldp|ldar|stu?r[bh]?|stp|stlr|adrp?|mov[kzn]?|add|sub|and|orr|eor|lsl|lsr"
    r"|asr|madd|mul|csel|cset|csinc|[us]bfx|[us]xt[bhw]|[us]bfm"
)
#: They set no register where execution went on behind them.
_HARMLESS = re.compile(r"j\w{1,3}|nop[wl]?|prefetch\w*|b\.\w\w|cbn?z|tbn?z|nop|prfm|endbr64")
_NO_ACCESS = re.compile(r"lea[wlq]|nop[wlq]?")


def _load() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Capstone 4 imports pkg_resources
            import capstone
    except ImportError:
        return None
    return capstone


@functools.lru_cache(maxsize=4)
def _disassembler(arch: str) -> Any:
    """Capstone for "x86-64" or "arm64"; None where it is not installed, or for another."""
    capstone = _load()
    if capstone is None or arch not in ("x86-64", "arm64"):
        return None
    if arch == "x86-64":
        found = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        found.syntax = capstone.CS_OPT_SYNTAX_ATT  # as objdump and the kernel's own tools
    else:
        which = getattr(capstone, "CS_ARCH_ARM64", None)  # Capstone 6 calls it AARCH64
        which = capstone.CS_ARCH_AARCH64 if which is None else which
        found = capstone.Cs(which, capstone.CS_MODE_LITTLE_ENDIAN)
    found.detail = True
    return found


def available() -> bool:
    """Whether Capstone is installed."""
    return _disassembler("x86-64") is not None


def code(line: str, arch: str) -> tuple[bytes, int]:
    """The bytes of a ``Code:`` line and the index of the marked one, -1 without one.

    x86-64 marks a byte as <48>, arm64 a word as (f9406801).  Anything else on the line, as "Unable
    to access opcode bytes", is no code.
    """
    pattern, order = (_WORD, "little") if arch == "arm64" else (_BYTE, "big")
    found, marked = bytearray(), -1
    for word in line.split():
        match = pattern.fullmatch(word)
        if match is None:
            return b"", -1
        if match[1]:
            marked = len(found)
        digits = match[2]
        found += int(digits, 16).to_bytes(len(digits) // 2, order)  # type: ignore[arg-type]
    return bytes(found), marked


_BYTE = re.compile(r"([<(])?([0-9a-f]{2})[>)]?")
_WORD = re.compile(r"(\()?([0-9a-f]{8})\)?")


def decode(data: bytes, arch: str) -> Instruction | None:
    """The first instruction; None if it is unknown or cut off, or without Capstone."""
    disassembler = _disassembler(arch)
    if disassembler is None:
        return None
    for found in disassembler.disasm(data[:16], 0, 1):
        return _instruction(found, arch)
    return None


def _instruction(found: Any, arch: str) -> Instruction:
    mnemonic = found.mnemonic.split()[-1]
    text = f"{found.mnemonic} {found.op_str}".strip()
    memories = [operand for operand in found.operands if operand.type == _MEMORY]
    registers = [operand for operand in found.operands if operand.type == _REGISTER]
    memory, reads, writes = None, False, False
    if len(memories) == 1 and not _NO_ACCESS.fullmatch(mnemonic):
        memory = _memory(found, memories[0], arch)
        reads, writes = _access(mnemonic, memories[0], arch)
    register = _wide(found.reg_name(registers[0].reg), arch) if registers else ""
    sets: frozenset[str] | None = None
    if _HARMLESS.fullmatch(mnemonic) or _COMPARES.fullmatch(mnemonic):
        sets = frozenset()
    elif _HONEST.fullmatch(mnemonic):
        sets = frozenset(_wide(found.reg_name(one), arch) for one in found.regs_access()[1])
    return Instruction(found.size, text, mnemonic, memory, reads, writes, register, sets)


_REGISTER, _MEMORY = 1, 3  # CS_OP_REG, CS_OP_MEM of Capstone 4 and 5
_READ, _WRITE = 1, 2  # CS_AC_READ, CS_AC_WRITE


def _access(mnemonic: str, operand: Any, arch: str) -> tuple[bool, bool]:
    """Whether it reads, and whether it writes its memory."""
    if _COMPARES.fullmatch(mnemonic) or re.fullmatch(r"bt[wlq]", mnemonic):
        return True, False
    if mnemonic.startswith("cmpxchg"):
        return True, True
    if mnemonic.startswith("stos") or arch == "arm64" and mnemonic.startswith("st"):
        return False, True
    if arch == "arm64" and mnemonic.startswith("prfm"):
        return False, False
    return bool(operand.access & _READ), bool(operand.access & _WRITE)


def _memory(found: Any, operand: Any, arch: str) -> Memory:
    mem = operand.mem
    base = _wide(found.reg_name(mem.base) or "", arch)
    index = _wide(found.reg_name(mem.index) or "", arch)
    if arch == "x86-64":
        return Memory(base, index, mem.scale, mem.disp, found.reg_name(mem.segment) or "")
    scale = 1 << operand.shift.value if operand.shift.type == 1 else 1
    return Memory(base, index, scale, mem.disp, "", not operand.ext)


_OLD = {"a": "rax", "b": "rbx", "c": "rcx", "d": "rdx"}


def _wide(name: str, arch: str) -> str:
    """The 64-bit register that a register is a part of."""
    if arch == "arm64":
        if name == "wsp":
            return "sp"
        return {"fp": "x29", "lr": "x30"}.get(name) or re.sub(r"^w(?=\d|zr)", "x", name)
    if re.fullmatch(r"r\d+[bwd]", name):
        return name[:-1]
    name = name[1:] if re.fullmatch(r"e[a-ds][xip]|eip", name) else name
    if re.fullmatch(r"[a-d][xhl]", name):
        return _OLD[name[0]]
    return f"r{name[:2]}" if re.fullmatch(r"(?:[sd]i|[sb]p)l?", name) else name


#: Hardly an instruction is longer, and each start too many is a reading that has no time to agree.
_STARTS = 8


def leading(data: bytes, marked: int, arch: str) -> list[Instruction]:
    """What stands before the byte ``marked``, oldest first, as far as it can be told.

    x86-64 cannot be read backwards, and the line begins in the middle of an instruction: it is read
    from each of its first bytes on, for readings soon fall into step, and what counts is the end on
    which all that arrive at ``marked`` agree.
    """
    starts = range(1) if arch == "arm64" else range(min(_STARTS, marked // 3))
    ways = [way for way in (_walk(data, start, marked, arch) for start in starts) if way]
    if not ways:
        return []
    common: list[tuple[int, Instruction]] = []
    for steps in zip(*(reversed(way) for way in ways)):
        if any(step != steps[0] for step in steps):
            break
        common.append(steps[0])
    return [instruction for _, instruction in reversed(common)]


def _walk(data: bytes, at: int, end: int, arch: str) -> list[tuple[int, Instruction]]:
    """From one place to another, instruction by instruction; [] if that does not come out."""
    steps: list[tuple[int, Instruction]] = []
    while at < end:
        instruction = decode(data[at:end], arch)
        if instruction is None:
            if arch != "arm64":
                return []
            instruction = Instruction(4, "", "")  # of one size each: go on behind it
        steps.append((at, instruction))
        at += instruction.length
    return steps if at == end else []


def value(register: str, registers: Mapping[str, int]) -> int | None:
    """A register's content by its 64-bit name; an oops of x86-64 calls r8 "R08"."""
    if register in registers:
        return registers[register]
    if register == "xzr":
        return 0
    name = register.upper()
    return registers.get(f"R0{name[1:]}" if name in ("R8", "R9") else name)


def address(memory: Memory, registers: Mapping[str, int]) -> int | None:
    """Where it points to; None where a register is not in the log, or a segment has a base."""
    if memory.segment or memory.base == "rip" or not memory.simple:
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
        if register in instruction.sets:
            loads = instruction.memory is not None and instruction.reads and not instruction.writes
            return instruction if loads and instruction.mnemonic[:2] in ("mo", "ld") else None
    return None
