"""How the last boot ended: what survived of it, joined with what we knew while it lived.

While running, ``boot.json`` in the state directory says which boot this is, where the kernel and
its modules lie, and whether we were stopped in order.  The next start finds another boot's record
there, and looks for what the kernel left: pstore's records (also where systemd-pstore has moved
them), and the newest kernel dump.  The verdicts that the probes printed into the trace buffer are
read back from there, and their addresses named by module from ``boot.json``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ebpfwatch.host.modules import Module
from ebpfwatch.kernellog.traced import traced
from ebpfwatch.paths import Paths
from ebpfwatch.system import durable
from ebpfwatch.system.files import read_regular

__all__ = ["BootRecord", "LastBoot", "ended", "kernel_boot_id"]

_LONGEST = 4 << 20  # bytes of one surviving record that are looked at

# What the kernel says when it dies, at the beginning of a line of its log: in the middle of one it
# may be the name of a task or a mount option. A task of that name that crashes begins a line, too
# ("NAME[PID]: segfault at ..."), but a name has 15 characters (TASK_COMM_LEN): none of these fits.
_HEADLINE = re.compile(
    r"^(?:<\d+>)?(?:\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? )?"
    r"(Kernel panic - not syncing: [^\n]*|kernel BUG at [^\s\[\]]+:\d+![^\n]*"
    r"|Unable to handle kernel [^\n]*|BUG: unable to handle [^\n]*|Internal error: [^\n]*"
    r"|BUG: kernel NULL pointer dereference[^\n]*)",
    re.MULTILINE,
)

#: Records that hold the kernel's own words (fs/pstore/platform.c, pstore_type_names); pmsg is what
#: programs wrote to /dev/pmsg0.
_KERNELS = ("dmesg", "console", "ftrace")
#: Files of a dump: kdump-tools writes dump.DATE and dmesg.DATE, kexec-tools of others vmcore.
_DUMPS = ("dump.*", "vmcore*")


@dataclasses.dataclass
class BootRecord:
    """One boot as we knew it; ``text`` is the address of the kernel's _text, 0 if hidden.

    ``armed``: ftrace_dump_on_oops was set by us and is to be put back.
    """

    boot_id: str
    release: str
    started: float
    clean: bool = False
    text: int = 0
    test_page: tuple[int, int] = (0, 0)
    modules: tuple[Module, ...] = ()
    armed: bool = False

    def write(self, file: Path) -> None:
        """Replace the file at once, so that there is never half of one; raises ``OSError``."""
        durable.write(file, json.dumps(dataclasses.asdict(self)).encode())

    @classmethod
    def read(cls, file: Path) -> BootRecord | None:
        """The record, or None where there is none that can be read."""
        try:
            body: dict[str, Any] = json.loads(read_regular(file, _LONGEST))
            start, end = body["test_page"]
            return cls(
                str(body["boot_id"]),
                str(body["release"]),
                float(body["started"]),
                bool(body["clean"]),
                int(body["text"]),
                (int(start), int(end)),
                tuple(_module(**module) for module in body["modules"]),
                bool(body.get("armed")),
            )
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return None

    def name(self, address: int) -> str:
        """An address of that boot: by module, or as the offset into the kernel's text."""
        for module in self.modules:
            if module.start <= address < module.end:
                taints = f" ({module.taints})" if module.taints else ""
                return f"[{module.name}]+{address - module.start:#x}{taints}"
        if self.text and address >= self.text:
            return f"_text+{address - self.text:#x}"
        return f"{address:#x}" if address else "?"


def _module(name: str, start: int, end: int, taints: str) -> Module:
    return Module(str(name), int(start), int(end), str(taints))


def kernel_boot_id(paths: Paths) -> str:
    """The kernel's name for this boot; raises ``OSError``."""
    return (paths.proc / "sys/kernel/random/boot_id").read_text().strip()


@dataclasses.dataclass(frozen=True)
class LastBoot:
    """``how`` is "clean", "panic" or "unknown"; ``lines`` is the report, ``sources`` the files."""

    how: str
    lines: tuple[str, ...]
    sources: tuple[str, ...]


def ended(before: BootRecord, paths: Paths, findings: Iterable[str]) -> LastBoot:
    """Join what survived of the boot ``before``; ``findings`` are its last ones, a line each."""
    headlines: list[str] = []
    verdicts: list[str] = []
    sources: list[str] = []
    for file in _survivors(paths, before.started):
        try:
            text = read_regular(file, _LONGEST).decode("utf-8", "replace")
        except OSError:
            continue
        sources.append(str(file))
        for found in _HEADLINE.finditer(text):
            headlines.append(found.group(1).strip())
        for verdict in traced(text.splitlines()):
            if not before.test_page[0] <= verdict.object < before.test_page[1]:
                verdicts.append(verdict.text(before.name))
    dumps = [str(path) for path in _dumps(paths, before.started)]
    panicked = bool(headlines or dumps)
    how = "panic" if panicked else "clean" if before.clean else "unknown"
    says = {
        "panic": "in a kernel panic or oops",
        "clean": "in order",
        "unknown": "without any record: a reset, a hang, or a panic that left nothing to read",
    }
    lines = [f"the last boot ({before.release}, {before.boot_id}) ended {says[how]}"]
    lines += [f"the kernel said: {line}" for line in dict.fromkeys(headlines)]
    lines += [f"verdict in the trace buffer: {line}" for line in dict.fromkeys(verdicts)]
    lines += [f"finding on disk: {line}" for line in findings]
    lines += [f"dump: {path}" for path in dumps]
    return LastBoot(how, tuple(lines), tuple(sources))


def _survivors(paths: Paths, since: float) -> list[Path]:
    """The kernel's own records, of pstore itself or where systemd-pstore has moved them."""
    found = [p for where in (paths.sys / "fs/pstore", paths.pstore) for p in _since(where, since)]
    return sorted(p for p in found if p.name.startswith(_KERNELS) and _is_roots(p, p.is_file()))[
        :64
    ]


def _dumps(paths: Paths, since: float) -> list[Path]:
    """The newest directory of a kernel dump, if there is one.

    The place may be open to all (apport's is): only a directory of root's counts, with a dump in it
    that is root's and not empty.  Beside them kdump-tools keeps what it loaded (kexec_cmd, written
    at every boot) and a lock, and apport the crashes of programs: none of them says that the kernel
    died.
    """
    found = []
    for path in _since(paths.crash, since, "*"):
        with contextlib.suppress(OSError):
            if _is_roots(path, path.is_dir()):
                files = [file for pattern in _DUMPS for file in path.glob(pattern)]
                if any(_is_roots(file, file.lstat().st_size > 0) for file in files):
                    found.append(path)
    return found[-1:]


def _is_roots(path: Path, right: bool) -> bool:
    """Whether it is what it should be, and nobody but root could have made it or written it."""
    status = path.lstat()
    return right and status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022


def _since(directory: Path, since: float, pattern: str = "**/*") -> list[Path]:
    """What is below, oldest first, without what is of earlier boots.

    systemd-pstore moves files while we look: one that is gone is none.
    """
    found: list[tuple[float, Path]] = []
    with contextlib.suppress(OSError):
        for path in directory.glob(pattern):
            with contextlib.suppress(OSError):
                found.append((path.stat().st_mtime, path))
    return [path for changed, path in sorted(found) if changed >= since]
