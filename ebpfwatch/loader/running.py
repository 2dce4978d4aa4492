"""What the running kernel tells without loading anything: its true version, its symbols."""

from __future__ import annotations

import ctypes
import re
import struct
from pathlib import Path

__all__ = ["capabilities_missing", "find_symbols", "lockdown", "version_code"]

_AT_SYSINFO_EHDR = 33
_PT_NOTE = 4
_CAP_PERFMON, _CAP_BPF, _CAP_SYS_ADMIN = 38, 39, 21


def version_code() -> int:
    """LINUX_VERSION_CODE of the running kernel; 0 if the vDSO does not tell.

    From the vDSO's "Linux" note, not from ``uname -r``: a distribution's 4.19.0 may be 4.19.90
    inside, and before Linux 5.0 a kprobe program must carry the exact number.
    """
    base = ctypes.CDLL(None).getauxval
    base.restype = ctypes.c_ulong
    address = base(ctypes.c_ulong(_AT_SYSINFO_EHDR))
    if not address:
        return 0
    head = ctypes.string_at(address, 64)
    (phoff,) = struct.unpack_from("<Q", head, 32)
    entry_size, entries = struct.unpack_from("<HH", head, 54)
    for index in range(entries):
        header = ctypes.string_at(address + phoff + index * entry_size, 56)
        kind, _, offset, _, _, size = struct.unpack_from("<IIQQQQ", header)
        if kind == _PT_NOTE:
            code = _version_note(ctypes.string_at(address + offset, size))
            if code:
                return code
    return 0


def _version_note(notes: bytes) -> int:
    position = 0
    while position + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, position)
        name = notes[position + 12 : position + 12 + name_size]
        start = position + 12 + (name_size + 3) // 4 * 4
        if name == b"Linux\0" and kind == 0 and size >= 4:
            return int(struct.unpack_from("<I", notes, start)[0])
        position = start + (size + 3) // 4 * 4
    return 0


#: The cold part of a function is jumped to, not called: a probe there sees nothing.  ``.part.N`` is
#: what is left of a function whose beginning was inlined: it is reached by some of the calls only.
_PIECE = re.compile(r"\b(cold|part)\b")
#: These take other arguments than their source says, where the compiler knows all callers.
_OTHER_ARGUMENTS = re.compile(r"\b(isra|constprop)\b")
#: Static, not called by pointer, and hooked for its argument (the other such functions are
#: exported, or in a table of operations, so that they keep theirs).
_ARGUMENT_MATTERS = frozenset({"destroy_inode"})


def find_symbols(wanted: set[str], kallsyms: Path = Path("/proc/kallsyms")) -> dict[str, str]:
    """Which function each wanted name goes by, in one pass: itself, or ``name.isra.0`` and its
    like.

    A name that is not there is left out.
    """
    found: dict[str, str] = {}
    with open(kallsyms, encoding="ascii", errors="replace") as lines:
        for line in lines:
            fields = line.split(None, 3)
            if len(fields) < 3 or fields[1] not in "tTwW":
                continue
            stem, dot, suffix = fields[2].partition(".")
            if stem not in wanted or (dot and stem in found) or _PIECE.search(suffix):
                continue
            if stem in _ARGUMENT_MATTERS and _OTHER_ARGUMENTS.search(suffix):
                continue
            found[stem] = fields[2]
    return found


def lockdown(file: Path = Path("/sys/kernel/security/lockdown")) -> str:
    """The lockdown that is on ("integrity", "confidentiality"); "" = none, or securityfs is not
    there.
    """
    try:
        chosen = re.search(r"\[(\w+)\]", file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return ""
    return chosen.group(1) if chosen and chosen.group(1) != "none" else ""


def capabilities_missing(status: str | None = None) -> str:
    """An empty string if this process may load tracing programs, else the capability it lacks."""
    text = Path("/proc/self/status").read_text() if status is None else status
    effective = next(
        (int(line.split()[1], 16) for line in text.splitlines() if line.startswith("CapEff:")), 0
    )
    if effective >> _CAP_SYS_ADMIN & 1:
        return ""
    if effective >> _CAP_BPF & 1 and effective >> _CAP_PERFMON & 1:
        return ""
    return "CAP_BPF and CAP_PERFMON (CAP_SYS_ADMIN before Linux 5.8)"
