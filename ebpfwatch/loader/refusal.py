"""The verifier's reason in one line, out of a log that may have a hundred thousand."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Callable

__all__ = ["last_words", "overheard"]

_TAIL = 65536
_LONGEST = 300

#: What a log is full of besides the reason: instructions and the C they come from, registers,
#: where a path forked, statistics; bcc's headline and its hints, which follow the reason.
_NOISE = re.compile(
    r"\d+: |;|R\d+(_\w+)?=|(cur|old) state:|from \d+ to \d+|frame ?\d+|mark_precise|propagating"
    r"|regs=|last_idx|parent (didn't|already)|caller:|callee:|returning from callee|func#\d+ @"
    r"|processed \d+ insns|verification time|stack depth|bpf: Failed to load|HINT:"
)


def last_words(log: str) -> str:
    """The last line that says something; "" if none does."""
    lines = (line.strip() for line in log.splitlines())
    said = [line for line in lines if line and not _NOISE.match(line)]
    return said[-1][:_LONGEST] if said else ""


@contextlib.contextmanager
def overheard(echo: bool) -> Iterator[Callable[[], str]]:
    """What C code writes on stderr inside; ``echo``: show it afterwards, too.

    bcc prints the verifier's log there and tells nobody else. Only its end is kept: the reason is
    there, and a log may have megabytes.
    """
    kept, heard = os.dup(2), os.memfd_create("overheard")
    os.dup2(heard, 2)

    def tail() -> str:
        size = os.fstat(heard).st_size
        start = max(0, size - _TAIL)
        return os.pread(heard, size - start, start).decode(errors="replace")

    try:
        yield tail
    finally:
        os.dup2(kept, 2)
        if echo:
            os.write(kept, tail().encode())
        os.close(kept)
        os.close(heard)
