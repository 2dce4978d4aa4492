"""Finds the names, inodes and files of a kernel, and who refers to them, for ``references``."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.postmortem.memory import Fault, Memory, Shape, offset, places
from ebpfwatch.postmortem.references import Holder, Inode, Name, OpenFile
from ebpfwatch.postmortem.slabs import Slabs

__all__ = ["Superblock", "Walk"]

#: Names and inodes that are looked at, which bounds memory.  What is left out makes what is found
#: smaller, and so accuses nobody.
_MOST_NAMES, _MOST_INODES = 2_000_000, 1_500_000
#: File systems that are on no disk: each name in them holds itself (simple_pin_fs() and dget() in
#: their own code; they end with kill_litter_super()).
_PINNED = frozenset(
    "autofs binfmt_misc bpf configfs debugfs devpts devtmpfs efivarfs functionfs hugetlbfs mqueue"
    " pstore ramfs rootfs rpc_pipefs securityfs selinuxfs smackfs tmpfs tracefs".split()
)


@dataclasses.dataclass(frozen=True)
class Superblock:
    """A mounted file system; ``place`` is where it is mounted, "" if nowhere that is found."""

    address: int
    kind: str
    id: str
    device: int
    root: int
    place: str

    @property
    def label(self) -> str:
        """As people know it."""
        number = f"{self.device >> 20}:{self.device & 0xFFFFF}"
        return f"{self.kind} {self.id} ({number})" if self.id != self.kind else self.kind


class Walk:
    """One look at a kernel; what cannot be read is in ``unread``, a line each."""

    def __init__(self, drgn: Any, program: Any, seconds: float = 600) -> None:
        self._drgn, self._program = drgn, program
        self._until = time.monotonic() + seconds

        def read(address: int, size: int) -> bytes:
            try:
                return bytes(program.read(address, size))
            except drgn.FaultError:
                raise Fault(hex(address)) from None

        self.memory = Memory(read)
        self.unread: list[str] = []
        self.slabs = Slabs(drgn, program, self.memory)
        if not self.slabs.known:
            raise EbpfwatchError(
                "the slab allocator's account of this kernel cannot be read, and without it no"
                " name can be counted",
                "the kernel must use SLUB, on 64-bit x86 or arm64, and the dump have its pages",
                Exit.UNAVAILABLE,
            )
        self.superblocks = {one.address: one for one in self._superblocks()}
        self.tasks = 0
        self.mounts = 0
        self.held: dict[int, list[Holder]] = {}
        self._uses: dict[int, int] = {}
        self._whose: dict[int, str] = {}
        self._tasks()
        self._mounts()
        self.files = list(self._files())
        self.names = list(self._names())
        self._must_have_roots()
        self.inodes = list(self._inodes())

    def _is_name(self, address: int) -> bool:
        slab = self.slabs.at(address)
        return slab is not None and slab.cache.name == "dentry" and slab.allocated(address)

    def _enough(self, count: int, most: int, what: str) -> bool:
        """Whether to stop; says so."""
        late = time.monotonic() > self._until
        if late or count >= most:
            why = "the time was over" if late else "that is the most that is looked at"
            self.unread.append(f"{what} after {count}: {why}")
        return late or count >= most

    def _must_have_roots(self) -> None:
        """Each file system has a root.  Where not nearly all of them are names for the slab
        allocator, it is its account that is not understood, and nobody is accused.
        """
        roots = [one.root for one in self.superblocks.values() if one.root]
        found = len([root for root in roots if self._is_name(root)])
        if found < 0.9 * len(roots):
            raise EbpfwatchError(
                f"the slab allocator's account of this kernel is not understood: of {len(roots)}"
                f" file systems {found} have a root in it",
                "please report the kernel's version and configuration",
                Exit.UNAVAILABLE,
            )

    def pinned(self, superblock: int) -> bool:
        """Whether the names of this file system hold a reference of themselves."""
        found = self.superblocks.get(superblock)
        return found is not None and found.kind in _PINNED

    def whose(self, file: int) -> str:
        """The task that has this file open, "" if none was found."""
        return self._whose.get(file, "")

    def path(self, name: int) -> str:
        """Of a dentry: where its file system is mounted, then the names from its root."""
        parts: list[str] = []
        seen: set[int] = set()
        place = ""
        try:
            while name not in seen and len(parts) < 256:
                seen.add(name)
                fields = self._shape_name.take(self.memory.read(name, self._shape_name.size))
                parent, text, superblock = fields[1], fields[2], fields[6]
                if parent == name:
                    found = self.superblocks.get(superblock)
                    place = found.place if found else ""
                    break
                parts.append(self._text(text))
                name = parent
        except Fault:
            parts.append("...")
        whole = place.rstrip("/") + "/" + "/".join(reversed(parts))
        return whole.rstrip("/") or "/"

    def _text(self, address: int) -> str:
        raw = b""
        with contextlib.suppress(Fault):
            while b"\0" not in raw and len(raw) < 256:
                raw += self.memory.read(address + len(raw), 16)
        return raw.partition(b"\0")[0].decode("utf-8", "replace") or "?"

    def _superblocks(self) -> Iterator[Superblock]:
        from drgn.helpers.linux.list import list_for_each_entry

        for one in list_for_each_entry(
            "struct super_block", self._program["super_blocks"].address_of_(), "s_list"
        ):
            try:
                yield Superblock(
                    int(one.value_()),
                    one.s_type.name.string_().decode("ascii", "replace"),
                    one.s_id.string_().decode("utf-8", "replace"),
                    int(one.s_dev),
                    int(one.s_root),
                    self._place(one),
                )
            except self._drgn.FaultError:
                self.unread.append(f"the superblock {int(one.value_()):#x}")

    def _place(self, superblock: Any) -> str:
        from drgn.helpers.linux.fs import mount_dst

        with contextlib.suppress(self._drgn.FaultError, ValueError):
            for mount in self._mounts_of(superblock):
                if mount.mnt.mnt_root == superblock.s_root and mount.mnt_ns:
                    return str(mount_dst(mount).decode("utf-8", "replace"))
        return ""

    def _mounts_of(self, superblock: Any) -> Iterator[Any]:
        try:
            from drgn.helpers.linux.fs import super_block_for_each_mount
        except ImportError:  # drgn before 0.0.33
            from drgn.helpers.linux.list import list_for_each_entry

            mounts = superblock.s_mounts.address_of_()
            return iter(list_for_each_entry("struct mount", mounts, "mnt_instance"))
        return iter(super_block_for_each_mount(superblock))

    def _hold(self, name: int, kind: str, who: str = "") -> None:
        if name:
            self.held.setdefault(name, []).append(Holder(kind, who))

    def _tasks(self) -> None:
        from drgn.helpers.linux.pid import for_each_task

        seen: set[int] = set()
        try:
            for task in for_each_task(self._program):
                self.tasks += 1
                with contextlib.suppress(self._drgn.FaultError):
                    self._task(task, seen)
        except (self._drgn.FaultError, LookupError) as error:
            self.unread.append(f"some tasks: {error}")

    def _task(self, task: Any, seen: set[int]) -> None:
        who = f"{task.comm.string_().decode('utf-8', 'replace')} (pid {int(task.pid)})"
        fs, files, mm = task.fs.read_(), task.files.read_(), task.mm.read_()
        if fs and fs.value_() not in seen:
            seen.add(fs.value_())
            self._hold(int(fs.pwd.dentry), "working directory", who)
            self._hold(int(fs.root.dentry), "root directory", who)
        if files and files.value_() not in seen:
            seen.add(files.value_())
            for address in self._descriptors(files):
                self._use(address, who)
        if mm and mm.value_() not in seen:
            seen.add(mm.value_())
            self._mappings(mm, who)

    def _use(self, file: int, who: str) -> None:
        if file:
            self._uses[file] = self._uses.get(file, 0) + 1
            self._whose.setdefault(file, who)

    def _descriptors(self, files: Any) -> Iterator[int]:
        table = files.fdt.read_()
        count = min(int(table.max_fds), 1 << 20)
        try:
            raw = self.memory.read(int(table.fd), 8 * count)
        except Fault:
            return
        for at in range(0, len(raw), 8):
            yield int.from_bytes(raw[at : at + 8], "little")

    def _mappings(self, mm: Any, who: str) -> None:
        from drgn.helpers.linux.mm import for_each_vma

        self._use(int(mm.exe_file), who)
        for vma in for_each_vma(mm):
            self._use(int(vma.vm_file), who)

    def _mounts(self) -> None:
        from drgn.helpers.linux.list import list_for_each_entry

        points: set[int] = set()
        for one in list_for_each_entry(
            "struct super_block", self._program["super_blocks"].address_of_(), "s_list"
        ):
            with contextlib.suppress(self._drgn.FaultError):
                self._hold(int(one.s_root), "root of its file system")
                for mount in self._mounts_of(one):
                    self.mounts += 1
                    self._hold(int(mount.mnt.mnt_root), "mount")
                    point = int(mount.mnt_mp)
                    if not point:
                        continue
                    # In 4.19 each mount holds its mount point (mnt_set_mountpoint()); later all
                    # that are mounted there hold it once (get_mountpoint()).
                    kind = "perhaps mount point" if point in points else "mount point"
                    points.add(point)
                    self._hold(int(mount.mnt_mountpoint), kind)

    def _files(self) -> Iterator[OpenFile]:
        drgn, type_ = self._drgn, self._program.type("struct file")
        wanted = {
            "count": (("f_count", "f_ref"), 8),
            "name": (("f_path.dentry",), 8),
            "operations": (("f_op",), 8),
            "private": (("private_data",), 8),
            "inode": (("f_inode",), 8),
        }
        shape = Shape(places(drgn, type_, wanted))
        # A file_ref_t (Linux 6.13) is 0 for one reference (FILE_REF_ONEREF).
        more = 0 if type_.has_member("f_count") else 1
        sockets = self._symbol("socket_file_ops")
        every = set(self._uses)
        for slab in self.slabs.of(["filp"]):
            every.update(one for one in slab.objects() if one not in slab.free)
        for address in every:
            try:
                raw = shape.take(self.memory.read(address, shape.size))
            except Fault:
                continue
            count, name, operations, private, inode = raw[:5]
            count = _signed(count, 64) + more
            sure = address in self._uses
            # The cache may be shared with others of its size: an object of another kind is none.
            if not name or count <= 0 or not (sure or self._is_file(name, inode)):
                continue
            if operations == sockets:
                self._socket(private)
            yield OpenFile(address, count, name, self._uses.get(address, 0), sure)

    def _is_file(self, name: int, inode: int) -> bool:
        try:
            fields = self._shape_name.take(self.memory.read(name, self._shape_name.size))
        except Fault:
            return False
        return fields[3] == inode and fields[6] in self.superblocks

    def _socket(self, address: int) -> None:
        """A socket with a name in the file system holds it (unix_bind())."""
        with contextlib.suppress(self._drgn.FaultError, LookupError, AttributeError):
            sk = self._drgn.Object(self._program, "struct socket *", value=address).sk
            if int(sk.member_("__sk_common").skc_family) == 1:
                unix = self._drgn.cast("struct unix_sock *", sk)
                self._hold(int(unix.path.dentry), "perhaps socket")

    def _symbol(self, name: str) -> int:
        try:
            return int(self._program.symbol(name).address)
        except LookupError:
            return 0

    @property
    def _shape_name(self) -> Shape:
        shape = self.__dict__.get("_name_shape")
        if shape is None:
            type_ = self._program.type("struct dentry")
            wanted = {
                "flags": (("d_flags",), 4),
                "parent": (("d_parent",), 8),
                "name": (("d_name.name",), 8),
                "inode": (("d_inode",), 8),
                "lock": (_LOCK("d_lockref.lock") + ("d_lock",), 4),
                "count": (("d_lockref.count", "d_count"), 4),
                "superblock": (("d_sb",), 8),
                "back": (("d_child.prev", "d_sib.pprev"), 8),
            }
            shape = self.__dict__["_name_shape"] = Shape(places(self._drgn, type_, wanted))
        return shape

    def _names(self) -> Iterator[Name]:
        lru = self._constant("DCACHE_LRU_LIST", 1 << 19)
        shrink = self._constant("DCACHE_SHRINK_LIST", 1 << 10)
        shape = self._shape_name
        # Linux 6.8 has d_sib instead of d_child.
        node = offset(self._drgn, self._program.type("struct dentry"), "d_child", "d_sib") or 0
        count = 0
        for slab in self.slabs.of(["dentry"]):
            if self._enough(count, _MOST_NAMES, "names"):
                return
            for address in slab.objects():
                if address in slab.free:
                    continue
                try:
                    raw = shape.take(self.memory.read(address, shape.size))
                except Fault:
                    continue
                flags, parent, name, inode, lock, references, superblock, back = raw[:8]
                if superblock not in self.superblocks:
                    continue  # taken from the slab a moment ago, and not yet a name
                count += 1
                yield Name(
                    address,
                    _signed(references, 32),
                    bool(lock),
                    parent,
                    inode,
                    superblock,
                    name,
                    bool(flags & lru and not flags & shrink),
                    self._leads(back, address + node),
                )

    def _leads(self, back: int, node: int) -> bool:
        """Whether the neighbour on its list leads to this node."""
        try:
            return bool(back) and self.memory.word(back) == node
        except Fault:
            return False

    def _inodes(self) -> Iterator[Inode]:
        drgn, program = self._drgn, self._program
        type_ = program.type("struct inode")
        wanted = {
            "mode": (("i_mode",), 2),
            "own": (("i_sb",), 8),
            "number": (("i_ino",), 8),
            "links": (("i_nlink",), 4),
            "lock": (_LOCK("i_lock"), 4),
            "state": (("i_state.__state", "i_state"), 4),
            "list": (("i_sb_list.next",), 8),
            "count": (("i_count.counter",), 4),
            "marks": (("i_fsnotify_marks",), 8),
        }
        shape = Shape(places(drgn, type_, wanted))
        link = int(drgn.offsetof(type_, "i_sb_list"))
        cleared, freeing = self._states()
        head_offset = int(drgn.offsetof(program.type("struct super_block"), "s_inodes"))
        count = 0
        for superblock in self.superblocks:
            head = superblock + head_offset
            seen: set[int] = set()
            try:
                at = self.memory.word(head)
                while at != head:
                    inode = at - link
                    if count % 1024 == 0 and self._enough(count, _MOST_INODES, "inodes"):
                        return
                    count += 1
                    if inode in seen:
                        self.unread.append(
                            f"the list of inodes of {self.superblocks[superblock].label} goes in a"
                            f" circle at {inode:#x}"
                        )
                        break
                    seen.add(inode)
                    raw = shape.take(self.memory.read(inode, shape.size))
                    mode, own, number, links, lock, flags, at, references, marks = raw[:9]
                    yield Inode(
                        inode,
                        _signed(references, 32),
                        bool(lock),
                        bool(flags & cleared),
                        bool(flags & freeing),
                        superblock,
                        own,
                        number,
                        bool(marks),
                        mode & 0o170000 == 0o040000,
                        links,
                    )
            except Fault as fault:
                self.unread.append(
                    f"the list of inodes of {self.superblocks[superblock].label} ends at {fault},"
                    f" which cannot be read, after {len(seen)}"
                )

    def _constant(self, name: str, otherwise: int) -> int:
        """Of an enumeration; older kernels have macros, which no debug information tells."""
        try:
            return int(self._program.constant(name))
        except LookupError:
            return otherwise

    def _states(self) -> tuple[int, int]:
        """I_CLEAR and I_FREEING: bits 6 and 5; 8 and 7 where __I_NEW, __I_SYNC and
        __I_LRU_ISOLATING are numbered 0 to 2 (include/linux/fs.h).
        """
        newer = self._constant("__I_LRU_ISOLATING", 0) == 2
        clear = self._constant("I_CLEAR", 1 << (8 if newer else 6))
        return clear, self._constant("I_FREEING", 1 << (7 if newer else 5))


def _LOCK(name: str) -> tuple[str, ...]:
    """A spinlock's word: 0 where nobody holds it; on PREEMPT_RT its owner's."""
    return (f"{name}.rlock.raw_lock.val.counter", f"{name}.rlock.raw_lock", f"{name}.lock.owner")


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value
