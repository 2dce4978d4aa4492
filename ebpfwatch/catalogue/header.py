"""probes/contract.h, written from the catalogue.

`make contract` writes it; a test says when the file is not what this would write.
"""

from __future__ import annotations

import enum
import textwrap
from collections.abc import Iterable

from ebpfwatch.catalogue.counters import ROWS
from ebpfwatch.catalogue.layout import (
    BITS,
    CONSTANTS,
    FLAG_WORDS,
    STRUCTS,
    Broken,
    Flag,
    LifeFlag,
    Member,
    NoteFlag,
    RecordKind,
    State,
    Struct,
)
from ebpfwatch.catalogue.roles import Hook
from ebpfwatch.catalogue.verdicts import Verdict

__all__ = ["text"]

_HEAD = """\
/*
 * The contract between the probes and user space: every struct that crosses the border, and the
 * numbers in it.
 *
 * GENERATED from ebpfwatch/catalogue by `make contract`: change it there.
 * Invariant: fixed-width members only, no implicit padding, no pointer.
 */
/* clang-format off */
#ifndef EBPFWATCH_CONTRACT_H
#define EBPFWATCH_CONTRACT_H
"""

_C_TYPES = {
    "u8": "__u8",
    "u16": "__u16",
    "u32": "__u32",
    "u64": "__u64",
    "s32": "__s32",
    "char": "char",
    "bytes": "char",
}

_WIDTH = 96  # columns of a comment's lines


def text() -> str:
    """The whole header."""
    hooks = sorted((hook.number, hook.name, "") for hook in Hook)
    verdicts = sorted((verdict.number, verdict.name, "") for verdict in Verdict)
    counted = [row for row in ROWS if row.kernel]
    counters = [(number, row.kernel, row.means) for number, row in enumerate(counted)]
    parts = [
        _HEAD,
        _enum("hook", "HOOK", hooks, "The roles, in the order of an object's life.", count=True),
        _enum("state", "STATE", [(s.value, s.name, "") for s in State], _doc(State)),
        _enum("verdict", "VERDICT", [(0, "NONE", ""), *verdicts], ""),
        _enum("record_kind", "RECORD", [(k.value, k.name, k.words) for k in RecordKind], ""),
        _enum(
            "counter",
            "COUNTER",
            counters,
            "Totals, one slot each in the per-CPU array `counters`.",
            count=True,
        ),
        _defines(CONSTANTS, ""),
        _comment("The lowest bits of a bucket's key: the object's state, changed at once with it.")
        + _defines(BITS, "ull"),
        _flags("LIFE_", LifeFlag),
        _flags("NOTE_", NoteFlag),
        _flags("", Flag),
        _flags("BROKEN_", Broken),
        *map(_struct, STRUCTS),
        "#endif\n",
    ]
    return "\n".join(parts)


def _doc(thing: type[enum.Enum]) -> str:
    return (thing.__doc__ or "").strip()


def _comment(words: str, indent: str = "") -> str:
    if not words:
        return ""
    if len(words) + len(indent) <= _WIDTH - 6:
        return f"{indent}/* {words} */\n"
    lines = textwrap.wrap(words, _WIDTH - 3)
    return "".join([f"{indent}/*\n", *(f"{indent} * {line}\n" for line in lines), f"{indent} */\n"])


def _enum(
    name: str, prefix: str, rows: Iterable[tuple[int, str, str]], above: str, count: bool = False
) -> str:
    lines: list[str] = [_comment(above), f"enum {name} {{\n"]
    for number, word, comment in rows:
        lines += [_comment(comment, "\t"), f"\t{prefix}_{word} = {number},\n"]
    if count:
        lines.append(f"\t{prefix}_COUNT,\n")
    return "".join([*lines, "};\n"])


def _defines(rows: Iterable[tuple[str, int, str]], suffix: str) -> str:
    return "".join(
        f"#define {name} {value}{suffix}" + (f" /* {words} */" if words else "") + "\n"
        for name, value, words in rows
    )


def _flags(prefix: str, flags: type[enum.IntFlag]) -> str:
    rows = [(f"{prefix}{flag.name}", flag.value, FLAG_WORDS[flags][flag]) for flag in flags]
    return _comment(_doc(flags)) + _defines(rows, "u")


def _member(member: Member) -> str:
    kind = _C_TYPES.get(member.kind, f"struct {member.kind}")
    array = f"[{member.count}]" if member.count else ""
    comment = f" /* {member.comment} */" if member.comment else ""
    return f"\t{kind} {member.name}{array};{comment}\n"


def _struct(struct: Struct) -> str:
    members = "".join(map(_member, struct.members))
    return f"{_comment(struct.comment)}struct {struct.name} {{\n{members}}};\n"


if __name__ == "__main__":
    print(text(), end="")
