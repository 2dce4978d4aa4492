"""Where a module calls the functions that take and give back references: from its file's ELF
relocations (elf(5)).

A relocation against ``iput`` at a call instruction is a call of it, wherever the compiler has put
that, also as a jump at the end of a function (a tail call, which leaves no return address in the
module).  What leaves no relocation is not found: functions that are inlined (``get_file()``), and
addresses that the module looked up itself (kallsyms_lookup_name()).
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import struct
from collections.abc import Iterator

__all__ = [
    "FUNCTIONS",
    "KINDS",
    "UNCOUNTED",
    "Call",
    "How",
    "Module",
    "Site",
    "find",
]


class How(enum.IntEnum):
    """Where a call's object is (probes/balance.c)."""

    ARGUMENT = 0  #: the argument is the object
    PATH = 1  #: the argument points to a struct path, whose dentry it is
    LOCKREF = 2  #: the argument is the dentry's d_lockref: dget() is inlined and calls that
    RESULT = 3  #: the result is the object, NULL or an error
    RESULT_PATH = 4  #: the result is 0 or an error, the argument points to the struct path


KINDS = ("inode", "dentry", "file")


@dataclasses.dataclass(frozen=True)
class Call:
    """One function: what it does with a reference of an object of ``kind``.

    ``sign``: 1 takes it, -1 gives it back.  ``argument`` counts from 0.
    """

    kind: str
    sign: int
    how: How = How.ARGUMENT
    argument: int = 0


FUNCTIONS: dict[str, Call] = {
    "ihold": Call("inode", 1),
    "igrab": Call("inode", 1, How.RESULT),
    "iput": Call("inode", -1),
    "lockref_get": Call("dentry", 1, How.LOCKREF),
    "dget_parent": Call("dentry", 1, How.RESULT),
    "d_find_alias": Call("dentry", 1, How.RESULT),
    "d_find_any_alias": Call("dentry", 1, How.RESULT),
    "d_lookup": Call("dentry", 1, How.RESULT),
    "lookup_one_len": Call("dentry", 1, How.RESULT),
    "lookup_one_len_unlocked": Call("dentry", 1, How.RESULT),
    "path_get": Call("dentry", 1, How.PATH),
    "kern_path": Call("dentry", 1, How.RESULT_PATH, 2),
    "dput": Call("dentry", -1),
    "path_put": Call("dentry", -1, How.PATH),
    "filp_open": Call("file", 1, How.RESULT),
    "file_open_root": Call("file", 1, How.RESULT),
    "dentry_open": Call("file", 1, How.RESULT),
    "fget": Call("file", 1, How.RESULT),
    "fput": Call("file", -1),
    "filp_close": Call("file", -1),
}

#: These move references, too, and are not counted: who calls one is not judged by that kind.
UNCOUNTED: dict[str, tuple[str, ...]] = {
    "inode": (
        *("new_inode", "iget_locked", "iget5_locked", "ilookup", "ilookup5", "d_instantiate"),
        *("d_instantiate_new", "d_add", "d_make_root", "d_splice_alias", "iget_failed"),
        *("d_obtain_alias", "d_obtain_root", "discard_new_inode", "insert_inode_locked"),
    ),
    "dentry": (
        *("d_alloc", "d_alloc_name", "d_make_root", "d_splice_alias", "d_obtain_alias"),
        *("kern_path_create", "user_path_create", "done_path_create", "user_path_at_empty"),
        *("user_path_at", "vfs_path_lookup", "vfs_path_parent_lookup", "path_is_under"),
        *("kern_path_locked", "lookup_positive_unlocked", "lookup_one", "lookup_one_unlocked"),
        *("lookup_one_qstr_excl", "try_lookup_one_len", "d_absolute_path", "dput_to_list"),
        *("lockref_put_return", "lockref_put_or_lock", "lockref_get_not_zero"),
        *("lockref_get_not_dead", "follow_up", "follow_down", "follow_down_one"),
    ),
    "file": (
        *("fd_install", "alloc_file", "alloc_file_pseudo", "anon_inode_getfile", "__fdget"),
        *("fget_raw", "__fdget_raw", "get_file_rcu", "fput_many", "close_fd", "__fput_sync"),
        *("shmem_file_setup", "receive_fd", "fget_task", "sock_alloc_file", "file_open_name"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Site:
    """One call: of which function, where it is, and whether it is a tail call.

    ``length`` are the bytes of the instruction: behind it is where the function returns to.
    """

    function: str
    section: str
    offset: int
    length: int
    tail: bool = False

    @property
    def call(self) -> Call:
        """What the function does."""
        return FUNCTIONS[self.function]


@dataclasses.dataclass(frozen=True)
class Module:
    """What the file tells: the calls, functions whose address is taken (they may be called by
    pointer), and those of ``UNCOUNTED`` that it uses, by kind.
    """

    sites: tuple[Site, ...]
    by_pointer: tuple[str, ...]
    uncounted: dict[str, tuple[str, ...]]


_SHT_SYMTAB, _SHT_RELA = 2, 4
_EXECUTABLE = 4  # SHF_EXECINSTR
_AARCH64, _X86_64 = 183, 62
_JUMP26, _CALL26 = 282, 283  # R_AARCH64_*
_PC32, _PLT32 = 2, 4  # R_X86_64_*
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")


def find(data: bytes) -> Module | None:
    """The calls of a module's file; None where it is none that can be read (64-bit arm64, x86)."""
    with contextlib.suppress(struct.error, ValueError, IndexError, OverflowError):
        return _find(data)
    return None


def _find(data: bytes) -> Module | None:
    machine = struct.unpack_from("<H", data, 18)[0]
    if data[:6] != b"\x7fELF\x02\x01" or machine not in (_AARCH64, _X86_64):
        return None
    begin = struct.unpack_from("<Q", data, 0x28)[0]
    size, count, strings = struct.unpack_from("<HHH", data, 0x3A)
    headers = [_SECTION.unpack_from(data, begin + size * index) for index in range(count)]
    titles = headers[strings][4]
    sites: list[Site] = []
    pointers: set[str] = set()
    used: set[str] = set()
    for header in headers:
        if header[1] == _SHT_SYMTAB:
            used.update(name for name in _undefined(data, headers, header) if name)
        if header[1] != _SHT_RELA:
            continue
        target = headers[header[7]]
        section = _text(data, titles + target[0])
        names = _undefined(data, headers, headers[header[6]])
        for offset, function, kind in _relocations(data, header, names):
            if function not in FUNCTIONS or section.startswith((".init", "__")):
                continue  # the kernel has thrown .init away; __ksymtab and the like are no code
            site = None
            if target[2] & _EXECUTABLE:
                site = _site(data, machine, target[4], function, section, offset, kind)
            if site is not None:
                sites.append(site)
            else:
                pointers.add(function)
    uncounted = {
        kind: tuple(name for name in functions if name in used)
        for kind, functions in UNCOUNTED.items()
    }
    return Module(tuple(sites), tuple(sorted(pointers)), uncounted)


def _relocations(
    data: bytes, header: tuple[int, ...], names: list[str]
) -> Iterator[tuple[int, str, int]]:
    where, length = header[4], header[5]
    for at in range(where, where + length, _RELOCATION.size):
        offset, info, _ = _RELOCATION.unpack_from(data, at)
        yield offset, names[info >> 32], info & 0xFFFFFFFF


def _undefined(data: bytes, headers: list[tuple[int, ...]], header: tuple[int, ...]) -> list[str]:
    """The names of symbols that others have; "" for those that the module has itself."""
    texts = headers[header[6]][4]
    found = []
    for at in range(header[4], header[4] + header[5], _SYMBOL.size):
        name, _, _, section, _, _ = _SYMBOL.unpack_from(data, at)
        found.append(_text(data, texts + name) if section == 0 and name else "")
    return found


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode("ascii", "replace")


def _site(
    data: bytes, machine: int, start: int, function: str, section: str, offset: int, kind: int
) -> Site | None:
    """The call that this relocation belongs to; None if it is another use of the address."""
    if machine == _AARCH64:
        if kind not in (_CALL26, _JUMP26):
            return None
        return Site(function, section, offset, 4, kind == _JUMP26)
    opcode = data[start + offset - 1 : start + offset]
    if kind not in (_PC32, _PLT32) or opcode not in (b"\xe8", b"\xe9"):
        return None  # also "jcc": it is counted as a pointer, so that the kind is not judged
    return Site(function, section, offset - 1, 5, opcode == b"\xe9")
