"""Struct offsets and tracepoint signatures from the kernel's own BTF, through libbpf's reader.

Used in the loader child only: the parsed BTF costs megabytes.  Names are looked up, never versions.
"""

from __future__ import annotations

import ctypes
import errno
import os

from ebpfwatch.kernel.libbpf import library

__all__ = ["Btf", "BtfError", "module_fd"]

_KIND_PTR = 2
_KIND_STRUCT = 4
_KIND_UNION = 5
_KIND_TYPEDEF = 8
_KIND_FUNC = 12
_KIND_FUNC_PROTO = 13
_MODIFIERS = (8, 9, 10, 11, 18)  # typedef, volatile, const, restrict, type_tag
_DEEPEST = 32  # a damaged file may lead in circles


class BtfError(Exception):
    """A name the kernel's BTF does not have, or no BTF at all."""


class _BtfInfo(ctypes.Structure):
    """struct bpf_btf_info (linux/bpf.h, Linux >= 5.11)."""

    _fields_ = [
        ("btf", ctypes.c_uint64),
        ("btf_size", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("name", ctypes.c_uint64),
        ("name_len", ctypes.c_uint32),
        ("kernel_btf", ctypes.c_uint32),
    ]


def module_fd(module: str) -> int:
    """An fd of the BTF that the kernel holds of this module; raises ``OSError`` if it has none."""
    lib = library()
    identifier = ctypes.c_uint32()
    while lib.bpf_btf_get_next_id(identifier, ctypes.byref(identifier)) == 0:
        fd = int(lib.bpf_btf_get_fd_by_id(identifier))
        if fd < 0:
            continue
        name = ctypes.create_string_buffer(64)
        info = _BtfInfo(name=ctypes.addressof(name), name_len=len(name))
        size = ctypes.c_uint32(ctypes.sizeof(info))
        told = lib.bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)) == 0
        if told and info.kernel_btf and name.value == module.encode():
            return fd
        os.close(fd)
    raise OSError(errno.ENOENT, f"the kernel has no BTF of the module {module}")


class _Type(ctypes.Structure):
    _fields_ = [
        ("name_off", ctypes.c_uint32),
        ("info", ctypes.c_uint32),
        ("size_or_type", ctypes.c_uint32),
    ]

    @property
    def kind(self) -> int:
        return (int(self.info) >> 24) & 0x1F

    @property
    def count(self) -> int:
        return int(self.info) & 0xFFFF


class _Member(ctypes.Structure):
    _fields_ = [
        ("name_off", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("offset", ctypes.c_uint32),
    ]


class _Param(ctypes.Structure):
    _fields_ = [("name_off", ctypes.c_uint32), ("type", ctypes.c_uint32)]


class Btf:
    """The BTF of the running kernel, or of one of its modules, or of a detached file."""

    def __init__(self, module: str = "", file: str = "") -> None:
        lib = library()
        for name in ("btf__load_vmlinux_btf", "btf__load_module_btf", "btf__parse"):
            if hasattr(lib, name):
                getattr(lib, name).restype = ctypes.c_void_p
        if file:
            lib.btf__parse.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
            self._btf = lib.btf__parse(os.fsencode(file), None)
        elif module:
            base = Btf()
            lib.btf__load_module_btf.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
            self._base = base
            self._btf = lib.btf__load_module_btf(module.encode(), base._btf)
        else:
            if not os.path.exists("/sys/kernel/btf/vmlinux"):
                raise BtfError("no /sys/kernel/btf/vmlinux: the kernel has no BTF")
            self._btf = lib.btf__load_vmlinux_btf()
        # libbpf before 1.0 returns ERR_PTR.
        if not self._btf or self._btf > 2**64 - 4096:
            code = ctypes.get_errno() or errno.EINVAL
            # libbpf has errors of its own (from 4000) for what is no BTF.
            why = "it is no BTF" if code >= 4000 else os.strerror(code)
            raise BtfError(f"cannot read BTF {file or module or 'vmlinux'}: {why}")
        lib.btf__find_by_name_kind.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32]
        lib.btf__type_by_id.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        lib.btf__type_by_id.restype = ctypes.c_void_p
        lib.btf__name_by_offset.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        lib.btf__name_by_offset.restype = ctypes.c_char_p

    def offset(self, struct: str, member: str) -> int:
        """Byte offset of a member, looking through anonymous structs and unions.

        Raises ``BtfError`` if there is no such struct or member.
        """
        found = self._offset_bits(self._find(struct, _KIND_STRUCT), member)
        if found is None:
            raise BtfError(f"struct {struct} has no member {member}")
        return found // 8

    def struct(self, name: str) -> tuple[int, int]:
        """The type id of a struct, and its size in bytes; raises ``BtfError`` if there is none."""
        number = self._find(name, _KIND_STRUCT)
        return number, int(self._type(number)[0].size_or_type)

    def function(self, name: str) -> int:
        """The type id of a function (what fentry needs); 0 if BTF does not describe it."""
        found = library().btf__find_by_name_kind(self._btf, name.encode(), _KIND_FUNC)
        return max(0, int(found))

    def raw_tracepoint_arguments(self, name: str) -> list[str]:
        """The struct names of a raw tracepoint's arguments, "" for what is no struct pointer.

        The kernel passes ``args[i]``; the typedef ``btf_trace_NAME`` has one more argument before.
        """
        typedef = self._type(self._find(f"btf_trace_{name}", _KIND_TYPEDEF))[0]
        pointer, _ = self._type(typedef.size_or_type)
        proto, address = self._type(pointer.size_or_type)
        if proto.kind != _KIND_FUNC_PROTO:
            raise BtfError(f"btf_trace_{name} is not a function")
        params = (_Param * proto.count).from_address(address + ctypes.sizeof(_Type))
        return [self._pointee(param.type) for param in params[1:]]

    def _find(self, name: str, kind: int) -> int:
        identifier = library().btf__find_by_name_kind(self._btf, name.encode(), kind)
        if identifier <= 0:
            raise BtfError(f"BTF has no {name}")
        return int(identifier)

    def _type(self, identifier: int) -> tuple[_Type, int]:
        address = library().btf__type_by_id(self._btf, identifier)
        if not address:
            raise BtfError(f"BTF has no type {identifier}")
        return _Type.from_address(address), int(address)

    def _name(self, offset: int) -> str:
        return (library().btf__name_by_offset(self._btf, offset) or b"").decode(errors="replace")

    def _strip(self, identifier: int) -> int:
        for _ in range(_DEEPEST):
            if not identifier:
                return 0
            kind, _address = self._type(identifier)
            if kind.kind not in _MODIFIERS:
                return identifier
            identifier = kind.size_or_type
        raise BtfError(f"BTF type {identifier} leads in a circle")

    def _pointee(self, identifier: int) -> str:
        identifier = self._strip(identifier)
        if not identifier:
            return ""
        pointer, _ = self._type(identifier)
        if pointer.kind != _KIND_PTR:
            return ""
        target = self._strip(pointer.size_or_type)
        if not target:
            return ""
        struct, _ = self._type(target)
        return self._name(struct.name_off)

    def _offset_bits(self, identifier: int, wanted: str, depth: int = 0) -> int | None:
        if depth > _DEEPEST:
            raise BtfError(f"BTF type {identifier} contains itself")
        struct, address = self._type(self._strip(identifier))
        if struct.kind not in (_KIND_STRUCT, _KIND_UNION):
            return None
        bitfields = bool(struct.info >> 31)
        members = (_Member * struct.count).from_address(address + ctypes.sizeof(_Type))
        for member in members:
            name = self._name(member.name_off)
            bits = member.offset & 0xFFFFFF if bitfields else member.offset
            if name == wanted:
                return int(bits)
            if not name:
                inner = self._offset_bits(member.type, wanted, depth + 1)
                if inner is not None:
                    return int(bits) + inner
        return None
