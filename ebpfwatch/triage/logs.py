"""The logs behind the names on the command line: files, directories, archives, standard input.

What a file is decides its content, never its name.  Compressed files and archives are read as
streams; one that is damaged is read up to the damage.
"""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import enum
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.triage.advice import WHERE
from ebpfwatch.triage.summary import Triage, read

__all__ = ["Log", "Why", "logs", "none_read"]

_MOST_FILES = 1000  # of one directory or archive
_DEEPEST = 5
_LARGE = 32 << 20  # bytes: from here on a terminal sees how far it is
_HEAD = 4096

#: First bytes of files that are no log, and what to do with them.
_NO_LOG = {
    b"\x7fELF": "is a vmcore or a program, not a log; get the log out with vmcore-dmesg FILE",
    b"KDUMP   ": "is a vmcore, not a log; get the log out with makedumpfile --dump-dmesg FILE",
    b"LPKSHHRH": "is a journal file; try journalctl --file FILE -k -o export | ebpfwatch triage -",
    b"PK\x03\x04": "is a zip archive; unpack it and give the directory",
}
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
}
#: The parts of one record that firmware keeps; the first part is the newest.
_PART = re.compile(rb"(\w+)#(\d+) Part(\d+)\n")


class Why(enum.Enum):
    """Why a file was not read.  The values are its ``problem``, where no error says more."""

    FORBIDDEN = "may not be read; run it as root"
    FORBIDDEN_DIRECTORY = "is a directory that may not be read; run it as root"
    DUMP = "is a dump"
    JOURNAL = "is a journal file"
    EMPTY = "is empty"
    NO_TEXT = "is no text"
    OTHER = ""


@dataclasses.dataclass
class Log:
    """One log and its boots; ``problem`` says why it could not be read, ``why`` of which kind that
    is.  ``given`` is the name on the command line behind which it was found.
    """

    name: str
    boots: list[Triage]
    problem: str = ""
    why: Why = Why.OTHER
    given: str = ""

    @property
    def passed_over(self) -> bool:
        """Whether it is a file that is no log, and no loss where others are."""
        return self.why in (Why.DUMP, Why.JOURNAL, Why.EMPTY, Why.NO_TEXT)


def _not_read(name: str, why: Why) -> Log:
    return Log(name, [], why.value, why)


def logs(names: list[str]) -> Iterator[Log]:
    """Read them one after another; raises ``EbpfwatchError`` for a name that is no log."""
    for name in names:
        called = "standard input" if name == "-" else name
        for log in _given(name, called):
            log.given = called
            yield log


def _given(name: str, called: str) -> Iterator[Log]:
    try:
        if name != "-" and os.path.isdir(name):
            yield from _directory(name)
            return
        stream = _open(name)
        with contextlib.closing(stream):
            yield from _unpacked(stream, called, 0)
    except PermissionError as error:
        raise EbpfwatchError(
            f"cannot read {called}: {error.strerror}", "run it as root", Exit.NOPERM
        ) from None
    except OSError as error:
        raise EbpfwatchError(
            f"cannot read {called or 'a file without a name'}: {error.strerror or error}",
            "give a log file, a directory, or - for standard input",
            Exit.USAGE,
        ) from None


#: Of each kind of files that were not read: of one, of several, what to do.
_COUNTED = {
    Why.FORBIDDEN: ("1 file may not be read", "{} files may not be read", "run it as root"),
    Why.FORBIDDEN_DIRECTORY: (
        "1 directory may not be read",
        "{} directories may not be read",
        "run it as root",
    ),
    Why.DUMP: ("1 is a dump", "{} are dumps", "makedumpfile --dump-dmesg gets the log out"),
    Why.JOURNAL: (
        "1 is a journal file",
        "{} are journal files",
        "journalctl --file FILE -k -o export prints it",
    ),
    Why.EMPTY: ("1 is empty", "{} are empty", ""),
    Why.NO_TEXT: ("1 is no text", "{} are no text", ""),
}


def none_read(found: list[Log], names: list[str]) -> list[EbpfwatchError]:
    """An error for each name on the command line behind which no log was read."""
    errors = []
    for name in dict.fromkeys("standard input" if name == "-" else name for name in names):
        behind = [log for log in found if log.given == name]
        if not any(log.boots for log in behind):
            errors.append(_none_read(name, behind))
    return errors


def _none_read(name: str, behind: list[Log]) -> EbpfwatchError:
    reasons = []
    for why, (one, many, todo) in _COUNTED.items():
        count = sum(log.why is why for log in behind)
        said = one if count == 1 else many.format(count)
        if why is Why.FORBIDDEN_DIRECTORY and any(log.name == name for log in behind):
            said = "it may not be read"
        if count:
            reasons.append(f"{said} ({todo})" if todo else said)
    reasons += [f"{log.name} {log.problem}" for log in behind if log.why is Why.OTHER][:3]
    forbidden = any(log.why in (Why.FORBIDDEN, Why.FORBIDDEN_DIRECTORY) for log in behind)
    known = forbidden or any(log.why in (Why.DUMP, Why.JOURNAL) for log in behind)
    return EbpfwatchError(
        f"no log was read in {name}: {', '.join(reasons) or 'there is no file in it'}",
        "" if known else WHERE,
        Exit.NOPERM if forbidden else Exit.UNAVAILABLE,
    )


def _open(name: str) -> io.BufferedReader:
    if name == "-":
        return io.BufferedReader(io.FileIO(0, closefd=False))
    return io.BufferedReader(io.FileIO(name))


def _unpacked(stream: io.BufferedReader, name: str, depth: int) -> Iterator[Log]:
    """The logs in a stream; one that is no log is an error at the top, and passed over inside."""
    head = stream.peek(_HEAD)[:_HEAD]
    kind = next((kind for magic, kind in _COMPRESSED.items() if head.startswith(magic)), "")
    if kind and depth < _DEEPEST:
        with _decompressed(stream, kind) as tolerant:
            found = list(_unpacked(_buffered(tolerant), name, depth + 1))
        for log in found:
            for triage in log.boots:
                triage.counts.damaged = tolerant.problem
        yield from found
        return
    if head[257:262] == b"ustar" and depth < _DEEPEST:
        yield from _archive(stream, name, depth)
        return
    refused = next((what for magic, what in _NO_LOG.items() if head.startswith(magic)), "")
    if refused:
        what, _, todo = refused.partition("; ")
        if depth:
            yield Log(name, [], what, _no_log(head))
            return
        hint = todo if name == "standard input" else todo.replace("FILE", name)
        raise EbpfwatchError(f"{name} {what}", hint, Exit.USAGE)
    with _Progress(stream, name) as progress:
        yield Log(name, read(stream, progress.step))


class _Tolerant(io.RawIOBase):
    """Decompressed bytes up to the first damage, which ``problem`` names."""

    def __init__(self, inner: io.BufferedIOBase) -> None:
        self._inner = inner
        self.problem = ""

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        """As much as there is; 0 at the end and at the first damage."""
        if self.problem:
            return 0
        try:
            data = self._inner.read1(len(buffer))
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            self.problem = str(error) or type(error).__name__
            return 0
        buffer[: len(data)] = data
        return len(data)


def _buffered(raw: Any) -> io.BufferedReader:
    return io.BufferedReader(raw)


@contextlib.contextmanager
def _decompressed(stream: io.BufferedReader, kind: str) -> Iterator[_Tolerant]:
    if kind == "zstd":
        with _zstd(stream) as tolerant:
            yield tolerant
        return
    if kind == "gzip":
        yield _Tolerant(gzip.GzipFile(fileobj=stream))
    elif kind == "xz":
        yield _Tolerant(lzma.LZMAFile(stream))
    else:
        yield _Tolerant(bz2.BZ2File(stream))


@contextlib.contextmanager
def _zstd(stream: io.BufferedReader) -> Iterator[_Tolerant]:
    """By the program zstd: no Python before 3.14 has it."""
    tool = shutil.which("zstd")
    if tool is None:
        raise EbpfwatchError(
            "the file is compressed by zstd, and there is no program zstd here",
            "apt-get install zstd, or unpack it elsewhere",
            Exit.UNAVAILABLE,
        )
    process = subprocess.Popen(
        [tool, "-dcq"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None and process.stdout is not None
    feeder = threading.Thread(target=_feed, args=(stream, process.stdin), daemon=True)
    feeder.start()
    tolerant = _Tolerant(process.stdout)  # type: ignore[arg-type]
    try:
        yield tolerant
    finally:
        process.stdout.close()
        try:
            code = process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code:
            tolerant.problem = tolerant.problem or "zstd could not read it to its end"
        feeder.join(5)


def _feed(stream: io.BufferedReader, to: io.BufferedIOBase) -> None:
    with contextlib.suppress(OSError, ValueError):
        shutil.copyfileobj(stream, to)
    with contextlib.suppress(OSError):
        to.close()


def _archive(stream: io.BufferedReader, name: str, depth: int) -> Iterator[Log]:
    """Every log of a tar, read as a stream: nothing is unpacked to a disk."""
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for number, member in enumerate(archive):
                if number >= _MOST_FILES:
                    yield Log(name, [], f"has more than {_MOST_FILES} files; the rest was not read")
                    return
                inside: Any = archive.extractfile(member) if member.isfile() else None
                if inside is None:
                    continue
                buffered = _buffered(_Tolerant(inside))
                called = f"{name}:{member.name}"
                if _text(buffered):
                    yield from _unpacked(buffered, called, depth + 1)
                else:
                    yield _not_read(called, _no_log(buffered.peek(_HEAD)[:_HEAD]))
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        yield Log(name, [], f"is damaged: {error}")


def _text(stream: io.BufferedReader) -> bool:
    """Whether it may be a log: text, or something compressed."""
    head = stream.peek(_HEAD)[:_HEAD]
    if any(head.startswith(magic) for magic in _COMPRESSED) or head[257:262] == b"ustar":
        return True
    return bool(head) and (head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" not in head)


def _no_log(head: bytes) -> Why:
    """What a file is that is neither text nor compressed, by its first bytes."""
    core = head.startswith(b"\x7fELF") and head[16:18] in (b"\x04\0", b"\0\x04")  # e_type ET_CORE
    if core or head.startswith(b"KDUMP   "):
        return Why.DUMP
    if head.startswith(b"LPKSHHRH"):
        return Why.JOURNAL
    return Why.NO_TEXT if head else Why.EMPTY


def _directory(name: str) -> Iterator[Log]:
    """Every log below a directory, the parts of a record of the firmware joined."""
    parts: dict[tuple[str, bytes, bytes], list[tuple[int, str]]] = {}
    refused: list[Log] = []
    for number, path in enumerate(_files(name, refused)):
        if number >= _MOST_FILES:
            yield Log(name, [], f"has more than {_MOST_FILES} files; the rest was not read")
            break
        try:
            with _open(path) as stream:
                found = _PART.match(stream.peek(_HEAD)[:64])
                if found:
                    key = (os.path.dirname(path), found[1], found[2])
                    parts.setdefault(key, []).append((int(found[3]), path))
                elif _text(stream):
                    yield from _unpacked(stream, path, 1)
                else:
                    yield _not_read(path, _no_log(stream.peek(_HEAD)[:_HEAD]))
        except PermissionError:
            yield _not_read(path, Why.FORBIDDEN)
        except OSError as error:
            yield Log(path, [], f"cannot be read: {error.strerror}")
    yield from refused
    for (_, reason, count), numbered in parts.items():
        paths = [path for _, path in sorted(numbered, reverse=True)]
        called = f"{paths[0]} ({reason.decode()}#{count.decode()}, {len(paths)} parts)"
        data = b"".join(_without_head(path) for path in paths[:64])
        yield Log(called, read(io.BufferedReader(io.BytesIO(data))))


def _without_head(path: str) -> bytes:
    with contextlib.suppress(OSError):
        with open(path, "rb") as file:
            return file.read(1 << 20).partition(b"\n")[2]
    return b""


def _files(name: str, refused: list[Log]) -> Iterator[str]:
    """Every regular file below a directory; adds what may not be looked at to ``refused``."""

    def forbidden(error: OSError) -> None:
        if isinstance(error, PermissionError):
            refused.append(_not_read(error.filename or name, Why.FORBIDDEN_DIRECTORY))
        else:
            refused.append(Log(error.filename or name, [], f"cannot be read: {error.strerror}"))

    for directory, below, files in os.walk(name, onerror=forbidden):
        below.sort()
        if directory[len(name) :].count(os.sep) >= _DEEPEST:
            below.clear()
        for file in sorted(files):
            path = os.path.join(directory, file)
            try:
                regular = stat.S_ISREG(os.stat(path).st_mode)
            except PermissionError:
                refused.append(_not_read(path, Why.FORBIDDEN))
                continue
            except OSError:  # a link to nothing, or gone meanwhile
                continue
            if regular:
                yield path


class _Progress:
    """How far a large file is, for a terminal on standard error."""

    def __init__(self, stream: io.BufferedReader, name: str) -> None:
        self._stream = stream
        self._name = name
        self._next = time.monotonic() + 1
        self._shown = False
        self._size = 0
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._size = os.fstat(stream.fileno()).st_size
        self._wanted = self._size >= _LARGE and sys.stderr is not None and sys.stderr.isatty()

    def __enter__(self) -> _Progress:
        return self

    def step(self) -> None:
        """Called often; prints at most twice a second."""
        if not self._wanted or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + 0.5
        self._shown = True
        done = self._stream.tell()
        print(f"\rread {done >> 20} of {self._size >> 20} MiB", end="", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
