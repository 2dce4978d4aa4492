"""Opens a dump, or the running kernel, with drgn; says what is missing in one line.

drgn is optional (``pip install drgn``) and works on another machine's dump, also
of another architecture.  It needs the debug information of exactly that build of the kernel, or,
since Linux 6.0, nothing but the dump: then the types are those of the kernel's own BTF.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.postmortem import btf

__all__ = ["add_vmlinux", "import_drgn", "open_program"]

#: How the files of makedumpfile begin; the second is the one for pipes (makedumpfile -F).
_KDUMP = (b"KDUMP   ", b"DISKDUMP")
_FLATTENED = b"makedumpfile"
#: Of drgn: the first with Program.main_module(), and Debian 13's.  What later ones have besides is
#: told where it lacks; one before 0.1 reads no ELF dump of an arm64 machine that QEMU made.
_OLDEST = "0.0.31"
_HOW = (
    "apt-get install python3-drgn (Debian 13), .venv/bin/pip install 'drgn>=0.1' in a clone, or in"
    " a venv (docs/audit.md)"
)
_KCORE = Path("/proc/kcore")


def add_vmlinux(parser: argparse.ArgumentParser) -> None:
    """The option of every command that reads a dump."""
    parser.add_argument(
        "--vmlinux",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="debug information of its kernel, or of a module; may be repeated"
        " (default: where drgn looks on this machine)",
    )


def import_drgn() -> Any:
    """The module; raises ``EbpfwatchError`` where it is not installed."""
    try:
        import drgn
    except ImportError:
        raise EbpfwatchError(
            "the Python module drgn is missing",
            f"install it: {_HOW}",
            Exit.UNAVAILABLE,
        ) from None
    version = getattr(drgn, "__version__", "")
    if _numbers(version) < _numbers(_OLDEST):
        raise EbpfwatchError(
            f"drgn {version} is too old: it lacks what is needed here",
            f"{_OLDEST} or later is needed: {_HOW}",
            Exit.UNAVAILABLE,
        )
    return drgn


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def open_program(vmcore: Path | None, symbols: Sequence[Path]) -> Any:
    """drgn's program of a dump, or of the running kernel (None), with its debug information."""
    compressed = vmcore is not None and _is_compressed(vmcore)  # what a file lacks comes first
    drgn = import_drgn()
    program = drgn.Program()
    if vmcore is None:
        _set_live(drgn, program)
    else:
        _set_dump(drgn, program, vmcore, compressed)
    # Its own lines about files that do not belong are told by the error below, in one.
    logging.getLogger("drgn").setLevel(logging.CRITICAL)
    what = "the running kernel" if vmcore is None else str(vmcore)
    try:
        program.load_debug_info([str(path) for path in symbols], main=not symbols)
        program.type("struct dentry")
        banner = bytes(program["linux_banner"].string_())
    except (drgn.MissingDebugInfoError, drgn.FaultError, LookupError, OSError, ValueError) as error:
        why = _why(drgn, error, symbols)
        if not symbols:
            why = _by_its_btf(drgn, program, vmcore is None, why)
            if not why:
                return program
        raise EbpfwatchError(
            f"no debug information of exactly the kernel of {what}{_build(program)}: {why}",
            "give its vmlinux with --vmlinux (Debian: the package linux-image-RELEASE-dbg)",
            Exit.UNAVAILABLE,
        ) from None
    _same_build(program, banner, what)
    return program


def _by_its_btf(drgn: Any, program: Any, live: bool, why: str) -> str:
    """Read with the kernel's own BTF; "", or why neither that nor debug information is there."""
    try:
        btf.add(drgn, program, live)
        program.type("struct dentry")
        program["linux_banner"].string_()
    except (drgn.FaultError, LookupError, ValueError) as error:
        return f"{why}; and without it, {error}"
    return ""


def _why(drgn: Any, error: Exception, symbols: Sequence[Path]) -> str:
    if isinstance(error, drgn.FaultError):
        # As drgn before 0.1 with an arm64 dump of QEMU's: "recursive address translation".
        return f"drgn {drgn.__version__} cannot read it, a newer one may ({error})"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    if symbols and isinstance(error, LookupError):
        return "what was given is of another build, or has none"
    return "none was found" if isinstance(error, drgn.MissingDebugInfoError) else str(error)


def _set_live(drgn: Any, program: Any) -> None:
    if not _KCORE.exists():
        raise EbpfwatchError(
            f"the running kernel cannot be read: there is no {_KCORE}",
            "it needs CONFIG_PROC_KCORE; read a dump instead",
            Exit.UNAVAILABLE,
        )
    if os.geteuid() != 0:
        raise EbpfwatchError(f"{_KCORE} is for root alone", "run as root", Exit.NOPERM)
    try:
        program.set_kernel()
    except (OSError, ValueError, drgn.FaultError) as error:
        raise EbpfwatchError(
            f"the running kernel cannot be read: {error}",
            "a lockdown of the kernel (confidentiality) forbids it",
            Exit.UNAVAILABLE,
        ) from None


def _is_compressed(vmcore: Path) -> bool:
    """Whether it is in makedumpfile's own format; raises ``EbpfwatchError`` for no dump at all."""
    if not vmcore.is_file():
        raise EbpfwatchError(f"no file {vmcore}", "give a vmcore", Exit.USAGE)
    try:
        with open(vmcore, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise EbpfwatchError(f"cannot read {vmcore}: {error.strerror}", "", Exit.NOPERM) from None
    if head.startswith(_FLATTENED):
        raise EbpfwatchError(
            f"{vmcore} is a dump that makedumpfile sent through a pipe (flattened)",
            f"put it together first: makedumpfile -R NEW <{vmcore}",
            Exit.USAGE,
        )
    return head.startswith(_KDUMP)


def _set_dump(drgn: Any, program: Any, vmcore: Path, compressed: bool) -> None:
    if compressed and not getattr(drgn, "_with_libkdumpfile", True):
        raise EbpfwatchError(
            f"{vmcore} is a compressed dump of makedumpfile, and this drgn was built without"
            " libkdumpfile",
            "install drgn with pip, whose packages have it, or makedumpfile's vmcore as ELF (-E)",
            Exit.UNAVAILABLE,
        )
    try:
        program.set_core_dump(str(vmcore))
    except Exception as error:  # what libkdumpfile says comes as nothing more special
        raise EbpfwatchError(
            f"{vmcore} is no kernel dump that drgn can read: {error}",
            "an ELF or kdump-compressed vmcore is needed",
            Exit.USAGE,
        ) from None


def _build(program: Any) -> str:
    """The build id, where the dump has one: since Linux 5.9 in its vmcoreinfo."""
    try:
        build_id = program.main_module().build_id
    except (LookupError, AttributeError):
        return ""
    return f" (build id {build_id.hex()})" if build_id else ""


def _same_build(program: Any, banner: bytes, what: str) -> None:
    """Before Linux 5.9 a dump has no build id (VMCOREINFO_BUILD_ID()), so that drgn takes a file of
    another build; the banner has the time of the build.
    """
    try:
        file = program.main_module().debug_file_path
        content = Path(file).read_bytes() if file else b""
    except (LookupError, AttributeError, OSError):
        return
    if content and banner not in content:
        raise EbpfwatchError(
            f"{file} is the debug information of another build than the kernel of {what},"
            f" which is {banner.decode('utf-8', 'replace').strip()}",
            "give the vmlinux of exactly that build: with another one every figure would be wrong",
            Exit.UNAVAILABLE,
        )
