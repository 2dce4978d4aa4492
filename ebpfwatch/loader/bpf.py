"""bpf(2) itself: maps are made and programs loaded by it, whether they were compiled just now or at
an earlier start.

bcc's loader would need the compiler in memory, and can be told neither a fentry program's target
nor that its ``support_kfunc()`` is wrong.  The layouts are union bpf_attr's (linux/bpf.h): for
BPF_MAP_CREATE up to map_name (Linux >= 4.15), for BPF_PROG_LOAD up to attach_btf_obj_fd (>= 5.11;
an older kernel takes a longer attribute whose rest is 0: bpf_check_uarg_tail_zero()).
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import platform
import struct

from ebpfwatch.loader.refusal import last_words

__all__ = [
    "EXIT",
    "PROGRAM_TYPES",
    "Function",
    "create_map",
    "instruction",
    "load_program",
]

_BPF_CALL = {"x86_64": 321, "aarch64": 280}
_MAP_CREATE, _PROG_LOAD = 0, 5
_FENTRY = 24  #: enum bpf_attach_type: BPF_TRACE_FENTRY
#: As much as the oldest kernel allows: before Linux 6.4 a log that is cut off lacks its end.
_LOG_BYTES = (1 << 24) - 1
#: The verifier gives up when a signal comes, and wants to be asked again (EAGAIN of bpf_check()).
_ATTEMPTS = 5

#: enum bpf_prog_type, by the kind of a rung.
PROGRAM_TYPES = {"kprobe": 2, "tracepoint": 5, "raw_tracepoint": 17, "fentry": 26}


def instruction(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    """One BPF instruction (struct bpf_insn)."""
    return struct.pack("<BBhi", code, src << 4 | dst, off, imm)


EXIT = instruction(0xB7) + instruction(0x95)  # r0 = 0; exit


class _MapCreate(ctypes.Structure):
    _fields_ = [
        ("map_type", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("numa_node", ctypes.c_uint32),
        ("map_name", ctypes.c_char * 16),
    ]


class _ProgLoad(ctypes.Structure):
    _fields_ = [
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_void_p),
        ("license", ctypes.c_char_p),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_void_p),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_name", ctypes.c_char * 16),
        ("prog_ifindex", ctypes.c_uint32),
        ("expected_attach_type", ctypes.c_uint32),
        ("prog_btf_fd", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("func_info", ctypes.c_uint64),
        ("func_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_uint64),
        ("line_info_cnt", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
    ]


@dataclasses.dataclass(frozen=True)
class Function:
    """A function that a fentry program stands in: its type, and the fd of its module's BTF (0 =
    vmlinux's).
    """

    btf_id: int
    module_fd: int = 0


def create_map(kind: int, key: int, value: int, entries: int, flags: int, name: str) -> int:
    """The fd of a new map; ``kind`` is of enum bpf_map_type, sizes are bytes.  Raises
    ``OSError``.
    """
    request = _MapCreate(
        map_type=kind,
        key_size=key,
        value_size=value,
        max_entries=entries,
        map_flags=flags,
        map_name=name.encode()[:15],
    )
    fd = _call(_MAP_CREATE, request)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"making the map {name}: {os.strerror(code)}")
    return fd


def load_program(
    kind: int,
    code: bytes,
    version: int,
    name: str = "probe",
    function: Function | None = None,
    explain: bool = True,
) -> int:
    """The fd of a program; ``kind`` is of ``PROGRAM_TYPES``, ``version`` is LINUX_VERSION_CODE
    (before Linux 5.0 a kprobe's program must carry the running kernel's), ``function`` is what a
    fentry program stands in.

    Raises ``OSError``; with ``explain`` it has the verifier's reason if there was any, which costs
    a second attempt with 16 MB for its log.
    """
    instructions = ctypes.create_string_buffer(code, len(code))
    request = _ProgLoad(
        prog_type=kind,
        insn_cnt=len(code) // 8,
        insns=ctypes.addressof(instructions),
        license=b"GPL",
        kern_version=version,
        prog_name=name.encode()[:15],
    )
    if function is not None:
        request.expected_attach_type = _FENTRY
        request.attach_btf_id = function.btf_id
        request.attach_btf_obj_fd = function.module_fd
    fd = -1
    for _ in range(_ATTEMPTS):
        fd = _call(_PROG_LOAD, request)
        if fd >= 0 or ctypes.get_errno() != errno.EAGAIN:
            break
    if fd >= 0:
        return fd
    failed = ctypes.get_errno()
    words = _reason(request) if explain else ""
    raise OSError(failed, f"loading {name}: {words or os.strerror(failed)}")


def _reason(request: _ProgLoad) -> str:
    log = ctypes.create_string_buffer(_LOG_BYTES)
    request.log_level, request.log_size = 1, _LOG_BYTES
    request.log_buf = ctypes.addressof(log)
    fd = _call(_PROG_LOAD, request)
    if fd >= 0:
        os.close(fd)
    return last_words(log.value.decode(errors="replace"))


def _call(command: int, request: ctypes.Structure) -> int:
    number = _BPF_CALL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"the number of bpf(2) on {platform.machine()} is not known")
    call = ctypes.CDLL(None, use_errno=True).syscall
    return int(call(number, command, ctypes.byref(request), ctypes.sizeof(request)))
