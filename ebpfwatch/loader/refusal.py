"""The verifier's reason in one line, out of a log that may have a hundred thousand."""

from __future__ import annotations

import re

__all__ = ["last_words"]

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
