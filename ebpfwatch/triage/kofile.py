"""The file of one kernel module: found, unpacked, and read as ELF (elf(5)).

What a module may call is in its table of undefined symbols; what it prints is a string in it; what
it says of itself is in its sections .modinfo and .note.gnu.build-id.  No file is trusted: a damaged
one has nothing in it, and is no exception.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = [
    "CALLS",
    "build_id",
    "calls",
    "contents",
    "has_symbols",
    "line_between",
    "modinfo",
    "named",
    "note_build_id",
    "prints",
    "undefined",
    "walk",
]

_LARGEST = 64 << 20  # bytes of one module, unpacked
_SHORTEST = 10  # characters of a line that must be found together
_NAME = re.compile(r"(?P<name>[\w-]+)\.ko(?:\.(?:gz|xz|bz2|zst))?$")
_SYMBOLS, _NOBITS = 2, 8  # SHT_SYMTAB, SHT_NOBITS: the latter has no bytes in the file
_GNU_BUILD_ID = 3  # NT_GNU_BUILD_ID

#: What a module may call, and what a mistake with it can do.
CALLS = {
    "gives back references (once too often ends what others use)": (
        *("dput", "iput", "path_put", "fput", "mntput", "dput_to_list", "d_prune_aliases"),
    ),
    "takes references": (
        *("igrab", "ihold", "lockref_get", "dget_parent", "d_find_alias", "kern_path", "filp_open"),
        *("lookup_one_len", "vfs_path_lookup", "user_path_at_empty", "file_open_name"),
    ),
    "deletes or moves files (the caller must hold the directory's lock)": (
        *("vfs_unlink", "vfs_rmdir", "vfs_rename", "do_unlinkat", "kern_path_locked"),
        *("d_delete", "d_drop", "d_invalidate", "d_rehash", "d_move", "simple_unlink"),
    ),
    "ends or frees objects itself": (
        *("clear_inode", "clear_nlink", "drop_nlink", "generic_delete_inode", "kmem_cache_free"),
        *("call_rcu", "shrink_dcache_parent", "shrink_dcache_sb", "invalidate_inodes"),
    ),
    "can change or call any function of the kernel": (
        *("register_kprobe", "register_kretprobe", "kallsyms_lookup_name", "register_jprobe"),
        *("kallsyms_on_each_symbol", "register_ftrace_function", "ftrace_set_filter_ip"),
        *("set_memory_rw", "text_poke", "security_add_hooks", "stop_machine", "klp_enable_patch"),
    ),
}


def walk(directory: Path) -> Iterator[Path]:
    for above, below, files in os.walk(str(directory)):
        below.sort()
        for file in sorted(files):
            if _NAME.search(file):
                yield Path(above) / file


def named(path: Path) -> str:
    found = _NAME.search(path.name)
    assert found is not None
    return found["name"].replace("-", "_")


def contents(path: Path) -> bytes | None:
    """The module, unpacked; None where it cannot be read."""
    with contextlib.suppress(OSError, EOFError, zlib.error, lzma.LZMAError, ValueError):
        if path.suffix == ".zst":
            return _zstd(path)
        opener = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}.get(path.suffix, open)
        with opener(str(path), "rb") as file:  # type: ignore[operator]
            data: bytes = file.read(_LARGEST)
            return data
    return None


def _zstd(path: Path) -> bytes | None:
    tool = shutil.which("zstd")
    if tool is None:
        return None
    done = subprocess.run([tool, "-dcq", str(path)], stdout=subprocess.PIPE, timeout=30)
    return done.stdout[:_LARGEST] if done.returncode == 0 else None


def prints(data: bytes, line: str) -> bool:
    """Whether most of the line's words stand in the file together, numbers and names apart."""
    words = line.split()
    for size in range(len(words), max(1, len(words) // 2) - 1, -1):
        for begin in range(len(words) - size + 1):
            text = line_between(line, words, begin, size)
            if len(text) >= _SHORTEST and text.encode() in data:
                return True
    return False


def line_between(line: str, words: list[str], begin: int, size: int) -> str:
    """So many words of the line, with the blanks that stand between them."""
    at = 0
    for word in words[:begin]:
        at = line.index(word, at) + len(word)
    start = line.index(words[begin], at)
    at = start
    for word in words[begin : begin + size]:
        at = line.index(word, at) + len(word)
    return line[start:at]


def undefined(data: bytes) -> Iterable[str]:
    """The names that a relocatable ELF file uses and does not have; none where it is damaged."""
    with contextlib.suppress(struct.error, ValueError, IndexError, OverflowError):
        return _undefined(data)
    return []


def _undefined(data: bytes) -> list[str]:
    wide, headers = _sections(data)
    found: list[str] = []
    for _, kind, where, length, link in headers:
        if kind != _SYMBOLS:
            continue
        strings = data[headers[link][2] : headers[link][2] + headers[link][3]]
        entry = "<IBBHQQ" if wide else "<IIIBBH"
        step = struct.calcsize(entry)
        for place in range(where, min(where + length, len(data) - step + 1), step):
            fields = struct.unpack_from(entry, data, place)
            section = fields[3] if wide else fields[5]
            if section == 0 and fields[0]:  # SHN_UNDEF
                end = strings.index(b"\0", fields[0])
                found.append(strings[fields[0] : end].decode("ascii", "replace"))
    return found


def has_symbols(data: bytes) -> bool:
    """Whether there is a table of symbols: without one, nobody knows what the module uses."""
    with contextlib.suppress(struct.error, ValueError, IndexError, OverflowError):
        return any(section[1] == _SYMBOLS for section in _sections(data)[1])
    return False


def calls(data: bytes) -> dict[str, list[str]]:
    """What of ``CALLS`` the file uses: the meaning, and the functions."""
    symbols = set(undefined(data))
    found = {
        meaning: [function for function in functions if function in symbols]
        for meaning, functions in CALLS.items()
    }
    return {meaning: used for meaning, used in found.items() if used}


def modinfo(data: bytes) -> dict[str, str]:
    """What the module says of itself (modinfo(8)): the first value of each key."""
    found: dict[str, str] = {}
    for entry in _section_bytes(data, ".modinfo").split(b"\0"):
        key, mark, value = entry.decode("utf-8", "replace").partition("=")
        if mark:
            found.setdefault(key, value)
    return found


def build_id(data: bytes) -> str:
    """The linker's identity of the file, "" where it has none."""
    return note_build_id(_section_bytes(data, ".note.gnu.build-id"))


def note_build_id(note: bytes) -> str:
    """Of an ELF note, as /sys/module/NAME/notes/.note.gnu.build-id has it, too."""
    with contextlib.suppress(struct.error):
        name, length, kind = struct.unpack_from("<III", note)
        if kind == _GNU_BUILD_ID and name == 4:
            return note[16 : 16 + length].hex()
    return ""


def _section_bytes(data: bytes, wanted: str) -> bytes:
    """A section's content; nothing where there is no such section, or the file is damaged."""
    with contextlib.suppress(struct.error, ValueError, IndexError, OverflowError):
        for name, kind, where, length, _ in _sections(data)[1]:
            if name == wanted and kind != _NOBITS:
                return data[where : where + length]
    return b""


def _sections(data: bytes) -> tuple[bool, list[tuple[str, int, int, int, int]]]:
    """Whether it is 64-bit; and name, type, offset, size and link of each section."""
    if data[:4] != b"\x7fELF" or data[5] != 1:  # little-endian
        return False, []
    wide = data[4] == 2
    offset, size = (0x28, 0x3A) if wide else (0x20, 0x2E)
    begin = struct.unpack_from("<Q" if wide else "<I", data, offset)[0]
    each, count, strings = struct.unpack_from("<HHH", data, size)
    headers = [_section(data, begin + index * each, wide) for index in range(count)]
    texts = b""
    if strings < len(headers):
        texts = data[headers[strings][2] : headers[strings][2] + headers[strings][3]]
    named_ = []
    for at, kind, where, length, link in headers:
        text = texts[at : at + 64].split(b"\0", 1)[0].decode("ascii", "replace")
        named_.append((text, kind, where, length, link))
    return wide, named_


def _section(data: bytes, at: int, wide: bool) -> tuple[int, int, int, int, int]:
    """Place of the name, type, offset, size and link of a section header."""
    if wide:
        name, kind, _, _, where, length, link = struct.unpack_from("<IIQQQQI", data, at)
    else:
        name, kind, _, _, where, length, link = struct.unpack_from("<IIIIIII", data, at)
    return name, kind, where, length, link
