"""A simulated ext4 inode: runs the loaded programs through any history; touches no real inode.

The object is a page of BPF map memory (probes/selftest.c).  Each step first writes what the kernel
would have written into the inode, then runs the real program with BPF_PROG_TEST_RUN (raw
tracepoints, Linux >= 5.10).  Used by `ebpfwatch selftest` and by the model-based tests.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Mapping

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.kernel.libbpf import ENOTSUPP, map_lookup, map_update, raw_tracepoint_test_run
from ebpfwatch.kernel.protocol import Learned

__all__ = ["PAGE_BYTES", "FakeInode", "Playback"]

PAGE_BYTES = 4096

#: Where on the page: the superblock, the inode's neighbour on its list, dentries of the file, its
#: directory and the root, names.
_SUPER, _LISTED, _DENTRY, _DIRECTORY, _ROOT = 2048, 3000, 3072, 3072 + 256, 3072 + 512
_NAME, _DIRECTORY_NAME = 3840, 3968
_TYPE, _TYPE_NAME = 2560, 2688

#: Members of four bytes.
_INTS = {"OFF_I_WRITECOUNT", "OFF_I_READCOUNT", "OFF_D_COUNT"}


@dataclasses.dataclass
class FakeInode:
    """What the inode's memory holds."""

    ino: int = 4242
    generation: int = 7
    nlink: int = 0
    state: int = 0
    count: int = 1
    published: bool = True
    constructed: bool = (
        True  #: False: its list head is NULL, as some kernels' constructor leaves it
    )
    reused: bool = False  #: the memory is somebody else's: the list does not point back
    lock_owner: int | None = None  #: the task that holds its lock for writing; None: whoever plays
    dev: int = 0
    name: bytes = b"ebpfwatch-selftest"
    directory: bytes = b"made-up"
    #: Other members, by the name of their offset: of the inode, and of its dentry.
    members: dict[str, int] = dataclasses.field(default_factory=dict)
    dentry: dict[str, int] = dataclasses.field(default_factory=dict)
    above_directory: int = 0  #: the directory's parent, where it is not the root


class Playback:
    """The loaded programs, by name, and the page to run them on.

    ``programs`` and ``maps`` are fds; ``offsets`` and ``learned`` are the loader's.
    """

    __test__ = False

    def __init__(
        self,
        programs: Mapping[str, int],
        maps: Mapping[str, int],
        offsets: Mapping[str, int],
        learned: Learned,
    ) -> None:
        self._programs = programs
        self._maps = maps
        #: The loader's, and the member that RCU's function shares with the list of aliases.
        self.offsets = {**offsets, "OFF_D_FUNC": offsets["OFF_D_U"] + 8}
        self._cache = learned.cache
        self.dead = learned.dead_state
        self.call_site = learned.call_site
        try:
            raw_tracepoint_test_run(programs["find_selftest_page"])
        except OSError as error:
            raise EbpfwatchError(
                f"the kernel cannot run a program for a test: {error}",
                "BPF_PROG_TEST_RUN of raw tracepoints needs Linux 5.10",
                Exit.UNAVAILABLE,
            ) from None
        if "kmem_cache_free" in programs:  # of no cache of ours: before a history is half played
            self._run("kmem_cache_free", 0, 0, 0)
        self.object = struct.unpack("<Q", map_lookup(maps["selftest_address"], 0, 8))[0]
        self.inode = FakeInode()

    @property
    def dentry_address(self) -> int:
        """The address of the inode's dentry."""
        return int(self.object + _DENTRY)

    @property
    def directory_address(self) -> int:
        """The address of the dentry above it."""
        return int(self.object + _DIRECTORY)

    @property
    def inode_address(self) -> int:
        """The address of the inode inside the object."""
        return int(self.object + self.offsets["OFF_VFS_INODE"])

    def close(self) -> None:
        """Close the fds of programs and maps, where they are the test's own (opened by id)."""
        for fd in (*self._programs.values(), *self._maps.values()):
            os.close(fd)

    def write(self) -> None:
        """Put the inode's present state into memory."""
        page = bytearray(PAGE_BYTES)
        inode, at = self.inode, self.offsets
        base = at["OFF_VFS_INODE"]
        list_head = self.inode_address + at["OFF_I_SB_LIST"]

        def put(layout: str, offset: int, value: int) -> None:
            struct.pack_into("<" + layout, page, offset, value)

        put("Q", base + at["OFF_I_INO"], inode.ino)
        put("I", base + at["OFF_I_GENERATION"], inode.generation)
        put("I", base + at["OFF_I_NLINK"], inode.nlink)
        put("I", base + at["OFF_I_STATE"], inode.state)
        put("I", base + at["OFF_I_COUNT"], inode.count)
        put("Q", base + at["OFF_I_SB"], self.object + _SUPER)
        put("Q", base + at["OFF_I_SB_LIST"], self._next(list_head))
        if "OFF_I_RWSEM_OWNER" in at:
            owner = self.task() if inode.lock_owner is None else inode.lock_owner
            put("Q", base + at["OFF_I_RWSEM_OWNER"], owner)
        put("Q", _LISTED + 8, 0 if inode.reused else list_head)
        put("I", _SUPER + at["OFF_S_DEV"], inode.dev)
        put("Q", _DENTRY + at["OFF_D_INODE"], self.inode_address)
        put("Q", _DENTRY + at["OFF_D_NAME"], self.object + _NAME)
        page[_NAME : _NAME + len(inode.name)] = inode.name
        for dentry, above in ((_DENTRY, _DIRECTORY), (_DIRECTORY, _ROOT), (_ROOT, _ROOT)):
            put("Q", dentry + at["OFF_D_PARENT"], self.object + above)
        put("Q", _DIRECTORY + at["OFF_D_INODE"], self.inode_address)
        put("Q", _ROOT + at["OFF_D_INODE"], self.object)
        put("Q", _DIRECTORY + at["OFF_D_NAME"], self.object + _DIRECTORY_NAME)
        page[_DIRECTORY_NAME : _DIRECTORY_NAME + len(inode.directory)] = inode.directory
        put("Q", _SUPER + at["OFF_S_TYPE"], self.object + _TYPE)
        put("Q", _TYPE + at["OFF_FS_NAME"], self.object + _TYPE_NAME)
        page[_TYPE_NAME : _TYPE_NAME + 4] = b"ext4"
        for dentry in (_DENTRY, _DIRECTORY, _ROOT):
            put("Q", dentry + at["OFF_D_SB"], self.object + _SUPER)
        if inode.above_directory:
            put("Q", _DIRECTORY + at["OFF_D_PARENT"], inode.above_directory)
        for members, start in ((inode.members, base), (inode.dentry, _DENTRY)):
            for define, value in members.items():
                put("i" if define in _INTS else "Q", start + at[define], value)
        map_update(self._maps["selftest_page"], 0, bytes(page))

    def _next(self, list_head: int) -> int:
        """Where the link to the superblock's list points."""
        if self.inode.published or self.inode.reused:
            return int(self.object + _LISTED)
        return list_head if self.inode.constructed else 0

    def task(self) -> int:
        """The kernel's address of the task that we are."""
        self._run("find_selftest_page")
        return int(struct.unpack("<Q", map_lookup(self._maps["selftest_address"], 1, 8))[0])

    def alloc(self) -> None:
        """The slab hands the object out; its memory begins a life that is not yet published."""
        self.inode.state, self.inode.count = 0, 1
        self.inode.published = self.inode.reused = False
        self.write()
        if "kmem_cache_alloc" in self._programs:
            self._run("kmem_cache_alloc", self.call_site, self.object, self._cache)

    def publish(self) -> None:
        """The inode comes onto its superblock's list: it is alive."""
        self.inode.published = True
        self.write()

    def unlink_enter(self) -> None:
        """ext4_unlink is entered; the parent directory is played by the inode itself."""
        self.inode.nlink = max(1, self.inode.nlink)  # else there is no name to delete
        self.write()
        self._run("ext4_unlink_enter", self.inode_address, self.object + _DENTRY)

    def another_dentry(self) -> int:
        """The address of one whose inode is another."""
        return int(self.object + _ROOT)

    def unlink_exit(self, result: int = 0) -> None:
        """ext4_unlink returns."""
        self.inode.nlink -= not result
        self.write()
        self._run("ext4_unlink_exit", self.object + _DENTRY, result)

    def evict(self) -> None:
        """ext4_evict_inode is entered; afterwards clear_inode() has done its work."""
        self.inode.count, self.inode.published = 0, False
        self.write()
        self._run("ext4_evict_inode", self.inode_address)
        self.inode.state = self.dead
        self.write()

    def free(self, call_site: int = 0) -> None:
        """kmem_cache_free of the object, from ext4's own call site unless another is given."""
        self.write()
        self._run("kmem_cache_free", call_site or self.call_site, self.object, self._cache)

    def play(self, program: str, *arguments: int) -> None:
        """Any program, after the memory was written."""
        self.write()
        self._run(program, *arguments)

    def shrink_start(self) -> None:
        """This task enters shrink_slab."""
        self._run("mm_shrink_slab_start")

    def shrink_end(self) -> None:
        """This task leaves shrink_slab."""
        self._run("mm_shrink_slab_end")

    def _run(self, program: str, *arguments: int) -> None:
        if program not in self._programs:
            raise EbpfwatchError(
                f"the program {program} is not loaded here, so its history cannot be played",
                "only raw tracepoint rungs can be run by hand; see `ebpfwatch check`",
                Exit.UNAVAILABLE,
            )
        try:
            raw_tracepoint_test_run(self._programs[program], *arguments)
        except OSError as error:
            if error.errno != ENOTSUPP:
                raise
            raise EbpfwatchError(
                f"the program {program} is a kprobe here, so its history cannot be played",
                "only raw tracepoint rungs can be run by hand; see `ebpfwatch check`",
                Exit.UNAVAILABLE,
            ) from None
