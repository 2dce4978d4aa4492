"""Loading a fentry program: by bpf(2) itself, because bcc can be told neither the target nor that
its ``support_kfunc()`` is wrong.

The layout is union bpf_attr's for BPF_PROG_LOAD (linux/bpf.h), up to attach_btf_obj_fd (Linux >=
5.11; before that the kernel takes a 0 there).
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import platform
from typing import Callable

from ebpfwatch.loader.refusal import last_words

__all__ = ["Function", "load_fentry"]

_BPF_CALL = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD = 5
_TRACING, _FENTRY = 26, 24
#: As much as the oldest kernel allows: before Linux 6.4 a log that is cut off lacks its end.
_LOG_BYTES = (1 << 24) - 1


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


def load_fentry(code: bytes, function: Function, name: str) -> int:
    """The fd of a program that stands at the entry of this function.

    Raises ``OSError``, with the verifier's reason if it had any.
    """
    if platform.machine() not in _BPF_CALL:
        raise OSError(38, f"fentry cannot be used on {platform.machine()}")
    call = ctypes.CDLL(None, use_errno=True).syscall
    instructions = ctypes.create_string_buffer(code, len(code))
    request = _ProgLoad(
        prog_type=_TRACING,
        insn_cnt=len(code) // 8,
        insns=ctypes.addressof(instructions),
        license=b"GPL",
        prog_name=name.encode()[:15],
        expected_attach_type=_FENTRY,
        attach_btf_id=function.btf_id,
        attach_btf_obj_fd=function.module_fd,
    )
    fd = _call(call, request)
    if fd >= 0:
        return fd
    errno = ctypes.get_errno()
    log = ctypes.create_string_buffer(_LOG_BYTES)
    request.log_level, request.log_size = 1, _LOG_BYTES
    request.log_buf = ctypes.addressof(log)
    _call(call, request)
    words = last_words(log.value.decode(errors="replace"))
    raise OSError(errno, f"loading {name}: {words or os.strerror(errno)}")


def _call(call: Callable[..., int], request: _ProgLoad) -> int:
    number = _BPF_CALL[platform.machine()]
    return int(call(number, _PROG_LOAD, ctypes.byref(request), ctypes.sizeof(request)))
