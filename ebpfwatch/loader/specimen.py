"""A file of ours whose objects are looked at in the kernel's memory (probes/specimen.h).

It is made, linked, opened several times, mapped and deleted, in a directory that nobody else can
open, and after each step its memory is kept: ``anatomy`` says what that tells of the offsets.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ebpfwatch.catalogue.layout import MOMENT_BYTES, MOMENTS, PEEK_BYTES, Moment
from ebpfwatch.events.wire import LAYOUTS
from ebpfwatch.kernel.libbpf import map_lookup, map_update
from ebpfwatch.loader.anatomy import Found, Specimen, State, alive, dead
from ebpfwatch.loader.image import Module
from ebpfwatch.system.closed import device_of, open_closed, unused_name
from ebpfwatch.system.grace import force_grace_period, on_one_cpu

__all__ = ["Viewer", "generation_of", "lives"]

_Met: Any = LAYOUTS["met"]
_Moment: Any = LAYOUTS["moment"]
_Peeked: Any = LAYOUTS["peeked"]

_PR_SET_NAME, _PR_GET_NAME = 15, 16
_FS_IOC_GETVERSION = 0x80087601
_WRITERS, _READERS = 3, 4  #: numbers that nothing else in an inode is likely to have
_CACHE_NAME = b"ext4_inode_cache\0"
_SECONDS = 12.0  #: for its free; longer than lazy RCU waits (LAZY_FLUSH_JIFFIES, 10 s)


def generation_of(fd: int) -> int:
    """Of an open file of ext4's."""
    raw = fcntl.ioctl(fd, _FS_IOC_GETVERSION, bytes(8))
    return int(struct.unpack_from("<I", raw)[0])


class Viewer:
    """What the programs of probes/specimen.h keep, and the kernel's memory, read through them."""

    def __init__(self, module: Module) -> None:
        self._maps = {name: module.map(name) for name in ("met", "moments", "peeked")}
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._name = ctypes.create_string_buffer(16)
        self._libc.prctl(_PR_GET_NAME, self._name, 0, 0, 0)

    def read(self, address: int, size: int) -> bytes:
        """Kernel memory; b"" where there is none."""
        parts = []
        for start in range(0, size, PEEK_BYTES):
            map_update(self._maps["peeked"], 0, bytes(_Peeked(address=address + start, failed=1)))
            self._libc.prctl(_PR_SET_NAME, self._name, 0, 0, 0)
            raw = map_lookup(self._maps["peeked"], 0, ctypes.sizeof(_Peeked))
            answer = _Peeked.from_buffer_copy(raw)
            if answer.failed:
                return b""
            parts.append(bytes(answer.bytes))
        return b"".join(parts)[:size]

    def met(self) -> Any:
        """``struct met``."""
        return _Met.from_buffer_copy(map_lookup(self._maps["met"], 0, ctypes.sizeof(_Met)))

    def moment(self, which: Moment) -> bytes:
        """The memory as it was then; b"" if that has not come."""
        raw = map_lookup(self._maps["moments"], which, ctypes.sizeof(_Moment))
        moment = _Moment.from_buffer_copy(raw)
        return bytes(moment.bytes) if moment.address else b""

    def forget(self) -> None:
        """Before the next file."""
        map_update(self._maps["met"], 0, bytes(_Met()))
        for which in range(MOMENTS):
            map_update(self._maps["moments"], which, bytes(_Moment()))

    def file_of(self, directory: int) -> int:
        """The address of the open file; raises ``OSError`` if it cannot be synced."""
        os.fsync(directory)
        return int(self.met().file)

    def inode(self) -> bytes:
        """The memory of the inode that we made last."""
        return self.read(self.met().inode, MOMENT_BYTES)

    def dentry(self, address: int) -> bytes:
        """The memory of a dentry."""
        return self.read(address, PEEK_BYTES)


def _closed_directories(mounts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(fd, the kernel's number of the device) of each directory that a file of ours may have a name
    in; the fd is closed when the next is asked for.
    """
    for mount in mounts:
        try:
            major, minor = device_of(os.stat(mount))
        except OSError:
            continue
        for place in (f"{mount}/lost+found", f"{mount}/root", mount):
            directory = open_closed(place, (major, minor), os.O_RDONLY)
            if directory is None:
                continue
            try:
                yield directory, major << 20 | minor
            finally:
                os.close(directory)


def _realtime() -> bool:
    """PREEMPT_RT's lock has an owner, too, but other flags: nothing is concluded from it."""
    return Path("/sys/kernel/realtime").exists() or "PREEMPT_RT" in os.uname().version


class _File:
    """Ours, while it lives: what was done to it, and its memory after each step."""

    def __init__(self, view: Viewer, directory: int) -> None:
        self._view = view
        self._directory = directory
        self.name, self._other = unused_name("learner"), unused_name("learner")
        self._fds: list[int] = []
        self._names: set[str] = set()
        self.states: list[State] = []

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._names:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._directory)
        while self._fds:
            os.close(self._fds.pop())

    def _open(self, flags: int) -> None:
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC
        self._fds.append(os.open(self.name, flags, 0o600, dir_fd=self._directory))

    def keep(self, mapped: bool = False) -> None:
        """The inode as it is now, and what it must say."""
        status = os.fstat(self._fds[0])
        names = len(self._names) or 1  # a deleted file keeps the dentry that it was opened by
        readers = max(0, len(self._fds) - _WRITERS)
        writers = min(len(self._fds), _WRITERS)
        memory = self._view.inode()
        self.states.append(State(memory, status.st_nlink, names, writers, readers, mapped))

    def live(self) -> tuple[int, int, tuple[int, ...]]:
        """Its number and generation, and its names' dentries, the last one's last."""
        self._open(os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        self._names.add(self.name)
        self.keep()
        here = self._directory
        os.link(self.name, self._other, src_dir_fd=here, dst_dir_fd=here)
        self._names.add(self._other)
        self.keep()
        dentries = [self._delete(self._other)]
        self.keep()
        for _ in range(_WRITERS - 1):
            self._open(os.O_WRONLY)
        for _ in range(_READERS):
            self._open(os.O_RDONLY)
        dentries.append(self._delete(self.name))
        self.keep()
        os.ftruncate(self._fds[0], mmap.PAGESIZE)
        with mmap.mmap(self._fds[-1], mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ):
            self.keep(mapped=True)
        self.keep()
        status = os.fstat(self._fds[0])
        return status.st_ino, generation_of(self._fds[0]), tuple(dentries)

    def _delete(self, name: str) -> int:
        os.unlink(name, dir_fd=self._directory)
        self._names.discard(name)
        return int(self._view.met().dentry)

    def count(self, dentry: int) -> tuple[tuple[bytes, int], ...]:
        """The dentry's memory, and how often the file is open, twice."""
        before = self._view.dentry(dentry), len(self._fds)
        for _ in range(2):
            os.close(self._fds.pop())
        return before, (self._view.dentry(dentry), len(self._fds))


def _study(view: Viewer, directory: int, dev: int) -> tuple[Found, list[bytes]]:
    """One file's life up to its last close: what it tells, and the memory of its states; raises
    ``OSError`` where it cannot be made.
    """
    open_file = view.file_of(directory)
    cached: dict[tuple[int, int], bytes] = {}

    def read(address: int, size: int) -> bytes:
        if (address, size) not in cached:
            cached[address, size] = view.read(address, size)
        return cached[address, size]

    with _File(view, directory) as file:
        ino, generation, dentries = file.live()
        met = view.met()
        specimen = Specimen(
            ino=ino,
            generation=generation,
            dev=dev,
            name=file.name.encode(),
            inode=met.inode,
            dentry=dentries[-1],
            directory=met.directory,
            file=open_file,
            task=met.task,
            siblings=dentries,
            first=file.states[0].memory,
            states=tuple(file.states),
            counted=file.count(dentries[-1]),
            unlinked=view.moment(Moment.UNLINKED),
            locked=view.moment(Moment.DIRECTORY),
            released=file.states[-1].memory,
            has_owner=not _realtime(),
            read=read,
        )
        return alive(specimen), [state.memory for state in file.states]


def lives(
    view: Viewer, mounts: Sequence[str], count: int, to_the_end: bool = False
) -> Iterator[Found]:
    """What so many files tell while they live, and by their end; fewer, or none, where none can be
    made.
    """
    for directory, dev in _closed_directories(mounts):
        with contextlib.suppress(OSError), contextlib.ExitStack() as taken:
            while count > 0:
                view.forget()
                with on_one_cpu():
                    found, memories = _study(view, directory, dev)
                    if to_the_end:
                        force_grace_period()
                if to_the_end:
                    found.update(_end(view, memories))
                count -= 1
                yield found
                # Its number is free again; the next file must have another, which then stands in
                # fewer of the same places.
                fd = os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o600, dir_fd=directory)
                taken.callback(os.close, fd)
        if count <= 0:
            return


def _end(view: Viewer, memories: list[bytes]) -> Found:
    deadline = time.monotonic() + _SECONDS
    while not view.moment(Moment.FREED) and time.monotonic() < deadline:
        time.sleep(0.005)
    cache = view.read(view.met().cache, PEEK_BYTES)
    names = [
        offset
        for offset in range(0, len(cache), 8)
        if view.read(struct.unpack_from("<Q", cache, offset)[0], PEEK_BYTES).startswith(_CACHE_NAME)
    ]
    return dead(memories, view.moment(Moment.EVICTED), view.moment(Moment.FREED), names)
