"""What the files of kernel modules tell about a log: whose line it is, who could have done it.

A line that the kernel printed is, numbers apart, a string in the file of whoever printed it.  What
a module calls is in its table of undefined symbols (ELF, elf(5)).
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
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from ebpfwatch.triage.summary import Triage

__all__ = ["default_directory", "look_up", "undefined"]

_SECONDS = 60.0  # for all files: one that is slow is not worth more
_LARGEST = 64 << 20  # bytes of one module, unpacked
_SHORTEST = 10  # characters of a line that must be found together
_NAME = re.compile(r"(?P<name>[\w-]+)\.ko(?:\.(?:gz|xz|bz2|zst))?$")

#: What a module may call, and what a mistake with it can do.
_CALLS = {
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


def default_directory(release: str) -> Path | None:
    """Where the modules of this very machine lie, if the log is of its kernel."""
    directory = Path("/lib/modules") / release
    ours = release == os.uname().release and directory.is_dir()
    return directory if ours else None


def look_up(triage: Triage, directory: Path, seconds: float = _SECONDS) -> list[str]:
    """Sentences; what was not looked through is said."""
    deadline = time.monotonic() + seconds
    files = _ordered(triage, directory)
    if not files:
        return [f"no files of modules below {directory}"]
    said = []
    unread: list[str] = []
    lines = [line.text for line in triage.repeated[:4]]
    printers: dict[str, list[str]] = {line: [] for line in lines}
    foreign = {module.name for module in triage.foreign()}
    late = looked = 0
    for name, path in files:
        if time.monotonic() > deadline:
            late = 1
            break
        looked += 1
        ours = name in foreign
        if not ours and all(printers.values()):
            break
        data = _contents(path)
        if data is None:
            unread.append(path.name)
            continue
        for line in lines:
            if (ours or not printers[line]) and _prints(data, line):
                printers[line].append(path.name + (" (out of tree)" if ours else ""))
        if ours:
            said.append(_calls(path.name, data))
    for line, names in printers.items():
        if names:
            said.insert(0, f'"{line}" is printed by {" or ".join(names[:4])}: the text is in it')
        elif not late:
            said.append(
                f'"{line}" is in no module below {directory}: the kernel itself prints it,'
                " or a module that is not there"
            )
    missing = sorted(foreign - {name for name, _ in files})
    if missing:
        said.append(f"there is no file of {', '.join(missing)} below {directory}")
    if unread:
        said.append(f"{len(unread)} files could not be read, such as {unread[0]}")
    if late:
        said.append(f"only {looked} of {len(files)} files were looked through in {seconds:.0f} s")
    return said


def _ordered(triage: Triage, directory: Path) -> list[tuple[str, Path]]:
    """Those that were loaded and are out of tree, those that were loaded, the rest."""
    foreign = {module.name for module in triage.foreign()}
    found = [(_named(path), path) for path in _walk(directory)]
    return sorted(found, key=lambda one: (one[0] not in foreign, one[0] not in triage.modules))


def _walk(directory: Path) -> Iterator[Path]:
    for above, below, files in os.walk(str(directory)):
        below.sort()
        for file in sorted(files):
            if _NAME.search(file):
                yield Path(above) / file


def _named(path: Path) -> str:
    found = _NAME.search(path.name)
    assert found is not None
    return found["name"].replace("-", "_")


def _contents(path: Path) -> bytes | None:
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


def _prints(data: bytes, line: str) -> bool:
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


def _calls(name: str, data: bytes) -> str:
    symbols = set(undefined(data))
    if not symbols:
        return f"{name}: its table of symbols could not be read"
    parts = []
    for meaning, functions in _CALLS.items():
        used = [function for function in functions if function in symbols]
        if used:
            parts.append(f"{meaning}: {', '.join(used)}")
    if not parts:
        return f"{name} calls none of the functions by which inodes or dentries are damaged"
    return f"{name} {'; '.join(parts)}"


def undefined(data: bytes) -> Iterable[str]:
    """The names that a relocatable ELF file uses and does not have; none where it is damaged."""
    with contextlib.suppress(struct.error, ValueError, IndexError, OverflowError):
        return _undefined(data)
    return []


def _undefined(data: bytes) -> list[str]:
    if data[:4] != b"\x7fELF" or data[5] != 1:  # little-endian
        return []
    wide = data[4] == 2
    offset, size, count = (0x28, 0x3A, 0x3C) if wide else (0x20, 0x2E, 0x30)
    begin = struct.unpack_from("<Q" if wide else "<I", data, offset)[0]
    each, sections = (struct.unpack_from("<H", data, place)[0] for place in (size, count))
    headers = [_section(data, begin + index * each, wide) for index in range(sections)]
    names: list[str] = []
    for kind, where, length, link in headers:
        if kind != 2:  # SHT_SYMTAB
            continue
        strings = data[headers[link][1] : headers[link][1] + headers[link][2]]
        entry = "<IBBHQQ" if wide else "<IIIBBH"
        step = struct.calcsize(entry)
        for place in range(where, min(where + length, len(data) - step + 1), step):
            fields = struct.unpack_from(entry, data, place)
            section = fields[3] if wide else fields[5]
            if section == 0 and fields[0]:  # SHN_UNDEF
                end = strings.index(b"\0", fields[0])
                names.append(strings[fields[0] : end].decode("ascii", "replace"))
    return names


def _section(data: bytes, at: int, wide: bool) -> tuple[int, int, int, int]:
    """Type, offset, size and link of a section header."""
    if wide:
        kind, _, _, where, length, link = struct.unpack_from("<IQQQQI", data, at + 4)
    else:
        kind, _, _, where, length, link = struct.unpack_from("<IIIIII", data, at + 4)
    return kind, where, length, link
