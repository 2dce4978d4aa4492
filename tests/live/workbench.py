"""The probes compiled as another kernel's rungs would have them, to be run by hand on this one.

A host without kprobes or fentry cannot attach the programs of those rungs, but the code in them is
the same C: here each of their functions gets a wrapper that is a raw tracepoint program, which
BPF_PROG_TEST_RUN takes, and nothing is attached.  What the loader would learn is made up.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ebpfwatch.catalogue.ladder import UNITS
from ebpfwatch.kernel.playback import Playback
from ebpfwatch.kernel.session import Session
from ebpfwatch.loader import offsets, source
from ebpfwatch.loader.btf import Btf
from ebpfwatch.loader.compiler import Compiler, Module
from ebpfwatch.loader.prober import Prober
from ebpfwatch.loader.running import version_code
from ebpfwatch.loader.verify import STAND_INS
from ebpfwatch.paths import PROBES

__all__ = ["RUNGS", "Workbench"]

#: The rungs of this host, but that allocations may be missed, as on fentry.
RUNGS = (
    "UNLINK_RAW_TRACEPOINT",
    "EVICT_RAW_TRACEPOINT",
    "ANY_FREE_RAW_TRACEPOINT",
    "FREE_CACHE_ARG=2",
    "RECLAIM_RAW_TRACEPOINT",
    "HAVE_ALLOC",
    "ALLOC_RAW_TRACEPOINT",
    "ALLOC_CACHE_ARG=2",
)

#: What the wrappers call is in probes/; the arguments are those of the hooked functions.
_WRAPPERS = """
int inode_init_always(struct bpf_raw_tracepoint_args *ctx)
{
	on_alloc(ctx, object_of(ctx->args[1]));
	return 0;
}

int ext4_destroy_inode(struct bpf_raw_tracepoint_args *ctx)
{
	on_destroy(ctx, ctx->args[0], ctx->args[1]);
	return 0;
}

int ext4_free_in_core_inode(struct bpf_raw_tracepoint_args *ctx)
{
	on_free(ctx, HOOK_RCU_FREE, object_of(ctx->args[0]), ctx->args[1], LIFE_SLAB_FREE_DUE, false);
	return 0;
}
"""

_PROGRAMS = (
    "kmem_cache_alloc",
    "inode_init_always",
    "ext4_unlink_enter",
    "ext4_unlink_exit",
    "ext4_evict_inode",
    "ext4_destroy_inode",
    "ext4_free_in_core_inode",
    "kmem_cache_free",
    "mm_shrink_slab_start",
    "mm_shrink_slab_end",
    "find_selftest_page",
)


class Workbench:
    """A session of programs that are loaded, attached nowhere; ``bed`` drives them."""

    def __init__(self, defines: Sequence[str] = (), without: Sequence[str] = ()) -> None:
        btf = Btf()
        prober = Prober(version_code(), {}, btf)
        self._compiler = Compiler(prober.version, prober.features())
        where = offsets.from_btf(btf)
        flags = [f"-D{name}={value}" for name, value in where.items()]
        flags += [f"-DOFF_VFS_INODE={STAND_INS['vfs_inode']}"]
        flags += [f"-DEXT4_INODE_CACHE={STAND_INS['cache']:#x}ULL"]
        flags += [f"-DDEAD_STATE={STAND_INS['dead_state']:#x}u"]
        flags += [f"-DEXT4_FREE_SITE={STAND_INS['call_site']:#x}ULL"]
        flags += ["-DTABLE_BUCKETS=64", "-DNOTE_SLOTS=64", "-DRING_PAGES=64"]
        flags += [f"-D{define}" for define in (*RUNGS, *defines) if define not in without]
        text = source.unit(PROBES, "ebpfwatch.c") + _WRAPPERS
        self._module = self._compile(text, flags)
        names = UNITS["ebpfwatch.c"].maps
        maps = [os.dup(self._module.map(name)) for name in names]
        programs = [name for name in _PROGRAMS if f"int {name}(" in text]
        fds = [os.dup(self._module.load("raw_tracepoint", name)) for name in programs]
        reply = {
            "maps": names,
            "programs": programs,
            "hooks": [],
            "offsets": {**where, "OFF_VFS_INODE": STAND_INS["vfs_inode"]},
            "features": prober.features(),
            "learned": STAND_INS,
            "links": [],
        }
        self.session = Session(reply, maps + fds)
        session = self.session
        self.bed = Playback(session.programs, session.maps, session.offsets, session.learned)

    def _compile(self, text: str, flags: list[str]) -> Module:
        compiler = self._compiler
        return Module(
            compiler._bcc.BPF(
                text=text.encode(), cflags=[*compiler._shim_flags, *compiler._flags, *flags]
            )
        )

    def close(self) -> None:
        """Unload."""
        self.session.close()
        self._module.close()
