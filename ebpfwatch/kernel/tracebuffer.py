"""The kernel's trace buffer, made ready to carry verdicts through an oops.

A verdict is printed there by the probe itself, before the kernel goes on, so it is there even if
the machine dies of that very free; ``ftrace_dump_on_oops`` then prints the buffer to the console,
and with it into pstore and vmcore-dmesg.

Harm is kept out: a buffer that nobody uses yet would grow to 1.4 MB a CPU with the first print, so
it is set to ``KB`` before; one that others use is left as it is and not dumped, for on a slow
console that could take minutes.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

__all__ = ["KB", "SYSCTL", "Dump", "prepare", "restore"]

KB = 32  #: a CPU
SYSCTL = "sys/kernel/ftrace_dump_on_oops"  #: below /proc


@dataclasses.dataclass(frozen=True)
class Dump:
    """What was done: ``changed`` if ftrace_dump_on_oops was set by us; ``why_not`` else."""

    changed: bool
    why_not: str


def prepare(tracing: Path, sysctl: Path, dump: bool) -> Dump:
    """Size the buffer and, with ``dump``, arm the dump; never raises."""
    try:
        size = (tracing / "buffer_size_kb").read_text().strip()
        if "expanded" in size:
            (tracing / "buffer_size_kb").write_text(str(KB))
        elif not size.isdigit() or int(size) > 2 * KB:  # the kernel rounds what it is given
            return Dump(False, f"the trace buffer is in use by others ({size} KB a CPU)")
        tracer = (tracing / "current_tracer").read_text().strip()
        if tracer != "nop":
            return Dump(False, f"the tracer {tracer} is running")
    except OSError as error:
        return Dump(False, f"no trace buffer: {error.filename}: {error.strerror}")
    if not dump:
        return Dump(False, "switched off: evidence.dump_on_oops is false")
    try:
        if sysctl.read_text().strip() != "0":
            return Dump(False, "")
        sysctl.write_text("1")
    except OSError as error:
        # A refused write(2) has no filename; a refused open(2) has.
        return Dump(False, f"{sysctl}: {error.strerror}")
    return Dump(True, "")


def restore(sysctl: Path) -> None:
    """Take back what ``prepare`` changed; never raises."""
    with contextlib.suppress(OSError):
        sysctl.write_text("0")
