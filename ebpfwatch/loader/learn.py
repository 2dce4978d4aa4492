"""What only a living kernel tells, learned from nameless files of our own (probes/learn.c).

What the probes read of such a file's inode is compared with what stat() says of the file; the
objects of a file that has a name, with all that we did to it (``specimen``, ``anatomy``).  So
offsets of another kernel (headers or BTF of another build, a randomised layout) are refused here,
before they could cause a false finding.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import itertools
import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ebpfwatch.catalogue.ladder import Attachment, Rung
from ebpfwatch.catalogue.layout import OURS
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.events.wire import LAYOUTS
from ebpfwatch.kernel.attach import attach_or_fail
from ebpfwatch.kernel.libbpf import map_lookup, map_update
from ebpfwatch.kernel.protocol import Learned
from ebpfwatch.loader.anatomy import settle, wrong
from ebpfwatch.loader.image import Module
from ebpfwatch.loader.members import member as name_of
from ebpfwatch.loader.places import Places, Source
from ebpfwatch.loader.specimen import Viewer, generation_of, lives
from ebpfwatch.system.grace import force_grace_period, on_one_cpu
from ebpfwatch.system.namespaces import in_own_pid_namespace

__all__ = ["FOUND", "NO_PLACE", "PROGRAMS", "File", "find", "learn", "mismatch"]

#: Programs of probes/learn.c that stand nowhere in the ladder.
PROGRAMS = tuple(
    Attachment(name, name)
    for name in ("ext4_allocate_inode", "ext4_unlink_enter", "ext4_sync_file_enter", "task_rename")
)

#: Where the grace period cannot be forced: longer than lazy RCU waits (LAZY_FLUSH_JIFFIES, 10 s).
_SECONDS = 15.0
_LOOKS = 100
_TRIES = 3  #: a file's memory may have been another's by the time of its free
_FIELDS = tuple(field.name for field in dataclasses.fields(Learned))
_LAYOUT = f"<{len(_FIELDS)}Q"
_LIVES = 8
_FILES = 3  #: what they have in common is no chance
#: Why nothing can be said of what only a file with a name shows.
NO_PLACE = (
    "no file of ours can have a name in a directory of root's that nobody else can open"
    " (lost+found)"
)
_Testimony: Any = LAYOUTS["testimony"]


FOUND = Source("what files of ours show (neither BTF nor headers)", own=True)


@dataclasses.dataclass(frozen=True)
class File:
    """One of our files, as the system calls tell it."""

    ino: int
    generation: int
    major: int
    minor: int


def mismatch(file: File, alive: Any, evicted: Any, dead_state: int) -> str:
    """Which offset is not this kernel's, in words; "" if all that can be compared agrees.

    ``alive`` and ``evicted`` are ``struct testimony`` of probes/contract.h.
    """
    dev = file.major << 20 | file.minor
    freeing = evicted.state & dead_state
    for member, right in (
        ("i_ino", evicted.ino == alive.ino == file.ino),
        ("i_sb or s_dev", evicted.dev == alive.dev == dev),
        ("i_generation", evicted.generation == file.generation),
        ("i_nlink", evicted.nlink == 0),
        ("i_count", alive.count >= 1 and evicted.count == 0),
        # I_FREEING | I_CLEAR, and of the two only I_FREEING at the eviction (fs/inode.c: evict()).
        ("i_state", _bits(dead_state) == 2 and _bits(freeing) == 1),
        ("i_sb_list", alive.listed == 1 and evicted.listed == 0),
    ):
        if not right:
            return member
    return ""


def _bits(word: int) -> int:
    return bin(word).count("1")


def learn(
    module: Module,
    places: Places,
    rungs: Sequence[Rung],
    mounts: Sequence[str],
    source: Source,
    offsets: Mapping[str, int],
) -> tuple[Learned, str]:
    """What the kernel tells ``module``, probes/learn.c, and why not all ``offsets`` are proven (""
    if they are).

    ``rungs`` hook the eviction and the free; ``source`` is where the offsets are from.

    Raises ``EbpfwatchError`` when no mount lets us create a file, when it is never freed, and when
    the offsets are not this kernel's.
    """
    with _attached(module, places, rungs, source):
        learned = _Lesson(module, source).learn(mounts)
        return learned, _prove(Viewer(module), mounts, source, offsets)


def find(
    module: Module, places: Places, rungs: Sequence[Rung], mounts: Sequence[str]
) -> tuple[dict[str, int], str]:
    """The offsets, found in files of ours where nobody tells them; and why they could not be, "" if
    they could.  ``module`` is probes/learn.c, compiled with FINDING.
    """
    offsets: dict[str, int] = {}
    unclear = ""
    with _attached(module, places, rungs, FOUND):
        for _ in range(_TRIES):
            files = list(lives(Viewer(module), mounts, _FILES, to_the_end=True))
            if len(files) < _FILES:
                return {}, NO_PLACE
            offsets, unclear = settle(files)
            if not unclear:
                break
    return offsets, f"{name_of(unclear)} is in no place, or in several" if unclear else ""


def _prove(view: Viewer, mounts: Sequence[str], source: Source, offsets: Mapping[str, int]) -> str:
    """Why they are not proven; raises ``EbpfwatchError`` where they are not this kernel's.

    Somebody else may open our file, too (whoever scans all files for viruses does), so each offset
    has several files to be right in.  What the kernel says itself is believed: then it is we who do
    not know this kernel well enough.
    """
    left: frozenset[str] | None = None
    for found in lives(view, mounts, _LIVES):
        bad = wrong(offsets, found)
        left = bad if left is None else left & bad
        if not left:
            return ""
    if left is None:
        return NO_PLACE
    what = min(left)
    why = f"{name_of(what)} of a file of ours reads wrong"
    if not source.own:
        raise _not_of_this_kernel(source, why)
    return why


@contextlib.contextmanager
def _attached(
    module: Module, places: Places, rungs: Sequence[Rung], source: Source
) -> Iterator[None]:
    links = []
    try:
        for rung in rungs:
            attachment = rung.attachments[0]
            symbol = places.symbol(rung.kind, attachment)
            program = module.load(rung.kind, attachment.function)
            links.append(_attach(rung.kind, program, attachment, symbol, source))
        for attachment in PROGRAMS:
            program = module.load("raw_tracepoint", attachment.function)
            place = attachment.target
            links.append(_attach("raw_tracepoint", program, attachment, place, source))
        yield
    finally:
        for link in links:
            os.close(link)


def _attach(kind: str, program: int, attachment: Attachment, symbol: str, source: Source) -> int:
    """As ``attach_or_fail``; a tracepoint has fewer arguments than a program may want that was made
    with another kernel's types (bpf_raw_tracepoint_open(): EINVAL).
    """
    try:
        return attach_or_fail(kind, program, attachment, symbol)
    except EbpfwatchError as error:
        if source.own:
            raise
        raise _not_of_this_kernel(source, error.message) from None


def _not_of_this_kernel(source: Source, why: str) -> EbpfwatchError:
    return EbpfwatchError(
        f"{source.name} is not of this kernel: {why}",
        "use what belongs to this very build (uname -r, uname -v), or none: `ebpfwatch check` says"
        " what there is",
        Exit.CONFIG,
    )


class _Lesson:
    def __init__(self, module: Module, source: Source) -> None:
        self._maps = {
            name: module.map(name)
            for name in ("learned", "count_allocated", "allocated", "evicted")
        }
        self._source = source
        #: By number, then by generation: ext4 gives the number of a dead file to the next one.
        self._files: dict[int, dict[int, File]] = {}
        self._wrong = ""
        self._refused = ""
        self._tries = 0

    def learn(self, mounts: Sequence[str]) -> Learned:
        deadline = time.monotonic() + _SECONDS
        created = False
        # One after the other, not all at once: one that is frozen keeps whoever writes there.
        for mount in itertools.cycle(mounts or ("",)):
            if time.monotonic() > deadline or self._tries >= _TRIES:
                break
            with on_one_cpu():
                file = self._die_young(mount)
                if file is not None:
                    created = True
                    self._files.setdefault(file.ino, {})[file.generation] = file
                    force_grace_period()
            for _ in range(_LOOKS if file else 1):
                answer = self._answer()
                if answer is not None:
                    return answer
                time.sleep(0.002)
        raise self._why_not(created)

    def _die_young(self, mount: str) -> File | None:
        """A file that lived and died; None where that cannot be: another mount will do."""
        if not mount:
            self._refused = "each is mounted read-only"
            return None
        try:
            return _nameless(mount)
        except OSError as error:
            self._refused = f"{mount}: {error.strerror}"
            return None

    def _answer(self) -> Learned | None:
        values = struct.unpack(
            _LAYOUT, map_lookup(self._maps["learned"], 0, struct.calcsize(_LAYOUT))
        )
        learned = Learned(*values)
        if not learned.cache:
            return None
        self._wrong = self._compare(learned)
        if not self._wrong:
            return learned
        self._forget()
        return None

    def _compare(self, learned: Learned) -> str:
        address = learned.object + learned.vfs_inode
        evicted = next((one for one in self._said("evicted") if one.inode == address), _Testimony())
        alive = next((one for one in self._said("allocated") if one.inode == address), _Testimony())
        files = self._files.get(evicted.ino)
        if not files:
            return "i_ino"
        file = files.get(evicted.generation, next(iter(files.values())))
        return mismatch(file, alive, evicted, learned.dead_state)

    def _said(self, name: str) -> Iterator[Any]:
        size = ctypes.sizeof(_Testimony)
        for index in range(OURS):
            yield _Testimony.from_buffer_copy(map_lookup(self._maps[name], index, size))

    def _forget(self) -> None:
        """It was another's inode, or the offsets are wrong: once more, from the beginning."""
        self._tries += 1
        for name in ("allocated", "evicted"):
            for index in range(OURS):
                map_update(self._maps[name], index, bytes(_Testimony()))
        map_update(self._maps["count_allocated"], 0, bytes(4))
        map_update(self._maps["learned"], 0, bytes(struct.calcsize(_LAYOUT)))

    def _why_not(self, created: bool) -> EbpfwatchError:
        evicted = [one for one in self._said("evicted") if one.inode]
        strange = [one for one in evicted if one.ino not in self._files]
        if self._wrong or (evicted and len(strange) == len(evicted)):
            what = self._wrong or "i_ino"
            return _not_of_this_kernel(self._source, f"{what} of a file of ours reads wrong")
        if not created:
            return EbpfwatchError(
                f"no file can be created on any ext4 filesystem ({self._refused}), so ext4's cache"
                " is not known",
                "mount an ext4 filesystem read-write, with room for a file",
                Exit.UNAVAILABLE,
            )
        if in_own_pid_namespace():
            return EbpfwatchError(
                "this process is in a PID namespace of its own, as in a container: the kernel knows"
                " it by another number, so it cannot find its own files' inodes, and ext4's cache"
                " is not known",
                "run it in the machine's own: hostPID: true on Kubernetes, --pid=host elsewhere",
                Exit.UNAVAILABLE,
            )
        what = "freed" if evicted else "evicted"
        return EbpfwatchError(
            f"no ext4 inode of ours was seen {what} within {_SECONDS:.0f} s, so ext4's cache is not"
            " known",
            "see `ebpfwatch check`; if its hooks hold, report it with its output",
            Exit.UNAVAILABLE,
        )


def _nameless(directory: str) -> File:
    """Allocate an inode that has no name and let it die at once; raises ``OSError``."""
    fd = os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        stat = os.fstat(fd)
        generation = generation_of(fd)
    finally:
        os.close(fd)
    return File(stat.st_ino, generation, os.major(stat.st_dev), os.minor(stat.st_dev))
