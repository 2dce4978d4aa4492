"""One log record after another, whatever the log went through: dmesg, journal, pstore, console.

Reads as a stream and holds one line at a time, so a log of any size needs the same memory.  Never
raises for what is in the log; what had to be cut or skipped is counted.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ebpfwatch.kernellog.report import Record

__all__ = ["OWN", "Counts", "plain_records", "records"]

#: How our own findings begin in the kernel's log; they came from user space and are welcome.
OWN = "ebpfwatch: "

_LINE = 16384  # characters of one line that are looked at; the longest in the wild are module lists
_JOINED = 32768
_NARROWEST = 60  # columns: below that a short line is a short line, not a wrapped one


@dataclasses.dataclass
class Counts:
    """What was read: lines, those too long, those joined because they were wrapped, those with
    bytes that are no text, and records that are not the kernel's or could not be read.
    """

    lines: int = 0
    cut: int = 0
    joined: int = 0
    garbled: int = 0
    foreign: int = 0
    unreadable: int = 0


def records(stream: io.BufferedReader, counts: Counts) -> Iterator[Record]:
    """The kernel's records in the order of the log; raises only ``OSError`` of the stream."""
    head = stream.peek(64)[:64]
    if head.startswith((b"__CURSOR=", b"__REALTIME_TIMESTAMP=", b"__MONOTONIC_TIMESTAMP=")):
        return _export(stream, counts)
    wide = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    encoding = "utf-16" if wide else "utf-8-sig"
    # Universal newlines: CRLF and a lone CR (a serial console's) end a line, too.
    text = io.TextIOWrapper(stream, encoding, errors="replace", newline=None)
    lines = _lines(text, counts)
    return _json(lines, counts) if head.startswith(b'{"') else plain_records(lines, counts)


def _lines(text: io.TextIOWrapper, counts: Counts) -> Iterator[str]:
    try:
        yield from _limited(text, counts)
    except UnicodeError:  # utf-16 that ends in half a character
        counts.unreadable += 1
    finally:
        text.detach()  # the stream is the caller's to close


def _limited(text: io.TextIOWrapper, counts: Counts) -> Iterator[str]:
    while line := text.readline(_LINE):
        counts.lines += 1
        counts.garbled += "\ufffd" in line
        if line.endswith("\n"):
            yield line[:-1]
            continue
        yield line
        if len(line) == _LINE:
            counts.cut += 1
            _skip(text)


def _skip(text: io.TextIOWrapper) -> None:
    while True:
        rest = text.readline(_LINE)
        if not rest or rest.endswith("\n"):
            return


# -- plain text

_MONTHS = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
_PROGRAM = r"(?!error: )(?P<program>[\w./@-]+)(?:\[\d+\])?: "
#: RFC 5424: application, process, kind of message, structured data.
_APPLICATION = r"(?P<application>[\w./@-]+) (?:-|\d+) [\w.-]+ (?:-|\[[^\]]{0,200}\]) \ufeff?"
_PREFIX = re.compile(
    r"\s*(?:> )*(?:<\d{1,3}>(?:1 (?=\d))?)?"
    r"(?P<level>(?:kern|user|mail|daemon|auth|syslog|lpr|news|uucp|cron|authpriv|ftp|local\d)\s*:"
    r"\s*\w+\s*:\s*)?"
    r"(?P<kmsg>(?P<facility>\d{1,3}),\d+,(?P<us>\d{1,16}),[^;\s]{1,60};)?"
    rf"(?P<syslog>(?:(?:{_MONTHS})\s+\d+ [\d:.]+"
    r"|\d{4}-\d\d-\d\dT[\d:.,]+(?:Z|[+-]\d\d:?\d\d)?"
    # journalctl -o short-full, in any language, and -o short-unix
    r"|[^\W\d]{1,9}\.? \d{4}-\d\d-\d\d [\d:.]+ [A-Z+-][\w+:-]{1,8}"
    r"|\d{9,11}\.\d{6}(?= [\w.-]+ [\w./@-]+(?:\[\d+\])?: ))\s+"
    rf"(?:kernel: |[\w.-]+\s+(?:{_PROGRAM}|{_APPLICATION}))?)?"
    r"(?P<time>\[\s*(?P<s>\d{1,10}\.\d{1,9})(?:\s*<[\d.\s]{1,20}>)?\]\s?(?:\[\s*[TC]\d+\])?)?"
    rf"(?P<human>\[\w{{3}} (?:{_MONTHS})\s+\d+ [\d:.]+ \d{{4}}\])?"
    # journalctl -o short-monotonic
    r"(?:(?:(?<=\])|(?<=\] ))\s*(?P<monotonic>[\w.-]+ kernel: ))?"
)
_NOISE = re.compile("\x1b\\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]|\\\\x0a\\s*$")


@dataclasses.dataclass
class _Line:
    text: str
    seconds: float | None
    stamped: bool
    width: int
    kernel: bool


def plain_records(lines: Iterable[str], counts: Counts) -> Iterator[Record]:
    """The records of lines as dmesg, syslog, pstore, vmcore-dmesg or a console prints them.

    A line without a prefix after one that has one, and that filled the widest line seen, was
    wrapped by a terminal or a mail program: it is joined again.
    """
    widest = 0
    before: _Line | None = None
    for physical in lines:
        widest = max(widest, len(physical))
        line = _split(physical)
        if before is not None and _wrapped(before, line, widest):
            counts.joined += 1
            gap = "" if before.width >= widest else " "
            before.text = f"{before.text}{gap}{line.text}"
            before.width = line.width
            continue
        if before is not None and before.text:
            yield from _kernels(before, counts)
        before = line
    if before is not None and before.text:
        yield from _kernels(before, counts)


def _kernels(line: _Line, counts: Counts) -> Iterator[Record]:
    if line.kernel or line.text.lstrip().startswith(OWN):
        yield Record(line.text.strip(), line.seconds)
    else:
        counts.foreign += 1


def _split(physical: str) -> _Line:
    clean = (
        _NOISE.sub("", physical) if not physical.isprintable() or "\\x0a" in physical else physical
    )
    found = _PREFIX.match(clean)
    assert found is not None  # every part of it is optional
    seconds = None
    if found["s"]:
        seconds = float(found["s"])
    elif found["us"]:
        seconds = int(found["us"]) / 1e6
    stamped = bool(found["kmsg"] or found["syslog"] or found["time"] or found["human"])
    program = found["program"] or found["application"]
    kernel = program in (None, "kernel") and (found["level"] or "kern").startswith("kern")
    if found["facility"] and int(found["facility"]) >> 3:
        kernel = False
    return _Line(clean[found.end() :].rstrip(), seconds, stamped, len(physical), kernel)


def _wrapped(before: _Line, line: _Line, widest: int) -> bool:
    if line.stamped or not before.stamped or not line.text or widest < _NARROWEST:
        return False
    if len(before.text) + len(line.text) > _JOINED:
        return False
    word = line.text.split(" ", 1)[0]
    return before.width + 1 + len(word) > widest


# -- the journal

_WANTED = (
    "MESSAGE",
    "_TRANSPORT",
    "SYSLOG_FACILITY",
    "_SOURCE_MONOTONIC_TIMESTAMP",
    "__MONOTONIC_TIMESTAMP",
)


def _export(stream: io.BufferedReader, counts: Counts) -> Iterator[Record]:
    """`journalctl -o export`: KEY=value lines, or KEY, a length of 8 bytes, and that much data."""
    entry: dict[str, Any] = {}
    while True:
        line = stream.readline(_LINE)
        counts.lines += 1
        if line in (b"", b"\n", b"\r\n"):
            yield from _entry(entry, counts)
            entry = {}
            if not line:
                return
            continue
        if not line.endswith(b"\n") and len(line) == _LINE:
            counts.cut += 1
            _skip_bytes(stream)
        key, equals, value = line.rstrip(b"\r\n").partition(b"=")
        if not equals:
            value = _field(stream, counts)
        name = key.decode("ascii", "replace")
        if name in _WANTED:
            entry[name] = value.decode("utf-8", "replace")


def _field(stream: io.BufferedReader, counts: Counts) -> bytes:
    """A field with its length before it; what is longer than a line may be is left out."""
    length = int.from_bytes(stream.read(8), "little")
    value = stream.read(min(length, _LINE))
    left = length - len(value)
    if left:
        counts.cut += 1
    while left > 0:
        chunk = stream.read(min(left, 1 << 16))
        if not chunk:
            break
        left -= len(chunk)
    stream.readline(2)  # the newline after it
    return value


def _skip_bytes(stream: io.BufferedReader) -> None:
    while True:
        rest = stream.readline(_LINE)
        if not rest or rest.endswith(b"\n"):
            return


def _json(lines: Iterable[str], counts: Counts) -> Iterator[Record]:
    """`journalctl -o json`: an object a line."""
    for line in lines:
        try:
            body = json.loads(line)
        except (ValueError, RecursionError):
            counts.unreadable += bool(line.strip())
            continue
        if isinstance(body, dict):
            yield from _entry(body, counts)
        else:
            counts.unreadable += 1


def _entry(entry: dict[str, Any], counts: Counts) -> Iterator[Record]:
    if not entry:
        return
    message = entry.get("MESSAGE")
    kernel = (entry.get("_TRANSPORT", "kernel"), entry.get("SYSLOG_FACILITY", "0"))
    if kernel != ("kernel", "0") and not str(message).startswith(OWN):
        counts.foreign += 1
        return
    if isinstance(message, list):  # bytes that are not UTF-8
        message = bytes(b for b in message if isinstance(b, int) and 0 <= b < 256).decode(
            "utf-8", "replace"
        )
    if not isinstance(message, str):
        counts.unreadable += 1
        return
    stamp = str(entry.get("_SOURCE_MONOTONIC_TIMESTAMP", entry.get("__MONOTONIC_TIMESTAMP", "")))
    seconds = int(stamp) / 1e6 if stamp.isascii() and stamp.isdigit() and len(stamp) < 19 else None
    for line in message.splitlines()[:64]:
        split = _split(line)
        if split.text:
            yield Record(split.text, seconds if seconds is not None else split.seconds)
