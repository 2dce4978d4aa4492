"""The probes compiled as another kernel's rungs would have them, to be run by hand on this one.

A host without kprobes or fentry cannot attach the programs of those rungs, but the code in them is
the same C: here each of their functions gets a wrapper that is a raw tracepoint program, which
BPF_PROG_TEST_RUN takes, and nothing is attached.  What the loader would learn is made up.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ebpfwatch.catalogue.ladder import UNITS
from ebpfwatch.events.wire import VerdictEvent, decode
from ebpfwatch.kernel.libbpf import raw_tracepoint_test_run
from ebpfwatch.kernel.playback import Playback
from ebpfwatch.kernel.protocol import Features, Loaded
from ebpfwatch.kernel.session import Session
from ebpfwatch.kernel.tracebuffer import Dump
from ebpfwatch.loader import offsets
from ebpfwatch.loader.btf import Btf
from ebpfwatch.loader.compiler import Compiler
from ebpfwatch.loader.image import Module
from ebpfwatch.loader.prober import Prober
from ebpfwatch.loader.running import version_code
from ebpfwatch.loader.verify import STAND_INS

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
    "HOTPLUG_RAW_TRACEPOINT",
    "CROSSED_NS=2000000000ull",  # a test moves between CPUs more slowly than RCU runs callbacks
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

int dentry_kill(struct bpf_raw_tracepoint_args *ctx)
{
	on_dentry(ctx, ctx->args[0], ctx->args[1], false);
	return 0;
}

int dentry_free(struct bpf_raw_tracepoint_args *ctx)
{
	on_dentry(ctx, ctx->args[0], ctx->args[1], true);
	return 0;
}

int iput(struct bpf_raw_tracepoint_args *ctx)
{
	on_put(ctx, ctx->args[0], ctx->args[1]);
	return 0;
}

int fput(struct bpf_raw_tracepoint_args *ctx)
{
	on_close(ctx, ctx->args[0], ctx->args[1]);
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
    "cpuhp_enter",
    "dentry_kill",
    "dentry_free",
    "iput",
    "fput",
    "find_selftest_page",
)


class Workbench:
    """A session of programs that are loaded, attached nowhere; ``bed`` drives them."""

    def __init__(self, defines: Sequence[str] = (), page: int = 0, **places: int) -> None:
        btf = Btf()
        prober = Prober(version_code(), {}, btf)
        features = prober.features()
        where = {**offsets.from_btf(btf), "OFF_VFS_INODE": STAND_INS.vfs_inode}
        where.update((name, at) for name, at in places.items() if name.startswith("OFF_"))
        values: dict[str, object] = {
            **where,
            "EXT4_INODE_CACHE": f"{STAND_INS.cache:#x}ULL",
            "DEAD_STATE": f"{STAND_INS.dead_state:#x}u",
            "EXT4_FREE_SITE": f"{STAND_INS.call_site:#x}ULL",
            "TABLE_BUCKETS": 64,
            "NOTE_SLOTS": 64,
            "RING_PAGES": 64,
            **({} if "NO_DIRECT_READ" in defines else prober.direct_read),
            **places,
        }
        flags = [f"-D{name}={value}" for name, value in values.items()]
        flags += [f"-D{define}" for define in (*RUNGS, *defines)]
        compiler = Compiler(
            prober.version, {**features, "cmpxchg": "NO_CMPXCHG" not in defines}, page
        )
        image = compiler.compile("ebpfwatch.c", flags, _WRAPPERS)
        self._module = Module(image, prober.version, {})
        maps = (*UNITS["ebpfwatch.c"].maps, "verdict_in_use")
        fds = [os.dup(self._module.map(name)) for name in maps]
        fds += [os.dup(self._module.load("raw_tracepoint", name)) for name in _PROGRAMS]
        loaded = Loaded(
            hooks=(),
            features=Features(**features, btf=True),
            offsets=where,
            learned=STAND_INS,
            maps=maps,
            programs=_PROGRAMS,
            places=(),
            slab_free_ns=0.0,
            dump=Dump(False, ""),
        )
        self.session = Session(loaded, fds)
        session = self.session
        self.bed = Playback(session.programs, session.maps, where, STAND_INS)

    def run(self, program: str, *arguments: int) -> None:
        """Run one of the programs by hand."""
        raw_tracepoint_test_run(self.session.programs[program], *arguments)

    def verdicts(self) -> list[VerdictEvent]:
        """What the ring holds; it is empty then."""
        self.session.consume()
        events = [decode(record) for record in self.session.records]
        self.session.records.clear()
        return [event for event in events if isinstance(event, VerdictEvent)]

    def close(self) -> None:
        """Unload."""
        self.session.close()
        self._module.close()
