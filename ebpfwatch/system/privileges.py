"""Giving up what is not needed once the programs are loaded.

What a kernel asks for differs (map access needs CAP_BPF where unprivileged BPF is off before Linux
5.19, CAP_SYS_ADMIN before 5.8), so it is found by trying, not by version.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import Callable

__all__ = ["CAPABILITIES", "drop", "raised", "shed", "why_no_exe"]

#: Bits of linux/capability.h that the daemon may keep.
CAPABILITIES = {
    "dac_override": 1,
    "sys_ptrace": 19,
    "sys_admin": 21,
    "syslog": 34,
    "perfmon": 38,
    "bpf": 39,
}

#: What the daemon always keeps: the canary creates a file in directories of any owner; kallsyms
#: shows addresses to CAP_SYSLOG only where kptr_restrict is 1.
_KEEP = ("dac_override", "syslog")

_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Data(ctypes.Structure):
    _fields_ = [
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    ]


def drop(
    works: Callable[[], object],
    wanted: tuple[str, ...] = (),
    always: tuple[str, ...] = _KEEP,
    dormant: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """Keep as little as lets ``works`` run without ``PermissionError``; returns what was kept.

    ``always`` and ``wanted`` are kept in any case, where we have them: what the daemon cannot do
    without, and what the configuration asks for.  ``dormant`` are permitted but not in effect,
    until ``raised``.

    For this thread and those it starts later, so call it before starting any.  Raises ``OSError``
    where the kernel refuses, and ``PermissionError`` if even all capabilities are not enough.
    """
    had = _permitted()
    for extra in ((), ("bpf",), ("bpf", "sys_admin")):
        kept = [name for name in (*always, *wanted, *extra) if had >> CAPABILITIES[name] & 1]
        mask = sum(1 << CAPABILITIES[name] for name in kept)
        _set(mask, had)
        try:
            works()
            break
        except PermissionError:
            if extra == ("bpf", "sys_admin"):
                raise
    kept += [name for name in dormant if had >> CAPABILITIES[name] & 1 and name not in kept]
    permitted = sum(1 << CAPABILITIES[name] for name in kept)
    libc = ctypes.CDLL(None, use_errno=True)
    _set(had, had)  # the bounding set asks for CAP_SETPCAP
    for bit in range(64):
        # EINVAL ends the list; EPERM where we may not: the permitted set is what counts then.
        if not permitted >> bit & 1 and libc.prctl(_PR_CAPBSET_DROP, bit, 0, 0, 0) != 0:
            break
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _set(mask, permitted)
    return tuple(kept)


def shed(keep: tuple[str, ...]) -> None:
    """Give up, for this thread and for ever, what is not in effect or not in ``keep``."""
    left = _get("effective") & sum(1 << CAPABILITIES[name] for name in keep)
    _set(left, left)


@contextlib.contextmanager
def raised(name: str) -> Iterator[None]:
    """A dormant capability in effect, for this thread and only inside; nothing if it is gone."""
    before, permitted = _get("effective"), _permitted()
    _set(before | permitted & 1 << CAPABILITIES[name], permitted)
    try:
        yield
    finally:
        _set(before, permitted)


def why_no_exe(wanted: bool, kept: tuple[str, ...]) -> str:
    """For the log: that ``evidence.exe`` is asked for in vain, and what to do; "" if it is not."""
    if not wanted or "sys_ptrace" in kept:
        return ""
    return (
        "evidence.exe is true, but CAP_SYS_PTRACE is not there: findings will lack the executables"
        " of other users' processes; link /usr/share/ebpfwatch/evidence-exe.conf into"
        " /etc/systemd/system/ebpfwatch.service.d and restart, or set evidence.exe to false"
    )


def _permitted() -> int:
    return _get("permitted")


def _get(which: str) -> int:
    data = (_Data * 2)()
    _call("capget", data)
    return int(getattr(data[0], which)) | int(getattr(data[1], which)) << 32


def _set(effective: int, permitted: int) -> None:
    data = (_Data * 2)()
    for half in (0, 1):
        data[half].effective = effective >> 32 * half & 0xFFFFFFFF
        data[half].permitted = permitted >> 32 * half & 0xFFFFFFFF
    _call("capset", data)


def _call(name: str, data: ctypes.Array[_Data]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    header = _Header(_VERSION_3, 0)
    if getattr(libc, name)(ctypes.byref(header), ctypes.byref(data)) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{name}: {os.strerror(errno)}")
