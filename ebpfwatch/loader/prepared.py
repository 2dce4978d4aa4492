"""What was chosen and compiled for one kernel, kept as a file for the next start.

Compiling takes a second and 140 MB, which a machine in trouble may not have. The file is root's
alone and checked like the findings: its owner, its mode, its size, a checksum, and what it was made
for.  Whatever is wrong with it is one line in the log, and everything is compiled again.

Invariant: what ``read`` returns was chosen and compiled for this build of the kernel and of ext4,
these probes, this command line and this configuration.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import re
import stat
from pathlib import Path

from ebpfwatch import __version__
from ebpfwatch.kernel.attach import perf_is_restricted
from ebpfwatch.kernel.hook import LoadedHook
from ebpfwatch.kernel.protocol import Features, LoadRequest
from ebpfwatch.loader.image import Image
from ebpfwatch.loader.places import Places, Source
from ebpfwatch.loader.running import lockdown
from ebpfwatch.paths import PROBES
from ebpfwatch.system import durable
from ebpfwatch.system.files import open_regular, why_not_ours
from ebpfwatch.system.imports import absent
from ebpfwatch.text.records import from_json, to_json

with absent("_hashlib"):
    import hashlib

__all__ = ["MadeFor", "Prepared", "Unusable", "made_for", "path_of", "read", "write"]

_FORMAT = 2
_MAX_BYTES = 4 << 20
_FILES_KEPT = 8  # a file for each kernel that is installed
_FORM = ".programs"

#: What of a request shapes the choice and the code; the rest is for the moment of loading.
_SHAPING = (
    "unit alloc any_free table_slots note_slots ring_bytes armed rungs btf trace names first_stacks"
).split()


class Unusable(Exception):
    """Why a file is not used, in words that follow its name."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """All that is needed to load, but for what only the running kernel tells (``image.HOLES``).

    ``learning`` are the rungs of probes/learn.c, which is ``learner``; ``tick_ns`` is 0 where the
    kernel's tick is not known.  ``unproven``: as in ``Loaded``, of the start that compiled it.
    """

    hooks: tuple[LoadedHook, ...]
    learning: tuple[LoadedHook, ...]
    features: Features
    offsets: dict[str, int]
    places: Places
    source: Source
    tick_ns: int
    unit: Image
    learner: Image
    unproven: str = ""


@dataclasses.dataclass(frozen=True)
class MadeFor:
    """What a file was made for: all must be the same at the next start."""

    format: int
    version: str
    probes: str
    kernel: str
    ext4: str
    machine: str
    command_line: str
    circumstances: str
    request: str


#: What is said of the first that differs.
_DIFFERS = {
    "format": "was written by another version of ebpfwatch",
    "version": "was written by another version of ebpfwatch",
    "probes": "was compiled from other probes",
    "kernel": "is of another build of the kernel",
    "ext4": "is of another build of ext4",
    "machine": "is of another kind of machine",
    "command_line": "was made under another command line of the kernel",
    "circumstances": "was made where the kernel allowed other hooks",
    "request": "was made for another configuration",
}


def made_for(request: LoadRequest, root: Path = Path("/")) -> MadeFor:
    """What a file must be made for to be used here and now; raises ``OSError``."""
    # The build id is in the kernel's notes where the linker wrote one (--build-id); its time and
    # its number are in /proc/version.
    kernel = _bytes(root / "sys/kernel/notes") + _bytes(root / "proc/version")
    module = root / "sys/module/ext4"
    ext4 = _bytes(module / "notes/.note.gnu.build-id") + _bytes(module / "srcversion")
    kprobes = (root / "sys/bus/event_source/devices/kprobe").exists()
    asked = {name: getattr(request, name) for name in _SHAPING}
    if request.btf:
        status = os.stat(request.btf)
        asked["btf"] = [request.btf, status.st_size, status.st_mtime_ns]
    return MadeFor(
        _FORMAT,
        __version__,
        _sum(b"".join(map(_bytes, _sources()))),
        _sum(kernel),
        _sum(ext4),
        f"{platform.machine()} {os.sysconf('SC_PAGE_SIZE')}",
        # Parameters switch off kprobes, ftrace or mitigations; the text may hold a password.
        _sum(_bytes(root / "proc/cmdline")),
        f"kprobes={kprobes} lockdown={lockdown()} perf_restricted={perf_is_restricted()}",
        json.dumps(asked),
    )


def _sources() -> list[Path]:
    """All that decides what comes out of the compiler: the probes, and how they are compiled."""
    package = Path(__file__).parents[1]
    files = [file for file in PROBES.rglob("*") if file.is_file()]
    return sorted((*files, *package.glob("loader/*.py"), *package.glob("catalogue/*.py")))


def path_of(directory: Path, unit: str) -> Path:
    """The file of the running kernel."""
    release = re.sub(r"[^\w.+~-]", "_", platform.release())
    return directory / f"{unit.partition('.')[0]}-{release}{_FORM}"


def read(path: Path, wanted: MadeFor) -> Prepared:
    """What the file holds; raises ``Unusable``."""
    try:
        why_not = why_not_ours(path.parent)
        data = b"" if why_not else _read(path)
    except FileNotFoundError:
        raise Unusable("does not exist yet") from None
    except OSError as error:
        raise Unusable(f"cannot be read: {error.strerror}") from None
    if why_not:
        raise Unusable(f"is not trusted: {why_not}")
    seal, _, rest = data.partition(b"\n")
    head, _, body = rest.partition(b"\n")
    if seal != _sum(rest).encode():
        raise Unusable("is damaged: its checksum is another one")
    try:
        for name, value in json.loads(head).items():
            if getattr(wanted, name) != value:
                raise Unusable(_DIFFERS[name])
        return from_json(Prepared, json.loads(body))
    except (ValueError, AttributeError, KeyError, RecursionError) as error:
        raise Unusable(f"is not understood: {error}") from None


def _read(path: Path) -> bytes:
    with os.fdopen(open_regular(path, os.O_NOFOLLOW), "rb") as file:
        status = os.fstat(file.fileno())
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid != os.geteuid():
            raise Unusable(f"is not trusted: it belongs to user {status.st_uid}")
        if mode & 0o077:
            raise Unusable(f"is not trusted: others have access to it (mode {mode:o})")
        if status.st_size > _MAX_BYTES:
            raise Unusable("is not trusted: it is too large")
        return file.read(_MAX_BYTES)


def write(path: Path, wanted: MadeFor, prepared: Prepared) -> None:
    """Keep it; raises ``OSError`` and then leaves nothing, and forgets the oldest files of other
    kernels.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    why_not = why_not_ours(path.parent)
    if why_not:
        raise OSError(0, why_not)
    head, body = (json.dumps(to_json(record)).encode() for record in (wanted, prepared))
    rest = b"\n".join((head, body, b""))
    durable.write(path, _sum(rest).encode() + b"\n" + rest)
    with contextlib.suppress(OSError):
        ours = sorted(path.parent.glob(f"*{_FORM}"), key=lambda file: file.stat().st_mtime)
        for old in ours[:-_FILES_KEPT]:
            old.unlink()


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _bytes(file: Path) -> bytes:
    """What a file holds; nothing where there is none (a kernel without notes, ext4 built in)."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""
