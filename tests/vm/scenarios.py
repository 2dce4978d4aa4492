"""What guests are booted for: each crime under the daemon's eyes, without it, and the rest.

A scenario's script is in scripts/; one that judges itself exits 0 or says in /results/why what was
wrong.
"""

from __future__ import annotations

import dataclasses

__all__ = ["SCENARIOS", "Scenario"]

#: 1 MB behind the kernel's memory that survives a reset (guests have 1024 MB from 0x40000000).
_RAMOOPS = (
    "mem=960M panic=1 ramoops.mem_address=0x7c000000 ramoops.mem_size=0x100000"
    " ramoops.record_size=0x20000 ramoops.console_size=0x20000 ramoops.pmsg_size=0x20000"
)
_SLUB_DEBUG = "slub_debug=FZPU,ext4_inode_cache"
_KFENCE = "kfence.sample_interval=1"


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One boot.

    ``script`` and its ``arguments`` are what runs; ``verdict`` is what a crime must get,
    ``causes`` what a mistake of causes.ko may get first.
    ``guilty``: the module's own code is on the stack, so it must be named.  ``judges``: the script
    judges itself.  ``append`` goes to the kernel's command line, ``reset`` boots again after a
    panic; ``kernels`` are those that can do it, () for all.  ``detached``: no headers, a BTF file
    instead.  ``icount``: time is instructions.  ``alone``: no daemon; what the kernel itself
    notices is the result.  ``unwatched``: no daemon either; what the script finds is the result.
    ``asks``: for a dump, or that a disk is pulled (asked.py).
    ``in_memory``: the root file system is no ext4, which can then be
    unloaded.  ``asked``: only run when it is named.  ``minutes``: how long it works, unless
    ``--minutes`` says otherwise; its script's last argument, and on top of ``timeout``.
    """

    name: str
    what: str
    script: str = "crime"
    arguments: tuple[str, ...] = ()
    verdict: str = ""
    causes: tuple[str, ...] = ()
    guilty: bool = False
    judges: bool = False
    asked: bool = False
    alone: bool = False
    unwatched: bool = False
    detached: bool = False
    reset: bool = False
    icount: bool = False
    in_memory: bool = False
    asks: bool = False
    timeout: float = 600
    minutes: float = 0
    append: str = ""
    kernels: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether it begins where the daemon is ready, with nothing special before."""
        return self.script in _FROM_READY

    @property
    def heavy(self) -> bool:
        """Whether it keeps a CPU busy for minutes: a crime waits more than it works."""
        return not self.ready or self.judges


_FROM_READY = (
    *("crime", "shrink", "cause", "legal", "legal-load", "neighbours"),
    *("churn", "rungs", "loads", "warned", "faults", "traced"),
)

#: name, the verdict it must get, whether the module is on the stack, and what it does.
_CRIMES = (
    ("benign", "double_free", False, "the first free swallowed, then ext4's callback again"),
    ("destroy", "double_destroy", False, "ext4_destroy_inode again before the grace period ends"),
    ("reused", "free_while_alive", False, "freed after another inode lives at the address"),
    ("by_module", "double_free", True, "kmem_cache_free by the module itself, after ext4's"),
    ("tail", "double_free", False, "the same as a jump: the module is on no stack"),
    (
        "foreign",
        "foreign_free",
        True,
        "kmem_cache_free by the module in the place of ext4's callback",
    ),
    ("again", "double_free", False, "a second RCU free at once"),
    ("late", "double_free", False, "a second RCU free two seconds later"),
)


def _crimes() -> tuple[Scenario, ...]:
    return tuple(
        Scenario(name, what, arguments=(name,), verdict=verdict, guilty=guilty)
        for name, verdict, guilty, what in _CRIMES
    )


#: A mistake of causes.ko, the verdicts that may come first, and what it is.  Which of them comes
#: depends on what the kernel lets be hooked, and on what the next reader of the object is.
_MISTAKES = (
    (
        "dir_put",
        ("dentry_killed_in_use", "dentry_killed_twice"),
        "dput() of a directory 146 times too often, under 200 children; reclaim on two CPUs",
    ),
    (
        "dirs_put-shrunk",
        ("dentry_killed_in_use", "dentry_killed_twice"),
        "300 directories put once too often; reclaim on two CPUs: the case's own oops",
    ),
    (
        "dirs_put",
        ("dentry_killed_in_use", "dentry_killed_twice"),
        "20 directories put once too often and killed on both CPUs at once: the whole chain",
    ),
    (
        "iput_open",
        ("put_without_reference", "evicted_in_use"),
        "iput() once too often, the file held open",
    ),
    (
        "iput_idle",
        ("put_without_reference", "evicted_in_use"),
        "iput() once too often, nobody holds the file",
    ),
    (
        "dput_open",
        ("closed_after_death", "evicted_in_use", "dentry_killed_twice"),
        "dput() once too often, the file held open",
    ),
    (
        "dput_many",
        ("closed_after_death", "evicted_in_use", "dentry_killed_twice"),
        "the same with 40 files",
    ),
    (
        "dput_deleted",
        ("closed_after_death", "evicted_in_use", "dentry_killed_twice"),
        "dput() once too often, the file deleted and held open",
    ),
    ("iput_stale", ("put_without_reference",), "iput() of an inode that has been freed"),
    (
        "iput_reused",
        ("put_without_reference", "evicted_in_use"),
        "the same once another inode lives there",
    ),
    (
        "unlink_each",
        ("unlocked_unlink",),
        "two kernel threads delete the same 2000 files, each with a reference, unlocked",
    ),
    ("unlink_shared", ("unlocked_unlink",), "the same, sharing one reference of each"),
    ("write_freed", ("written_after_free",), "mark_inode_dirty() of an inode that has been freed"),
    (
        "free_live",
        ("free_while_alive", "allocated_while_alive"),
        "ext4's RCU callback for a living inode; its memory is handed out again",
    ),
    ("rcu_twice", ("rcu_lists_crossed",), "one rcu_head queued on two CPUs, 20 times, under load"),
    ("files_leaked", (), "2000 files opened by the module and never closed: no verdict"),
)


#: Those that are told while the module makes them, so that its code is on the stack.
_IN_THE_ACT = (
    *("iput_open", "iput_idle", "iput_stale", "iput_reused", "dput_deleted"),
    *("unlink_each", "unlink_shared", "free_live"),
)

#: Before Linux 5.8 RCU's crossed lists are not told (docs/contracts.md).
_CROSSED = ("5.10", "6.1", "6.1-generic", "6.12", "6.12-16k", "6.12-rt", "6.12-generic")


def _mistakes() -> tuple[Scenario, ...]:
    return tuple(
        Scenario(
            f"cause:{name}",
            what,
            "cause",
            tuple(name.split("-")),
            causes=causes,
            guilty=name in _IN_THE_ACT,
            kernels=_CROSSED if name == "rcu_twice" else (),
        )
        for name, causes, what in _MISTAKES
    )


def _alone() -> tuple[Scenario, ...]:
    """The crimes that do harm, without the daemon, under the kernel's own tools."""
    found = []
    for name, _, _, what in _CRIMES:
        if name in ("benign", "tail", "foreign"):
            continue
        for tool, append, sampled in (
            ("nothing", "", ""),
            ("slub_debug", _SLUB_DEBUG, ""),
            ("kfence", _KFENCE, ""),
            ("kfence-sampled", _KFENCE, "sampled"),
        ):
            if tool == "kfence-sampled" and name == "reused":
                continue  # KFENCE's pool gives an address to nobody else for long
            found.append(
                Scenario(
                    f"{tool}:{name}",
                    what,
                    "alone",
                    (name, sampled),
                    alone=True,
                    append=append,
                    kernels=("6.12",) if append == _KFENCE else ("4.19", "6.12"),
                )
            )
    return tuple(found)


#: hooks.rungs that hide behind the best ones, and the kernels that have them.
_RUNGS = {
    "evict=kprobe reclaim=kprobe any_free=kprobe": ("4.19", "6.12"),
    "destroy=kprobe:destroy_inode rcu_free=none": ("4.19", "6.12"),
    "alloc=raw_tracepoint destroy=none": ("6.1", "6.12"),
    "alloc=kprobe destroy=kprobe rcu_free=kprobe": ("6.12",),
}


def _rungs() -> tuple[Scenario, ...]:
    return tuple(
        Scenario(
            f"rungs:{rungs.replace(' ', '+')}",
            f"hooks.rungs {rungs}",
            "rungs",
            tuple(rungs.split()),
            judges=True,
            kernels=names,
        )
        for rungs, names in _RUNGS.items()
    )


SCENARIOS = (
    *_crimes(),
    Scenario(
        "shrink",
        "ext4_destroy_inode again inside shrink_slab",
        "shrink",
        verdict="double_destroy",
        guilty=True,
    ),
    Scenario("legal", "two tasks race to delete the same files; reclaim meanwhile", "legal"),
    *_alone(),
    *_mistakes(),
    Scenario(
        "neighbours",
        "legal work that lies near the mistakes: renames, handles, mounts, quota, hotplug ...",
        "neighbours",
        judges=True,
        minutes=3,
        timeout=900,
    ),
    Scenario("churn", "storms, trees, drop_caches, kswapd", "churn", judges=True, timeout=900),
    Scenario(
        "legal-load",
        "files, pipes and sockets at different priorities while a CPU goes and comes: no verdict",
        "legal-load",
        judges=True,
        minutes=2,
    ),
    Scenario(
        "lazy",
        "lazy RCU on every CPU (rcu_nocbs=all): it starts, every hook is proven, a crime is found",
        "lazy",
        judges=True,
        append="rcu_nocbs=all",
        kernels=("6.12",),
    ),
    Scenario(
        "service",
        "the package, installed and upgraded, its unit under systemd as PID 1",
        "service",
        judges=True,
        asks=True,
        timeout=1200,
    ),
    Scenario(
        "image",
        "the self-contained image, on a host without Python",
        "image",
        judges=True,
        asked=True,
        timeout=900,
        kernels=("4.19",),
    ),
    Scenario(
        "soak",
        "a quarter of an hour of storm and reclaim, a self-test in each round",
        "soak",
        ("0.25",),
        judges=True,
        asked=True,
        timeout=2400,
    ),
    Scenario("loads", "20 loads and unloads in a row", "loads", judges=True, timeout=3000),
    *_rungs(),
    Scenario(
        "detached",
        "a BTF file, neither headers nor BTF in the kernel",
        "detached",
        judges=True,
        detached=True,
        kernels=("4.19",),
    ),
    Scenario(
        "found",
        "neither headers nor BTF: the offsets are found, and compared with the right ones",
        "found",
        judges=True,
        detached=True,
    ),
    Scenario(
        "warned",
        "dentry_free's own warning under memory pressure, and the early warning that comes of it",
        "warned",
        judges=True,
    ),
    Scenario(
        "traced",
        "others trace kmem_cache_free (kretprobe, function_graph), hooks.rungs rcu_free=none",
        "traced",
        judges=True,
        kernels=("4.19", "5.10", "6.12"),
    ),
    Scenario(
        "faults",
        "a CPU offline and back, the clock set, a suspend, ext4 unmounted, under load",
        "faults",
        judges=True,
        timeout=900,
    ),
    Scenario(
        "unloaded",
        "the module ext4 unloaded and loaded again under the daemon, or held by it",
        "unloaded",
        judges=True,
        in_memory=True,
        timeout=900,
        kernels=("6.1-generic",),
    ),
    Scenario(
        "starved",
        "the unit at its MemoryMax: killed, not started for ever, nothing left",
        "starved",
        judges=True,
        timeout=1200,
        kernels=("4.19", "6.12"),
    ),
    Scenario(
        "tight",
        "a restart with 100 MB available: from what was compiled before, and with the compiler",
        "tight",
        judges=True,
        unwatched=True,
        timeout=2400,
        kernels=("4.19",),
    ),
    Scenario(
        "leads",
        "20 double destroys, each with a second free: which the journal had before it",
        "leads",
        ("20",),
        judges=True,
        icount=True,
        timeout=1800,
        kernels=("4.19", "6.12"),
    ),
    Scenario(
        "accounts",
        "files that a module keeps, disks that fail, references given back too often: all told",
        "accounts",
        judges=True,
        asks=True,
        unwatched=True,
        timeout=1800,
        kernels=("4.19", "5.10", "6.12"),
    ),
    Scenario(
        "governed",
        "slab frees that are not ext4's: what their traps cost takes the any_free hook off",
        "governed",
        judges=True,
        timeout=900,
        kernels=("4.19", "5.10"),
    ),
    Scenario(
        "armed",
        "any_free as a kprobe: no trap until somebody asks; then a free by another module is seen",
        "armed",
        judges=True,
        timeout=900,
        kernels=("4.19", "5.10"),
    ),
    Scenario(
        "price",
        "what each rung costs",
        "price",
        judges=True,
        unwatched=True,
        icount=True,
        timeout=1500,
        kernels=("6.12",),
    ),
    Scenario(
        "reboot",
        "a second RCU free; the next boot reads it back from pstore",
        "reboot",
        judges=True,
        reset=True,
        timeout=600,
        append=_RAMOOPS,
    ),
    Scenario(
        "crash",
        "actions.crash: sysrq-c at the proof; the next boot says why, and does not do it again",
        "crash",
        judges=True,
        reset=True,
        timeout=900,
        append=_RAMOOPS,
        kernels=("4.19", "6.12"),
    ),
    Scenario(
        "actions",
        "the unit with the package's drop-ins: a program that calls out, then the crash",
        "actions",
        judges=True,
        reset=True,
        timeout=1800,
        append=_RAMOOPS,
        kernels=("4.19", "6.12"),
    ),
)
