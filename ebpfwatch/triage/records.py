"""One log record after another, whatever the log went through: dmesg, journal, pstore, console.

Reads as a stream and holds a bounded number of lines at a time, so a log of any size needs the same
memory.  Never raises for what is in the log; what had to be cut, skipped or turned around is
counted.

What stands before a message is read by its grammar (a time, a date in any language, a CPU, a task,
a priority, a host and a program), not by a list of formats.  A prefix of another kind is learned
where a known message stands behind it and the lines that follow begin alike.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ebpfwatch.kernellog.known import recognise
from ebpfwatch.kernellog.report import Record

__all__ = ["OWN", "Counts", "plain_records", "records"]

#: How our own findings begin in the kernel's log; they came from user space and are welcome.
OWN = "ebpfwatch: "

_LINE = 16384  # characters of one line that are looked at; the longest in the wild are module lists
_JOINED = 32768
_NARROWEST = 60  # columns: below that a short line is a short line, not a wrapped one
_TURNED = 50000  # records: a longer log is not turned around
_AHEAD = 12  # lines that are looked at before a prefix is believed


@dataclasses.dataclass
class Counts:
    """What was read: lines, those too long, those joined because they were wrapped, those with
    bytes that are no text, and records that are not the kernel's or could not be read.

    ``behind`` are lines with a known message behind a prefix that is not understood, ``example``
    the first of them; ``learned`` is a prefix that was learned.  ``turned``: the newest line came
    first, and the log was turned around; ``upside_down``: it was too long for that.  ``damaged``
    says that a compressed file ended before its end.
    """

    lines: int = 0
    cut: int = 0
    joined: int = 0
    garbled: int = 0
    foreign: int = 0
    unreadable: int = 0
    behind: int = 0
    example: str = ""
    learned: str = ""
    turned: bool = False
    upside_down: bool = False
    damaged: str = ""


def records(stream: io.BufferedReader, counts: Counts) -> Iterator[Record]:
    """The kernel's records, oldest first; raises only ``OSError`` of the stream."""
    return _in_order(_records(stream, counts), counts)


def _records(stream: io.BufferedReader, counts: Counts) -> Iterator[Record]:
    head = stream.peek(200)[:200]
    if head.startswith((b"__CURSOR=", b"__REALTIME_TIMESTAMP=", b"__MONOTONIC_TIMESTAMP=")):
        return _export(stream, counts)
    wide = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    encoding = "utf-16" if wide else "utf-8-sig"
    # Universal newlines: CRLF and a lone CR (a serial console's) end a line, too.
    text = io.TextIOWrapper(stream, encoding, errors="replace", newline=None)
    lines = _lines(text, counts)
    if head.lstrip(b"\x1e").startswith((b"{", b"data: {")):
        return _json(lines, counts)
    return _verbose(lines, counts) if _VERBOSE.match(head) else plain_records(lines, counts)


def _lines(text: io.TextIOWrapper, counts: Counts) -> Iterator[str]:
    try:
        yield from _limited(text, counts)
    except UnicodeError:  # utf-16 that ends in half a character
        counts.unreadable += 1
    finally:
        text.detach()  # the stream is the caller's to close


def _limited(text: io.TextIOWrapper, counts: Counts) -> Iterator[str]:
    readline = text.readline
    while True:
        line = readline(_LINE)
        if not line:
            return
        counts.lines += 1
        if "\ufffd" in line:
            counts.garbled += 1
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


# -- the order


def _in_order(found: Iterator[Record], counts: Counts) -> Iterator[Record]:
    """Oldest first: `journalctl -r` and some log servers print the newest first."""
    begin = list(itertools.islice(found, _TURNED))
    if not _newest_first(begin):
        return itertools.chain(begin, found)
    more = next(found, None)
    if more is None:
        counts.turned = True
        return reversed(begin)
    counts.upside_down = True
    return itertools.chain(begin, [more], found)


def _newest_first(begin: list[Record]) -> bool:
    """By the times; where there are none, or all are equal, by the order within reports."""
    times = [record.seconds for record in begin[:20000] if record.seconds is not None]
    later = sum(after > before for before, after in zip(times, times[1:]))
    earlier = sum(after < before for before, after in zip(times, times[1:]))
    if later or earlier > 2:
        return earlier > 2 + 5 * later
    forwards = backwards = 0
    for before, record, after in zip(begin, begin[1:], begin[2:]):
        for heading, follows in _FOLLOWS:
            if record.text.startswith(heading):
                is_before = follows.match(before.text) is not None
                is_after = follows.match(after.text) is not None
                forwards += is_after and not is_before
                backwards += is_before and not is_after
    return backwards > forwards


#: What comes behind which line of a report.
_FOLLOWS = (
    (("Call trace:", "Call Trace:"), re.compile(r"(?:\[<[0-9a-f]+>\] )?(?:\? )?[\w.]+\+0x[^:]*$")),
    ("------------[ cut here ]", re.compile(r"WARNING: |kernel BUG at ")),
    ("Modules linked in:", re.compile(r"CPU: \d+ ")),
    ("CPU: ", re.compile(r"Hardware name: ")),
)


# -- plain text

_CLOCK = r"\d{1,2}:\d\d:\d\d(?:[.,]\d{1,9})?"
_ZONE = r"(?:Z|[+-]\d\d(?::?\d\d)?|[A-Z]{2,5})"
#: A word of a date in any language and of any encoding: Dec, 12月, 12月11日, дек., 11/12/23.
_DATEWORD = (
    r"(?:\d{1,4}[-/.]\d{1,2}(?:[-/.]\d{1,4})?|(?:\d{1,4}[^\s\d:\[\]<>()=/,;]{1,3}){1,3}|\d{1,4}"
    r"|\d{0,4}[^\s\d:\[\]<>()=/,;]{1,12}[.,]?)"
)
_DATE = re.compile(
    # journalctl -o short-full and UOS' kern.log
    rf"(?:[^\W\d]{{1,9}}\.? )?(?P<iso>\d{{4}}-\d\d-\d\d[T ]{_CLOCK})(?: ?{_ZONE}(?=\s))?\s+"
    # Android's logcat
    rf"|\d\d-\d\d {_CLOCK}\s+(?:\w+\s+)?\d+\s+\d+ [VDIWEF] (?P<logcat>\S+)\s*: "
    rf"|\d\d-\d\d {_CLOCK}\s+[VDIWEF]/(?P<logcat2>\w+)\s*\(\s*\d+\): "
    rf"|(?:{_DATEWORD}\s+){{0,4}}{_CLOCK}(?:\s+[AP]M(?=\s))?(?:\s+\d{{4}}(?=\s))?\s+"
    # journalctl -o short-unix
    r"|\d{9,11}\.\d{3,9}\s+(?=(?:[\w.-]+ )?[\w./@-]+(?:\[\d+\])?: )"
)
_FACILITY = r"kern|user|mail|daemon|auth|syslog|lpr|news|uucp|cron|authpriv|ftp|local\d"
_PROGRAM = re.compile(
    rf"(?:(?P<host>[^\s:\[\]<>()]{{1,64}})\s+)?(?:(?P<facility>{_FACILITY})\.\w+\s+)?"
    r"(?!error: )(?P<program>[\w./@-]{1,48})(?:\[\d+\])?: ?"
)
#: RFC 5424: host, application, process, kind of message, structured data.
_APPLICATION = re.compile(
    r"\S{1,255} (?P<program>[\w./@-]+) (?:-|\d+) [\w.-]+ (?:-|\[[^\]]{0,200}\]) \ufeff?"
)
_KERNEL = re.compile(r"\s*(?:[\w.-]{1,64} )?kernel:\s?")
#: How syslogds call the kernel.
_KERNELS = ("kernel", "KERNEL", "vmunix", "klogd")
#: Seconds since boot, alone, with a CPU behind @ or a comma (MediaTek, Qualcomm), with a second
#: time, or with the difference to the line before (dmesg -d).
_TIME = re.compile(r"\[\s*(?P<s>\d{1,10}\.\d{1,9})s?(?:,\d{1,3}|\s*[@/<][^\[\]]{0,40})?\] ?")
#: dmesg -T in any language, crash's log -T; dmesg -H and -e; a difference alone.
_HUMAN = re.compile(
    r"\[[^\[\]<>]{0,40}?\d{1,2}:\d\d(?::\d\d)?(?:[.,]\d+)?[^\[\]]{0,40}\] ?"
    r"|\[\s*[+<]?\s*\d+\.\d+>?\s*\] ?"
)
#: Behind a time: a CPU or thread, and the tasks of Huawei's, Samsung's and MediaTek's kernels.
_TAG = re.compile(
    r"\s*(?:\[\s*(?:[TC]\s*)?\d{1,7}(?:@C?\d+)?\]|\[\s*pid:[^\[\]]*\]"
    r"|[A-Z]?\[\d+:[^\[\]]{1,40}:\s*\d+\]|c\d{1,2}(?=\s)(?:\s+\d{1,6}(?=\s))?"
    r"|[.-]?\(\d+\)(?=[\[ ])|\[\d+:[^\[\]]{1,20}\]|<\d{1,2}>)\s?"
)
_LEVEL = re.compile(
    rf"(?P<facility>{_FACILITY})\s*[:.]\s*(?:emerg|alert|crit|err|warn|notice|info|debug)\s*:\s*"
)
_KMSG = re.compile(r"(?P<facility>\d{1,3}),\d+,(?P<us>\d{1,16}),[^;\s]{1,60};")
_PRIORITY = re.compile(r"<\d{1,3}>(?P<version>1 (?=\d|-))?")
#: A mail's quotes; grep -n, grep -H and cat -n before something that looks like a time; marks of
#: lists and comments.
_QUOTE = re.compile(
    r"\s*(?:>+[ \t]?)+|(?:[\w./-]{1,80}[:-])?\d{1,9}[:\t-](?=\s*[\[<])|\s{0,6}\d{1,7}\t"
    r"|[\w~+-]*[./][\w./~+-]{0,100}[:-](?:\d{1,9}[:-])?"
    r"(?=\s*(?:[\[<]\s*\d|\d{4}-\d\d-|[^\W\d_]{3,4}\.? +\d{1,2} |\d{1,2}\D))"
    r"|\s*(?:[-*#\"'|]|//|\d{1,6}[.)]?)\s*(?=[\[<]\s*\d)"
)
_FAST = re.compile(r"\[ {0,11}(\d{1,10}\.\d{6})\] ?(?=[A-Za-z_](?![\d\[])|--)")
#: Seconds since boot behind something else: a console's login prompt, a logger's own time.
_TIME_INSIDE = re.compile(r"\[\s*(?P<s>\d{1,7}\.\d{3,9})s?\] ?")
_NOISE = re.compile("\x1b\\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]|\\\\x0a\\s*$")


@dataclasses.dataclass
class _Line:
    text: str
    seconds: float | None
    stamped: bool
    width: int
    kernel: bool


def plain_records(lines: Iterable[str], counts: Counts) -> Iterator[Record]:
    """The records of lines as dmesg, syslog, pstore, vmcore-dmesg or a console prints them."""
    return _Plain(counts).records(iter(lines))


class _Plain:
    """What is known of a plain log's form so far.

    A line without a prefix after one that has one, and that filled the line, was wrapped by a
    terminal (which cuts words) or a mail program (which does not): it is joined again.
    """

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._widest = 0
        self._by_words = False
        self._learned: list[re.Pattern[str]] = []
        self._heads: set[str] = set()
        self._lengths: list[int] = []
        self._ahead: collections.deque[str] = collections.deque()

    def records(self, lines: Iterator[str]) -> Iterator[Record]:
        """One after another."""
        before: _Line | None = None
        while True:
            physical = self._ahead.popleft() if self._ahead else next(lines, None)
            if physical is None:
                break
            if len(physical) > self._widest:
                self._widest = len(physical)
            line = self._split(physical)
            if before is not None and not line.stamped and self._wrapped(before, line):
                self._join(before, line)
                continue
            if before is not None and before.text:
                yield from self._kernels(before)
            if line.kernel and _maybe_inside(line.text) and not recognise(line.text):
                line = self._behind(line, physical, lines)
            before = line
        if before is not None and before.text:
            yield from self._kernels(before)

    def _kernels(self, line: _Line) -> Iterator[Record]:
        if line.kernel or line.text.startswith(OWN):
            yield Record(line.text, line.seconds)
        else:
            self._counts.foreign += 1

    # -- what stands before the message

    def _split(self, physical: str) -> _Line:
        if self._learned or not physical.isprintable() or "\\x0a" in physical:
            return self._slowly(physical)
        width = len(physical)
        if physical[:1] == "[":
            fast = _FAST.match(physical)
            if fast:
                text = physical[fast.end() :]
                if "kernel:" not in text[:80]:
                    return _Line(text.strip(), float(fast[1]), True, width, True)
        # Lines of one second have one date, host and program before the message.
        for length in self._lengths:
            if physical[:length] in self._heads:
                fast = _FAST.match(physical, length)
                if fast:
                    return _Line(physical[fast.end() :].strip(), float(fast[1]), True, width, True)
                if physical[length : length + 1] not in _MAYBE_PREFIX:
                    return _Line(physical[length:].strip(), None, True, width, True)
        line = self._slowly(physical)
        if line.kernel and line.stamped:
            self._remember(physical, line)
        return line

    def _remember(self, physical: str, line: _Line) -> None:
        """The head of this line, if what follows it is a message, or a time and a message."""
        place = physical.rfind("[", 0, len(physical) - len(line.text))
        fast = _FAST.match(physical, place) if place > 0 and line.seconds is not None else None
        if fast is None and line.seconds is not None:
            return
        length = place if fast else len(physical.rstrip()) - len(line.text)
        if fast and physical[fast.end() :].strip() != line.text or length < 8:
            return
        if len(self._heads) >= 1000:
            self._heads.clear()
        self._heads.add(physical[:length])
        if length not in self._lengths:
            self._lengths = [length, *self._lengths[:3]]

    def _slowly(self, physical: str) -> _Line:
        clean = physical
        if not physical.isprintable() or "\\x0a" in physical:
            clean = _NOISE.sub("", physical)
        line = _Line("", None, False, len(physical), True)
        at = self._prefixes(clean, line)
        for pattern in self._learned:
            found = pattern.match(clean, at)
            if found:
                at = found.end()
                line.stamped = True
        line.text = clean[at:].strip()
        return line

    def _prefixes(self, clean: str, line: _Line) -> int:
        """Where the message begins; notes in ``line`` what stands before it."""
        at = 0
        versioned = dated = timed = False
        for _ in range(10):
            begin = at
            found = _QUOTE.match(clean, at) if not line.stamped else None
            at = found.end() if found else at
            found = _PRIORITY.match(clean, at)
            if found:
                at, versioned = found.end(), bool(found["version"])
            found = _LEVEL.match(clean, at) if not timed else None
            if found:
                at = found.end()
                line.kernel = line.kernel and found["facility"] == "kern"
            found = _KMSG.match(clean, at)
            if found and not line.stamped:
                at, line.seconds, line.stamped = found.end(), int(found["us"]) / 1e6, True
                line.kernel = line.kernel and not int(found["facility"]) >> 3
            found = _TIME.match(clean, at) or _TIME.match(clean, at + 1)
            if found and not timed:
                at, timed, line.stamped = found.end(), True, True
                line.seconds = float(found["s"])
            found = _HUMAN.match(clean, at)
            if found:
                at, line.stamped = found.end(), True
            if not dated and not timed and at < len(clean) and clean[at] not in "[<":
                found = _DATE.match(clean, at)
                if found:
                    dated = line.stamped = True
                    at = self._program(clean, found, line, versioned)
            if line.stamped:
                found = _TAG.match(clean, at)
                at = found.end() if found else at
            found = _KERNEL.match(clean, at)
            if found:
                at, line.stamped = found.end(), True
            if at == begin:
                found = _TIME_INSIDE.search(clean, at, at + 120) if not timed else None
                if found is None or not line.kernel or _ANOTHER.search(clean[at : found.start()]):
                    break
                at, timed, line.stamped = found.end(), True, True
                line.seconds = float(found["s"])
        return at

    def _program(self, clean: str, date: re.Match[str], line: _Line, versioned: bool) -> int:
        """Where it goes on behind a date, a host, and a program, which may not be the kernel."""
        at = date.end()
        tag = date["logcat"] or date["logcat2"]
        if tag:
            line.kernel = line.kernel and tag.lower() == "kernel"
            return at
        if date["iso"] and "," in date["iso"]:  # dmesg --time-format iso: no host, no program
            return at
        found = (_APPLICATION if versioned else _PROGRAM).match(clean, at)
        if found is None:
            return at
        facility = None if versioned else found["facility"]
        kernel = found["program"] in _KERNELS and facility in (None, "kern")
        line.kernel = line.kernel and kernel
        return found.end()

    # -- prefixes of another kind

    def _behind(self, line: _Line, physical: str, lines: Iterator[str]) -> _Line:
        """Learn what stands before a known message if the lines that follow begin alike."""
        place = _known_inside(line.text)
        if place <= 0:
            return line
        prefix = line.text[:place]
        program = _ANOTHER.search(prefix)
        if program is None and len(self._learned) < 4:
            pattern = _alike(prefix)
            while len(self._ahead) < _AHEAD:
                following = next(lines, None)
                if following is None:
                    break
                self._ahead.append(following)
            texts = [self._split(following).text for following in self._ahead]
            alike = sum(pattern.match(text) is not None for text in texts)
            if alike >= max(2, 0.6 * len(texts)):
                self._learned.append(pattern)
                self._counts.learned = self._counts.learned or prefix[:80]
                return self._split(physical)
        if program is None or program["kernel"]:
            self._counts.behind += 1
            self._counts.example = self._counts.example or physical[:200]
        return line

    # -- wrapped lines

    def _wrapped(self, before: _Line, line: _Line) -> bool:
        if not before.stamped or not line.text or self._widest < _NARROWEST:
            return False
        if len(before.text) + len(line.text) > _JOINED or line.text.startswith("-- "):
            return False
        word = line.text.split(" ", 1)[0]
        # A mail program breaks at 72 to 78 columns whatever the widest line is.
        return before.width + 1 + len(word) > min(self._widest, 80)

    def _join(self, before: _Line, line: _Line) -> None:
        """A terminal cuts all lines at one width, a round one; a mail program between words."""
        self._counts.joined += 1
        full = before.width >= self._widest
        self._by_words = self._by_words or not full
        terminal = full and (self._widest % 10 == 0 or self._widest == 132) and not self._by_words
        before.text = f"{before.text}{'' if terminal else ' '}{line.text}"
        before.width = line.width


#: The beginnings of messages that are looked for inside a line with an unknown prefix.
_INSIDE = (
    *("kernel BUG at ", "Unable to handle kernel", "BUG: ", "WARNING: CPU: ", "Call trace:"),
    *("Call Trace:", "[ cut here ]", "Internal error: ", "Modules linked in: ", "general protect"),
    *("Kernel panic - not", "Object already free", "list_del corruption", "list_add corruption"),
)
_END = "---[ end "
_MAYBE_PREFIX = tuple("[<(0123456789 ") + ("",)
#: Another program's name before the message, or a kernel that calls itself so; a console's login
#: prompt is none.
_ANOTHER = re.compile(r"(?:^|\s)(?!login:)(?P<kernel>kernel)?[\w./@-]*(?:\[\d+\])?:\s*$")


def _maybe_inside(text: str) -> bool:
    """Whether it is worth looking; a chain of ``in`` is several times faster than a pattern."""
    return (
        "BUG" in text
        or "ernel" in text
        or "race:" in text
        or "WARNING" in text
        or "nternal error" in text
        or "odules linked" in text
        or "corruption" in text
        or "general prot" in text
        or "already free" in text
    )


def _known_inside(text: str) -> int:
    """Where in the line a known message begins; 0 or less for nowhere.

    panic() ends with "---[ end Kernel panic - not syncing: ... ]---": that is a line of its own.
    """
    if text.startswith(_END):
        return 0
    for word in _INSIDE:
        place = text.find(word, 1, 300)
        if place > 0 and not word.startswith("["):
            rest = text[place:]
            if recognise(rest) or word in ("Call trace:", "Call Trace:", "Internal error: "):
                return place
    return 0


def _alike(prefix: str) -> re.Pattern[str]:
    """A pattern for prefixes of this shape, with other numbers, words and contents of brackets."""
    parts = []
    for found in re.finditer(r"\[[^\[\]]*\]|\([^()]*\)|<[^<>]*>|\d+|[^\W\d_]+|\s+|.", prefix):
        part = found[0]
        if len(part) > 1 and part[0] in "[(<":
            parts.append(rf"\{part[0]}[^\n]{{0,80}}?\{part[-1]}")
        elif part[0].isdigit():
            parts.append(r"\d+")
        elif part.isspace():
            parts.append(r"\s+")
        elif part[0].isalpha():
            parts.append(r"[^\W\d_]+")
        else:
            parts.append(re.escape(part))
    return re.compile("".join(parts))


# -- the journal

_WANTED = (
    "MESSAGE",
    "_TRANSPORT",
    "SYSLOG_FACILITY",
    "_SOURCE_MONOTONIC_TIMESTAMP",
    "__MONOTONIC_TIMESTAMP",
    "_BOOT_ID",
)
#: journalctl -o verbose: a time, and the entry's cursor.
_VERBOSE = re.compile(rb"[^\n]{10,60} \[s=[0-9a-f]{1,40};")
_VERBOSE_HEAD = re.compile(r"\S.{9,60} \[s=[0-9a-f]{1,40};")


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
    """`journalctl -o json`, json-sse and json-seq: an object a line; json-pretty: on several."""
    whole = ""
    for line in lines:
        line = line.lstrip("\x1e")
        line = line[6:] if line.startswith("data: ") else line
        if whole or line.strip() == "{":
            whole = f"{whole}{line}\n"
            if line != "}" and len(whole) < _JOINED:
                continue
            line, whole = whole, ""
        if not line.strip():
            continue
        try:
            body = json.loads(line)
        except (ValueError, RecursionError):
            counts.unreadable += 1
            continue
        if isinstance(body, dict):
            yield from _entry(body, counts)
        else:
            counts.unreadable += 1


def _verbose(lines: Iterable[str], counts: Counts) -> Iterator[Record]:
    """`journalctl -o verbose`: a line with the time and the cursor, then a field a line."""
    entry: dict[str, Any] = {}
    for line in lines:
        if _VERBOSE_HEAD.match(line) or line.startswith("-- "):
            yield from _entry(entry, counts)
            entry = {}
            continue
        name, equals, value = line.strip().partition("=")
        if equals and name in _WANTED:
            entry[name] = value
    yield from _entry(entry, counts)


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
    boot = str(entry.get("_BOOT_ID", ""))[:64]
    splitter = _Plain(Counts())
    for line in message.splitlines()[:64]:
        split = splitter._split(line)
        if split.text:
            yield Record(split.text, seconds if seconds is not None else split.seconds, boot)
