"""What the daemon and the loader child say to each other, in records.

``LoadRequest`` goes to the child, and ``Go`` once it may attach; back come ``Loaded`` with the fds
of maps, programs and links, or
``Examined`` (nothing was kept), or ``Failure``.  ``handoff`` carries them and checks what arrives.
"""

from __future__ import annotations

import dataclasses

from ebpfwatch.catalogue.ladder import Attachment
from ebpfwatch.kernel.dry_run import DryRun
from ebpfwatch.kernel.hook import LoadedHook
from ebpfwatch.kernel.tracebuffer import Dump

__all__ = ["Examined", "Features", "Go", "Learned", "LoadRequest", "Loaded", "Origin", "Place"]


@dataclasses.dataclass(frozen=True)
class LoadRequest:
    """What to load, and how.

    ``unit`` is a key of ``catalogue.ladder.UNITS``; ``mounts`` are where the child may let a file
    of its own die, to learn from it.  ``attach`` false: everything is loaded and described, and
    nothing is attached (for tests and measurements).  ``verify``: everything is loaded and dropped
    again.  ``keep`` is the directory where compiled programs are kept for the next start, "" for
    none; ``build``: they are compiled, tried and kept, whatever is kept already, and nothing is
    attached.  The other fields are the configuration's keys of the same names.
    """

    unit: str
    alloc: str
    any_free: str
    table_slots: int
    note_slots: int
    ring_bytes: int
    armed: str = "auto"
    rungs: str = ""
    btf: str = ""
    trace: bool = False
    dump_on_oops: bool = False
    names: bool = True
    first_stacks: bool = False
    mounts: tuple[str, ...] = ()
    attach: bool = True
    verify: bool = False
    verbose: bool = False
    keep: str = ""
    build: bool = False


@dataclasses.dataclass(frozen=True)
class Go:
    """The daemon's second word: all that can fail in a start has been tried, so attach.

    Until then the child only loads: a start that fails has changed nothing in the kernel.
    """


@dataclasses.dataclass(frozen=True)
class Features:
    """What this kernel has; all but ``btf`` are the HAVE_* of probes/."""

    ringbuf: bool
    cmpxchg: bool
    probe_read_kernel: bool
    direct_read: bool
    btf: bool


@dataclasses.dataclass(frozen=True)
class Learned:
    """What only a living kernel tells: ``struct learned`` of probes/learn.c, in its order; zeros
    where a unit does not learn.
    """

    cache: int = 0
    call_site: int = 0
    object: int = 0
    dead_state: int = 0
    vfs_inode: int = 0

    @property
    def values(self) -> dict[str, int]:
        """The same by the names in probes/ (``loader.image.HOLES``)."""
        return {
            "EXT4_INODE_CACHE": self.cache,
            "EXT4_FREE_SITE": self.call_site,
            "DEAD_STATE": self.dead_state,
            "OFF_VFS_INODE": self.vfs_inode,
        }


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one program is attached; ``symbol`` is what its target is called on this kernel."""

    role: str
    kind: str
    symbol: str
    attachment: Attachment


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the programs are from.

    ``file`` holds them, compiled, for this kernel and configuration; "" if none does.
    ``compiled``: why they were compiled now, "" if they are the file's.  ``not_kept``: why they
    could not be kept.
    """

    file: str = ""
    compiled: str = ""
    not_kept: str = ""


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What was loaded.

    The fds come beside it in this order: ``maps``, ``programs``, and one link for each of
    ``places`` (none if nothing was to be attached).  ``offsets`` are bytes by the define of
    probes/ (OFF_*).  ``slab_free_ns`` is what the trap of a kprobe on every slab free costs, 0 if
    there is none.  ``offsets_from`` is who told the offsets; ``unproven``: why those of dentries
    and open files were not held against a file of ours, "" if they were.
    """

    hooks: tuple[LoadedHook, ...]
    features: Features
    offsets: dict[str, int]
    learned: Learned
    maps: tuple[str, ...]
    programs: tuple[str, ...]
    places: tuple[Place, ...]
    slab_free_ns: float
    dump: Dump
    origin: Origin = Origin()
    offsets_from: str = ""
    unproven: str = ""


@dataclasses.dataclass(frozen=True)
class Examined:
    """What would be loaded, and what the verifier says of it.

    ``members`` are the offsets that this kernel has, () where nobody tells before the start;
    ``offsets_from`` is who tells them.
    """

    hooks: tuple[LoadedHook, ...]
    features: Features
    dry_run: DryRun
    origin: Origin = Origin()
    members: tuple[str, ...] = ()
    offsets_from: str = ""
