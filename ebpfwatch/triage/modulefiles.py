"""What the files of kernel modules tell about a log: whose line it is, who could have done it.

A line that the kernel printed is, numbers apart, a string in the file of whoever printed it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from ebpfwatch.triage import kofile
from ebpfwatch.triage.summary import Triage

__all__ = ["default_directory", "look_up"]

_SECONDS = 60.0  # for all files: one that is slow is not worth more


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
        data = kofile.contents(path)
        if data is None:
            unread.append(path.name)
            continue
        for line in lines:
            if (ours or not printers[line]) and kofile.prints(data, line):
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
    found = [(kofile.named(path), path) for path in kofile.walk(directory)]
    return sorted(found, key=lambda one: (one[0] not in foreign, one[0] not in triage.modules))


def _calls(name: str, data: bytes) -> str:
    if not kofile.has_symbols(data):
        return f"{name}: its table of symbols could not be read"
    parts = [f"{meaning}: {', '.join(used)}" for meaning, used in kofile.calls(data).items()]
    if not parts:
        return f"{name} calls none of the functions by which inodes or dentries are damaged"
    return f"{name} {'; '.join(parts)}"
