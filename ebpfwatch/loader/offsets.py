"""Where the kernel keeps what we read: from BTF, else from the running kernel's headers.

``vfs_inode`` inside ``ext4_inode_info`` is in no header and, where ext4 is a module, not in
vmlinux's BTF; it is learned from an inode of our own (``learn``).
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import struct
import time
from pathlib import Path

from ebpfwatch.catalogue.ladder import Attachment
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.kernel.attach import attach_or_fail
from ebpfwatch.kernel.libbpf import map_lookup
from ebpfwatch.loader.btf import Btf, BtfError
from ebpfwatch.loader.compiler import Compiler
from ebpfwatch.loader.image import Module
from ebpfwatch.loader.members import MEMBERS, OPTIONAL
from ebpfwatch.system.files import why_not_roots

__all__ = [
    "from_btf",
    "from_headers",
    "have_headers",
    "headers",
    "missing",
    "refuse_others",
]

_FIRST_OPTIONAL = 26

_SECONDS = 2.0


def from_btf(btf: Btf) -> dict[str, int]:
    """Bytes by define; raises ``EbpfwatchError`` naming the member that is not there."""
    try:
        found = {define: _offset(btf, *where) for define, where in MEMBERS.items()}
    except BtfError as error:
        raise EbpfwatchError(
            f"the kernel's types are not what the probes know: {error}",
            "report it with the output of `uname -a`",
            Exit.UNAVAILABLE,
        ) from None
    for define, where in OPTIONAL.items():
        with contextlib.suppress(BtfError):
            found[define] = _offset(btf, *where)
    return found


def _offset(btf: Btf, outer: str, member: str, inner: tuple[str, ...]) -> int:
    return btf.offset(outer, member) + (btf.offset(*inner) if inner else 0)


def headers() -> Path:
    """Where the running kernel's headers belong."""
    return Path(f"/lib/modules/{platform.release()}/build")


def have_headers() -> bool:
    """Whether any are there."""
    return (headers() / "include").is_dir()


def missing(why_no_btf: str, why_not_found: str = "") -> EbpfwatchError:
    """The error where nobody tells the offsets, and they cannot be found either."""
    found = f", and they were not found in files of ours: {why_not_found}" if why_not_found else ""
    return EbpfwatchError(
        f"{why_no_btf}, and there are no kernel headers in {headers()}{found}",
        "install the headers of this kernel, or name BTF of it in hooks.btf: `pahole"
        " --btf_encode_detached FILE vmlinux` makes it from the vmlinux with debug info of"
        " this very build, on any machine",
        Exit.UNAVAILABLE,
    )


def _release(tree: Path) -> str:
    """Of which kernel they are (UTS_RELEASE); "" if they do not say."""
    try:
        text = (tree / "include/generated/utsrelease.h").read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
    found = re.search(r'^#define UTS_RELEASE "(.*)"', text, re.MULTILINE)
    return found.group(1) if found else ""


def refuse_others(tree: Path) -> None:
    """Raises ``EbpfwatchError`` (exit 78) where somebody else could exchange the headers.

    `make modules_install` links ``build`` to the tree of whoever compiled the kernel: what root
    then compiles would be that user's choice.
    """
    for place in (tree, tree / "include", tree / "arch"):
        try:
            why_not = why_not_roots(str(place))
        except OSError as error:
            why_not = f"{place}: {error.strerror}"
        if why_not:
            raise EbpfwatchError(
                f"the kernel's headers in {tree} are not root's alone: {why_not}",
                "give them to root and nobody else, or name BTF of this kernel in hooks.btf",
                Exit.CONFIG,
            )


def from_headers(compiler: Compiler, why_no_btf: str) -> dict[str, int]:
    """Bytes by define, from /lib/modules/.../build; raises ``EbpfwatchError`` without headers."""
    tree = headers()
    if not have_headers():
        raise missing(why_no_btf)
    release = _release(tree)
    if release not in ("", platform.release()):
        raise EbpfwatchError(
            f"the headers in {tree} are those of {release}, and this kernel is"
            f" {platform.release()}",
            "install the headers of this kernel",
            Exit.CONFIG,
        )
    refuse_others(tree)
    module = Module(compiler.compile_with_headers("offsets.c", tree), compiler.version, {})
    program = module.load("raw_tracepoint", "find_offsets")
    place = Attachment("sys_enter", "find_offsets")
    link = attach_or_fail("raw_tracepoint", program, place, place.target)
    try:
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            values = {
                define: struct.unpack("<Q", map_lookup(module.map("offsets"), index, 8))[0]
                for table, first in ((MEMBERS, 0), (OPTIONAL, _FIRST_OPTIONAL))
                for index, define in enumerate(table, first)
            }
            if all(values[define] for define in MEMBERS):
                return {define: value - 1 for define, value in values.items() if value}
    finally:
        os.close(link)
        module.close()
    raise EbpfwatchError(
        "the offsets program did not run", "see `ebpfwatch check --verbose`", Exit.SOFTWARE
    )
