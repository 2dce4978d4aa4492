"""drgn's types of a kernel's own BTF: each kind, bytes that are none, and the running kernel's."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpfwatch.loader.btf import Btf as ByLibbpf
from ebpfwatch.postmortem import btf
from ebpfwatch.postmortem.btf import Btf, Kind

drgn = pytest.importorskip("drgn", reason="drgn is not installed (pip has it for x86-64)")

OWN = Path("/sys/kernel/btf/vmlinux")


class Made:
    """A BTF, type by type; a method returns the number of the new one."""

    def __init__(self) -> None:
        self.strings, self.types, self.count = b"\0", b"", 0

    def text(self, name: str) -> int:
        """Where it stands."""
        if not name:
            return 0
        self.strings += name.encode() + b"\0"
        return len(self.strings) - len(name) - 1

    def add(
        self, kind: Kind, name: str = "", size: int = 0, *words: int, count: int = 0, flag: int = 0
    ) -> int:
        """``words`` stand behind the common part."""
        info = flag << 31 | kind << 24 | count
        self.types += struct.pack(
            f"<{3 + len(words)}I", self.text(name), info, size, *(w & 0xFFFFFFFF for w in words)
        )
        self.count += 1
        return self.count

    def members(self, kind: Kind, name: str, size: int, *members: Any, flag: int = 0) -> int:
        """Each a name and two words, or a name and one."""
        words = [word for member in members for word in (self.text(member[0]), *member[1:])]
        return self.add(kind, name, size, *words, count=len(members), flag=flag)

    def __bytes__(self) -> bytes:
        sizes = (0, len(self.types), len(self.types), len(self.strings))
        return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, *sizes) + self.types + self.strings


def made() -> Made:
    """Something of each kind."""
    one = Made()
    number = one.add(Kind.INT, "int", 4, 1 << 24 | 32)
    wide = one.add(Kind.INT, "long unsigned int", 8, 64)
    truth = one.add(Kind.INT, "_Bool", 1, 4 << 24 | 8)
    one.add(Kind.FLOAT, "double", 8)
    itself = one.count + 2  # the structure that follows
    pointer = one.add(Kind.PTR, "", itself)
    one.members(
        Kind.STRUCT,
        "node",
        32,
        ("next", pointer, 0),
        ("low", number, 3 << 24 | 64),
        ("high", number, 5 << 24 | 67),
        ("", one.count + 2, 128),
        flag=1,
    )
    one.members(Kind.UNION, "", 8, ("whole", wide, 0), ("part", number, 0))
    constant = one.add(Kind.CONST, "", number)
    one.add(Kind.ARRAY, "", 0, constant, number, 3)
    one.add(Kind.TYPEDEF, "three_t", one.count)
    one.members(Kind.ENUM, "small", 4, ("LOW", -2), ("HIGH", 7), flag=1)
    one.members(Kind.ENUM64, "large", 8, ("LARGE", 1, 1))
    one.add(Kind.FWD, "elsewhere", 0)
    one.add(Kind.PTR, "", one.count)
    one.members(Kind.FUNC_PROTO, "", number, ("argument", pointer), ("", 0))
    one.add(Kind.FUNC, "work", one.count)
    one.add(Kind.VOLATILE, "", truth)
    one.add(Kind.TYPE_TAG, "rcu", one.count)
    one.add(Kind.RESTRICT, "", one.count)
    one.add(Kind.VAR, "each_cpu", wide, 1)
    one.add(Kind.DECL_TAG, "tag", one.count, 0)
    one.members(Kind.DATASEC, ".data..percpu", 8, ("", 0, 8))
    return one


def program_of(data: bytes) -> Any:
    """With these types, and one symbol."""
    flags = drgn.PlatformFlags.IS_64_BIT | drgn.PlatformFlags.IS_LITTLE_ENDIAN
    program = drgn.Program(drgn.Platform(drgn.Architecture.AARCH64, flags))
    finder = btf._Finder(drgn, program, Btf(data))
    program.register_type_finder("btf", finder.type_, enable_index=-1)
    program.register_object_finder("btf", finder.object_, enable_index=-1)
    binding, kind = drgn.SymbolBinding.GLOBAL, drgn.SymbolKind.OBJECT
    symbols = [
        drgn.Symbol("each_cpu", 0x1000, 8, binding, kind),
        drgn.Symbol("vm_node_stat", 0x2000, 24, binding, kind),
    ]
    program.register_symbol_finder("made", drgn.SymbolIndex(symbols), enable_index=-1)
    return program


def test_each_kind_of_type() -> None:
    """A structure that points to itself, bit fields, what has no name, both sorts of enum."""
    program = program_of(bytes(made()))
    node = program.type("struct node")
    assert (node.size, [member.name for member in node.members]) == (
        32,
        ["next", "low", "high", None],
    )
    assert node.member("next").type.type.type_name() == "struct node"
    assert [
        (node.member(n).bit_offset, node.member(n).bit_field_size) for n in ("low", "high")
    ] == [
        (64, 3),
        (67, 5),
    ]
    assert drgn.offsetof(node, "part") == 16
    assert str(program.type("three_t").type) == "const int [3]"
    assert (program["LOW"].value_(), program["HIGH"].value_()) == (-2, 7)
    assert program["LARGE"].value_() == (1 << 32) + 1
    assert program.type("_Bool").kind is drgn.TypeKind.BOOL
    assert program.type("unsigned long").size == 8
    with pytest.raises(LookupError):
        program.type("struct elsewhere")
    finder = btf._Finder(drgn, program, Btf(bytes(made())))
    assert [str(finder._make(number)) for number in (14, 15, 19)] == [
        "struct elsewhere *",
        "int (struct node *argument, ...)",
        "volatile restrict _Bool",
    ]


def test_variables_have_the_symbol_s_address() -> None:
    """Of BTF's own, and of those that the kernel's declarations tell."""
    program = program_of(bytes(made()))
    assert (program["each_cpu"].address_, str(program["each_cpu"].type_)) == (
        0x1000,
        "unsigned long",
    )
    with pytest.raises(LookupError):
        program["vm_node_stat"]  # its type is not in this BTF
    one = made()
    one.add(Kind.TYPEDEF, "atomic_long_t", 2)
    assert program_of(bytes(one))["vm_node_stat"].type_.length == 3
    with pytest.raises(LookupError):
        program["slab_caches"]  # no symbol


def test_bytes_that_are_none() -> None:
    """Are refused as such, whatever is wrong with them."""
    whole = bytes(made())
    for data, part in (
        (b"", "too short"),
        (b"\x7fELF" + bytes(60), "magic"),
        (whole[: len(whole) // 2], "longer than its bytes"),
        (whole[:24] + b"\xff" * (len(whole) - 24), "unknown kind"),
    ):
        with pytest.raises(ValueError, match=part):
            Btf(data)
    circle = Made()
    circle.add(Kind.TYPEDEF, "a", 2)
    circle.add(Kind.TYPEDEF, "b", 1)
    with pytest.raises(ValueError, match="contains itself"):
        program_of(bytes(circle)).type("a")
    astray = Made()
    astray.add(Kind.TYPEDEF, "a", 9)
    with pytest.raises(ValueError, match="no type 9"):
        program_of(bytes(astray)).type("a")


@given(st.integers(0, 2000), st.binary(min_size=1, max_size=40))
def test_damaged_bytes_raise_nothing_else(place: int, noise: bytes) -> None:
    """A dump may be damaged anywhere."""
    data = bytes(made())
    place %= len(data)
    data = data[:place] + noise + data[place + len(noise) :]
    try:
        program = program_of(data)
    except ValueError:
        return
    for name in ("struct node", "three_t", "enum small", "enum large"):
        try:
            type_ = program.type(name)
            for member in getattr(type_, "members", None) or ():
                str(member.type)
        except (LookupError, ValueError):
            continue


@pytest.mark.slow
@pytest.mark.skipif(
    not OWN.exists(), reason="the running kernel has no BTF (CONFIG_DEBUG_INFO_BTF)"
)
def test_the_running_kernel_s_types() -> None:
    """Lie where libbpf says that they do."""
    program, libbpf = program_of(OWN.read_bytes()), ByLibbpf()
    for name, members in (
        ("dentry", ("d_parent", "d_inode", "d_sb", "d_lockref")),
        ("inode", ("i_sb", "i_ino", "i_state", "i_sb_list", "i_count")),
        ("task_struct", ("comm", "files", "fs", "mm", "pid")),
        ("super_block", ("s_inodes", "s_root", "s_mounts")),
        ("kmem_cache", ("offset", "size", "name")),
    ):
        type_ = program.type(f"struct {name}")
        for member in members:
            assert drgn.offsetof(type_, member) == libbpf.offset(name, member), member
    assert program["PIDTYPE_PID"].value_() == 0
