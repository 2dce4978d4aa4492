"""Types of a kernel without its debug information: by its own BTF and its own table of symbols.

Both lie in the kernel's memory, and so in its dump: they are always of the right build.  BTF has
the types, but of the variables only those that each CPU has one of; the few others that are read
here are told by ``_VARIABLES``.  Where the table of symbols lies is in vmcoreinfo since Linux 6.0
(f09bddbd8661, "vmcoreinfo: add kallsyms_num_syms symbol").
"""

from __future__ import annotations

import contextlib
import enum
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Btf", "Kind", "add"]

#: What the helpers of drgn and this package read, by the kernel's declarations.
_VARIABLES = {
    "__cpu_online_mask": "struct cpumask",
    "__cpu_possible_mask": "struct cpumask",
    "__cpu_present_mask": "struct cpumask",
    "__per_cpu_offset": "unsigned long []",
    "_totalram_pages": "atomic_long_t",
    "init_mm": "struct mm_struct",
    "init_pid_ns": "struct pid_namespace",
    "init_task": "struct task_struct",
    "init_uts_ns": "struct uts_namespace",
    "linux_banner": "const char []",
    "map_idr": "struct idr",
    "mem_section": "struct mem_section **",  # SPARSEMEM_EXTREME, as all of Debian's
    "mod_tree": "struct mod_tree_root",
    "modules": "struct list_head",
    "node_data": "struct pglist_data *[]",
    "node_states": "nodemask_t []",
    "nr_cpu_ids": "unsigned int",
    "nr_node_ids": "unsigned int",
    "nr_swapfiles": "unsigned int",
    "panic_cpu": "atomic_t",
    "prb": "struct printk_ringbuffer *",
    "saved_command_line": "char *",
    "slab_caches": "struct list_head",
    "super_blocks": "struct list_head",
    "swap_info": "struct swap_info_struct *[]",
    "sysctl_overcommit_kbytes": "unsigned long",
    "sysctl_overcommit_ratio": "int",
    "taint_flags": "struct taint_flag []",
    "tainted_mask": "unsigned long",
    "task_state_array": "const char *[]",
    "total_swap_pages": "long",
    "vm_committed_as": "struct percpu_counter",
    "vm_node_stat": "atomic_long_t []",
    "vm_zone_stat": "atomic_long_t []",
}
_LIVE = Path("/sys/kernel/btf/vmlinux")
_MOST = 1 << 28  # bytes; the largest are some megabytes
_MOST_ENTRIES = 1 << 16  # of an array whose length nobody tells


class Kind(enum.IntEnum):
    """Of a type (include/uapi/linux/btf.h)."""

    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


#: Bytes behind the common part: of the type, and of each of its members.
_BEHIND = {
    Kind.INT: (4, 0),
    Kind.ARRAY: (12, 0),
    Kind.STRUCT: (0, 12),
    Kind.UNION: (0, 12),
    Kind.ENUM: (0, 8),
    Kind.FUNC_PROTO: (0, 8),
    Kind.VAR: (4, 0),
    Kind.DATASEC: (0, 12),
    Kind.DECL_TAG: (4, 0),
    Kind.ENUM64: (0, 12),
}
_HEADER = struct.Struct("<HBBIIIII")
_COMMON = struct.Struct("<III")
_MAGIC = 0xEB9F


class Entry(NamedTuple):
    """One type; ``size`` is that of the type that it refers to, or its own; ``at`` is where its
    members begin.
    """

    kind: Kind
    name: str
    flag: bool
    length: int
    size: int
    at: int


class Btf:
    """The types of one BTF; raises ``ValueError`` for bytes that are none."""

    def __init__(self, data: bytes) -> None:
        try:
            magic, _, _, length, types, size, strings, room = _HEADER.unpack_from(data)
        except struct.error:
            raise ValueError("no BTF: too short") from None
        if magic != _MAGIC:
            raise ValueError("no BTF: another magic number")
        self._data = data
        self._strings = length + strings, length + strings + room
        self._places: list[int] = [0]  # type 0 is void
        self._named: dict[tuple[Kind, str], int] = {}
        self._enumerators: dict[str, tuple[int, int]] = {}
        try:
            self._read(length + types, length + types + size)
        except (struct.error, IndexError):
            raise ValueError("a BTF that ends in the middle of a type") from None

    def _read(self, at: int, end: int) -> None:
        if end > len(self._data) or self._strings[1] > len(self._data):
            raise ValueError("a BTF that is longer than its bytes")
        while at < end:
            self._places.append(at)
            number = len(self._places) - 1
            entry = self.entry(number)
            own, each = _BEHIND.get(entry.kind, (0, 0))
            at += _COMMON.size + own + each * entry.length
            if at > end:
                raise IndexError
            if entry.name:
                # A forward declaration is no type that somebody asks for.
                self._named.setdefault((entry.kind, entry.name), number)
            if entry.kind in (Kind.ENUM, Kind.ENUM64):
                for name, value in self.enumerators(entry):
                    self._enumerators.setdefault(name, (number, value))

    def entry(self, number: int) -> Entry:
        """A type by its number; raises ``ValueError`` where there is none."""
        if not 0 < number < len(self._places):
            raise ValueError(f"BTF has no type {number}")
        at = self._places[number]
        name, info, size = _COMMON.unpack_from(self._data, at)
        try:
            kind = Kind(info >> 24 & 0x1F)
        except ValueError:
            raise ValueError(f"BTF with types of the unknown kind {info >> 24 & 0x1F}") from None
        flag, count = bool(info >> 31), info & 0xFFFF
        own = _BEHIND.get(kind, (0, 0))[0]
        return Entry(kind, self._text(name), flag, count, size, at + _COMMON.size + own)

    def _text(self, offset: int) -> str:
        begin = self._strings[0] + offset
        end = self._data.find(b"\0", begin, self._strings[1])
        return self._data[begin : max(begin, end)].decode("ascii", "replace")

    def named(self, kind: Kind, name: str) -> int | None:
        """The number of the type of this kind and name."""
        return self._named.get((kind, name))

    def enumerator(self, name: str) -> tuple[int, int] | None:
        """The number of its enumeration, and its value."""
        return self._enumerators.get(name)

    def number(self, entry: Entry) -> int:
        """What stands behind the common part of an integer."""
        return int(struct.unpack_from("<I", self._data, entry.at - 4)[0])

    def array(self, entry: Entry) -> tuple[int, int]:
        """The type of an array's elements, and how many."""
        element, _, count = _COMMON.unpack_from(self._data, entry.at - 12)
        return element, count

    def members(self, entry: Entry) -> Iterator[tuple[str, int, int, int]]:
        """Name, type, place in bits, and size in bits where it is a bit field, else 0."""
        for index in range(entry.length):
            name, type_, place = _COMMON.unpack_from(self._data, entry.at + 12 * index)
            bits = place >> 24 if entry.flag else 0
            yield self._text(name), type_, place & 0xFFFFFF if entry.flag else place, bits

    def parameters(self, entry: Entry) -> Iterator[tuple[str, int]]:
        """Name and type; the last one of type 0 stands for more."""
        for index in range(entry.length):
            name, type_ = struct.unpack_from("<II", self._data, entry.at + 8 * index)
            yield self._text(name), type_

    def enumerators(self, entry: Entry) -> Iterator[tuple[str, int]]:
        """Name and value."""
        for index in range(entry.length):
            if entry.kind is Kind.ENUM64:
                name, low, high = _COMMON.unpack_from(self._data, entry.at + 12 * index)
                value, bits = high << 32 | low, 64
            else:
                name, value = struct.unpack_from("<II", self._data, entry.at + 8 * index)
                bits = 32
            if entry.flag and value >> (bits - 1):
                value -= 1 << bits
            yield self._text(name), value


class _Finder:
    """Makes drgn's types of BTF's, when they are asked for."""

    def __init__(self, drgn: Any, program: Any, btf: Btf) -> None:
        self._drgn, self._program, self._btf = drgn, program, btf
        self._made: dict[int, Any] = {}
        self._making: set[int] = set()
        kinds = drgn.TypeKind
        self._kinds = (
            (kinds.STRUCT, (Kind.STRUCT,)),
            (kinds.UNION, (Kind.UNION,)),
            (kinds.ENUM, (Kind.ENUM, Kind.ENUM64)),
            (kinds.TYPEDEF, (Kind.TYPEDEF,)),
            (kinds.INT, (Kind.INT,)),
            (kinds.BOOL, (Kind.INT,)),
            (kinds.FLOAT, (Kind.FLOAT,)),
        )

    def type_(self, program: Any, wanted: Any, name: str, file: str | None) -> Any:
        """For ``register_type_finder``."""
        for kind, ours in self._kinds:
            if kind in wanted and not file:
                for one in ours:
                    number = self._btf.named(one, name)
                    if number is not None and self._make(number).kind == kind:
                        return self._make(number)
        return None

    def object_(self, program: Any, name: str, flags: Any, file: str | None) -> Any:
        """For ``register_object_finder``: enumerators and variables."""
        if file:
            return None
        if flags & self._drgn.FindObjectFlags.CONSTANT:
            found = self._btf.enumerator(name)
            if found is not None:
                return self._drgn.Object(program, self._make(found[0]), value=found[1])
        if flags & self._drgn.FindObjectFlags.VARIABLE:
            with contextlib.suppress(LookupError):
                return self._variable(name)
        return None

    def _variable(self, name: str) -> Any:
        drgn, program = self._drgn, self._program
        number = self._btf.named(Kind.VAR, name)
        if number is None and name not in _VARIABLES:
            return None
        symbol = program.symbol(name)
        if number is not None:
            type_ = self._make(self._btf.entry(number).size)
        else:
            type_ = program.type(_VARIABLES[name])
            if type_.kind == drgn.TypeKind.ARRAY and type_.length is None:
                # Up to the next symbol: what fills up the place at its end is nobody's element.
                length = min(symbol.size // drgn.sizeof(type_.type), _MOST_ENTRIES)
                type_ = program.array_type(type_.type, length)
        return drgn.Object(program, type_, address=symbol.address)

    def _make(self, number: int) -> Any:
        if not number:
            return self._program.void_type()
        made = self._made.get(number)
        if made is None:
            if number in self._making:
                raise ValueError(f"BTF type {number} contains itself")
            self._making.add(number)
            try:
                made = self._made[number] = self._new(self._btf.entry(number))
            finally:
                self._making.discard(number)
        return made

    def _new(self, entry: Entry) -> Any:
        program, kind = self._program, entry.kind
        if kind is Kind.INT:
            # Of the encoding bit 0 says signed, bit 2 says bool.
            encoding = self._btf.number(entry) >> 24
            if encoding & 4:
                return program.bool_type(entry.name, entry.size)
            return program.int_type(entry.name, entry.size, bool(encoding & 1))
        if kind is Kind.FLOAT:
            return program.float_type(entry.name, entry.size)
        if kind is Kind.PTR:
            return program.pointer_type(self._make(entry.size))
        if kind is Kind.ARRAY:
            element, count = self._btf.array(entry)
            return program.array_type(self._make(element), count)
        if kind in (Kind.STRUCT, Kind.UNION):
            make = program.struct_type if kind is Kind.STRUCT else program.union_type
            return make(entry.name or None, entry.size, tuple(self._members(entry)))
        if kind in (Kind.ENUM, Kind.ENUM64):
            return self._enumeration(entry)
        if kind is Kind.FWD:
            return self._declared(entry)
        if kind is Kind.TYPEDEF:
            return program.typedef_type(entry.name, self._make(entry.size))
        if kind is Kind.FUNC_PROTO:
            return self._function(entry)
        # Qualifiers and tags.
        type_, qualifiers = self._make(entry.size), self._drgn.Qualifiers
        more = {
            Kind.CONST: qualifiers.CONST,
            Kind.VOLATILE: qualifiers.VOLATILE,
            Kind.RESTRICT: qualifiers.RESTRICT,
        }.get(kind, qualifiers.NONE)
        return type_.qualified(type_.qualifiers | more)

    def _members(self, entry: Entry) -> Iterator[Any]:
        """Their types are made when somebody asks: a structure may point to itself."""
        for name, number, place, bits in self._btf.members(entry):
            yield self._drgn.TypeMember(self._later(number, bits), name or None, place)

    def _later(self, number: int, bits: int = 0) -> Any:
        def make() -> Any:
            if not bits:
                return self._make(number)
            type_ = self._make(number)
            return self._drgn.Object(self._program, type_, bit_field_size=bits)

        return make

    def _enumeration(self, entry: Entry) -> Any:
        whole = self._program.int_type(
            f"{'' if entry.flag else 'unsigned '}{'long' if entry.size == 8 else 'int'}",
            entry.size or 4,
            entry.flag,
        )
        values = [self._drgn.TypeEnumerator(*one) for one in self._btf.enumerators(entry)]
        return self._program.enum_type(entry.name or None, whole, values)

    def _declared(self, entry: Entry) -> Any:
        kind = Kind.UNION if entry.flag else Kind.STRUCT
        number = self._btf.named(kind, entry.name)
        if number is not None:
            return self._make(number)
        make = self._program.union_type if entry.flag else self._program.struct_type
        return make(entry.name)

    def _function(self, entry: Entry) -> Any:
        parameters = list(self._btf.parameters(entry))
        more = bool(parameters) and parameters[-1] == ("", 0)
        if more:
            parameters.pop()
        made = [
            self._drgn.TypeParameter(self._later(number), name or None)
            for name, number in parameters
        ]
        return self._program.function_type(self._make(entry.size), made, more)


def add(drgn: Any, program: Any, live: bool) -> None:
    """Give drgn the types, variables and symbols; raises ``LookupError`` with the reason where
    they are not to be had.
    """
    try:
        from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms
    except ImportError:
        raise LookupError(f"drgn {drgn.__version__} cannot read the table of symbols") from None
    try:
        program.register_symbol_finder("kallsyms", load_vmlinux_kallsyms(program), enable_index=0)
    except (LookupError, ValueError, OSError, drgn.FaultError) as error:
        raise LookupError(
            f"its table of symbols is not found: vmcoreinfo tells since Linux 6.0 ({error})"
        ) from None
    try:
        program.symbol("super_blocks")
    except LookupError:
        raise LookupError(
            "its table of symbols has functions only (CONFIG_KALLSYMS_ALL is not set)"
        ) from None
    try:
        btf = Btf(_LIVE.read_bytes() if live else _of_dump(program))
    except (LookupError, ValueError, OSError, drgn.FaultError) as error:
        raise LookupError(f"it has no BTF (CONFIG_DEBUG_INFO_BTF): {error}") from None
    finder = _Finder(drgn, program, btf)
    program.register_type_finder("btf", finder.type_, enable_index=-1)
    program.register_object_finder("btf", finder.object_, enable_index=-1)
    symbols = list(_of_modules(drgn, program))
    program.register_symbol_finder("modules", drgn.SymbolIndex(symbols), enable_index=-1)


def _of_dump(program: Any) -> bytes:
    start, stop = (program.symbol(name).address for name in ("__start_BTF", "__stop_BTF"))
    if not 0 < stop - start < _MOST:
        raise ValueError(f"from {start:#x} to {stop:#x}")
    return bytes(program.read(start, stop - start))


def _of_modules(drgn: Any, program: Any) -> Iterator[Any]:
    """Without the marks of an assembler for code and data ("$x", "$d")."""
    try:
        from drgn.helpers.linux.kallsyms import module_kallsyms
        from drgn.helpers.linux.module import for_each_module
    except ImportError:  # drgn before 0.1: a module's functions have the module's name only
        return
    with contextlib.suppress(drgn.FaultError, LookupError, ValueError):
        for module in for_each_module(program):
            with contextlib.suppress(drgn.FaultError, LookupError, ValueError, IndexError):
                for symbol in module_kallsyms(module):
                    if symbol.name[0] not in "$.":
                        yield symbol
