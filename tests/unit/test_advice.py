"""The doctor: the case's plans by the case's numbers, the same plans elsewhere, every level."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpfwatch.advice import Advice, Level, hooks, memory, modules, plans, size, storage, survival
from ebpfwatch.catalogue.contracts import RULES
from ebpfwatch.catalogue.ladder import LADDER
from ebpfwatch.commands import check
from ebpfwatch.errors import EbpfwatchError, Exit, Failure
from ebpfwatch.host.blockdev import Stack
from ebpfwatch.host.crash import CrashReadiness
from ebpfwatch.host.disks import JOURNALS, Disk
from ebpfwatch.host.ext4 import Ext4Errors
from ebpfwatch.host.meminfo import Memory
from ebpfwatch.host.pressure import Pressure
from ebpfwatch.host.room import Room
from ebpfwatch.host.room import read as read_room
from ebpfwatch.host.slabinfo import SlabCache, Slabs
from ebpfwatch.host.state import HostState
from ebpfwatch.host.swaps import Swap
from ebpfwatch.host.taint import Taint
from ebpfwatch.host.vm import VmSettings
from ebpfwatch.host.zoneinfo import Zone
from ebpfwatch.kernel.dry_run import DryRun, Program
from ebpfwatch.kernel.hook import LoadedHook
from ebpfwatch.kernel.protocol import Examined, Features
from ebpfwatch.paths import Paths
from tests.unit.host import TREES, fixture

GIB = 1 << 30
MIB = 1 << 20

DISK = Disk("/", "vda2", False, "ordered", ("rw",), Stack(("vda2", "vda"), ("virtio_blk",)))
ROOM = Room({"/": 60 * GIB, "/mnt/vdb": 200 * GIB}, "ext4")
CASE = dataclasses.replace(fixture("case"), room=ROOM)


def line(advice: list[Advice], item: str) -> Advice:
    """The only line of that item."""
    (found,) = (one for one in advice if one.item == item)
    return found


# -- the case

#: item: level, what the value must say, what the reason must say
PLANS = {
    "crashkernel by RAM size": (Level.OK, "512.0 MiB of 15.1 GiB", "kdump is loaded already"),
    "rootflags=data=journal": (Level.WARN, "data=ordered", "in memory, not on the disk"),
    "slub_debug=UFPZ": (Level.WARN, "needs /proc/slabinfo", "only while nobody has the object"),
    "32 GiB swap file by dd in /tmp": (Level.WARN, "14.0 GiB would hold", "oflag=direct"),
    "overcommit_memory=2, ratio 90": (Level.FAIL, "13.6 GiB (207", "swap first"),
    "dirty_background_ratio=3, dirty_ratio=80, dirty_writeback_centisecs=100": (
        Level.FAIL,
        "4.3 GiB of dirty",
        "80 is not",
    ),
    "nr_hugepages=128": (Level.FAIL, "256.0 MiB", "reclaim would have to find them now"),
}


@pytest.mark.parametrize("item", PLANS)
def test_the_plans_of_the_case(item: str) -> None:
    """Each by the numbers of that machine: 15.1 GiB, 112 MiB free, no swap, 373 % committed."""
    level, value, why = PLANS[item]
    found = line(plans.advise(CASE), item)
    assert (found.level, value in found.value, why in found.why) == (level, True, True), found


def test_the_plans_of_the_case_are_all_judged() -> None:
    """No plan is passed over."""
    assert {found.item for found in plans.advise(CASE)} == set(PLANS)


def test_the_state_of_the_case() -> None:
    """What the doctor says of that machine as it stood."""
    said = memory.advise(CASE)
    normal = line(said, "node 0 zone Normal")
    assert normal.level is Level.WARN and "2.9 % above high" in normal.value
    overcommit = line(said, "overcommit")
    assert overcommit.level is Level.WARN and "373 %" in overcommit.value
    assert "not enforced" in overcommit.why
    swap = line(said, "swap")
    assert swap.level is Level.WARN and "of=/mnt/vdb/swapfile" in swap.command
    assert "count=14336 oflag=direct" in swap.command
    assert line(said, "slabinfo").level is Level.UNKNOWN
    foreign = line(modules.advise(CASE), "out-of-tree modules")
    assert foreign.level is Level.WARN and "vfs_monitor" in foreign.value
    assert "suspect, not a culprit" in foreign.why
    assert line(survival.advise(CASE), "panic_on_oops").level is Level.OK
    assert line(survival.advise(CASE), "panic").command == "sysctl -w kernel.panic=30"
    assert "virtio_blk" in line(storage.advise(CASE), "/ disk").value


# -- the same plans elsewhere


def machine(**parts: Any) -> HostState:
    """A comfortable machine, and what is different on it."""
    zone = Zone(0, "Normal", 8 * GIB, 60 * MIB, 75 * MIB, 90 * MIB, 16 * GIB)
    whole = Memory(
        16 * GIB,
        8 * GIB,
        cached=6 * GIB,
        active_file=3 * GIB,
        inactive_file=3 * GIB,
        slab_unreclaimable=100 * MIB,
        swap_total=0,
        swap_free=0,
        commit_limit=8 * GIB,
        committed=2 * GIB,
        huge_total=0,
        huge_bytes=2 * MIB,
    )
    settings = VmSettings(
        overcommit_memory=0,
        min_free_kbytes=67584,
        vfs_cache_pressure=100,
        dirty_ratio=20,
        dirty_background_ratio=10,
    )
    usual = {"zones": (zone,), "memory": whole, "vm": settings, "disks": (DISK,), "room": ROOM}
    return HostState(**{**usual, **parts})


def with_memory(**parts: Any) -> HostState:
    """The comfortable machine with another meminfo."""
    usual = machine().memory
    assert usual is not None
    return machine(memory=dataclasses.replace(usual, **parts))


def with_vm(**parts: Any) -> HostState:
    """The comfortable machine with other settings."""
    usual = machine().vm
    assert usual is not None
    return machine(vm=dataclasses.replace(usual, **parts))


def with_disk(**parts: Any) -> HostState:
    """The comfortable machine with another root."""
    return machine(disks=(dataclasses.replace(DISK, **parts),))


def slabs(objects: int) -> Slabs:
    """So many objects, a tenth of them ext4's."""
    return Slabs(
        (SlabCache("ext4_inode_cache", objects // 10, objects // 10, 1072, objects * 110),), objects
    )


ELSEWHERE = [
    (machine(), "overcommit_memory=2, ratio 90", Level.OK, "14.4 GiB (13.9 %)"),
    (with_memory(committed=9 * GIB), "overcommit_memory=2, ratio 90", Level.WARN, "62.5 %"),
    (
        with_memory(committed=60 * GIB),
        "overcommit_memory=2, ratio 90",
        Level.FAIL,
        "with 32 GiB of swap 46.4 GiB (129.3 %)",
    ),
    (with_memory(huge_total=2048), "overcommit_memory=2, ratio 90", Level.OK, "10.8 GiB"),
    (machine(), "nr_hugepages=128", Level.WARN, "256.0 MiB"),
    # arm64 with pages of 64 KiB
    (with_memory(huge_bytes=512 * MIB), "nr_hugepages=128", Level.FAIL, "64.0 GiB"),
    (with_memory(huge_total=128), "nr_hugepages=128", Level.OK, "in force"),
    (machine(), "crashkernel by RAM size", Level.OK, "512.0 MiB"),
    (with_memory(total=1 * GIB), "crashkernel by RAM size", Level.WARN, "no row below 2 GiB"),
    (with_memory(total=200 * GIB), "crashkernel by RAM size", Level.WARN, "4.0 GiB"),
    (with_disk(journal="none"), "rootflags=data=journal", Level.FAIL, "no journal"),
    (with_disk(options=("rw", "delalloc")), "rootflags=data=journal", Level.FAIL, "delalloc"),
    (with_disk(journal="journal"), "rootflags=data=journal", Level.WARN, "in force"),
    (with_disk(mount="/mnt/vdb"), "rootflags=data=journal", Level.UNKNOWN, "not seen as ext4"),
    (
        machine(slabs=slabs(1_000_000)),
        "slub_debug=UFPZ",
        Level.WARN,
        "76.3 MiB to 314.7 MiB more for 1000000 objects; for ext4_inode_cache alone 7.6 MiB",
    ),
    (machine(slabs=slabs(200_000_000)), "slub_debug=UFPZ", Level.FAIL, "14.9 GiB"),
    (
        machine(crash=CrashReadiness(slub_debug="FZPU")),
        "slub_debug=UFPZ",
        Level.OK,
        "in force",
    ),
    (
        with_memory(swap_total=4 * GIB),
        "32 GiB swap file by dd in /tmp",
        Level.OK,
        "4.0 GiB of swap",
    ),
    (
        machine(room=Room({"/": 60 * GIB}, "tmpfs")),
        "32 GiB swap file by dd in /tmp",
        Level.FAIL,
        "2.0 GiB",
    ),
    (
        machine(room=Room({"/": 20 * GIB}, "ext4")),
        "32 GiB swap file by dd in /tmp",
        Level.FAIL,
        "2.0 GiB",
    ),
    (
        machine(),
        "dirty_background_ratio=3, dirty_ratio=80, dirty_writeback_centisecs=100",
        Level.WARN,
        "11.2 GiB",
    ),
]


@pytest.mark.parametrize(("host", "item", "level", "value"), ELSEWHERE)
def test_the_plans_elsewhere(host: HostState, item: str, level: Level, value: str) -> None:
    """The same plan is good here and harmful there."""
    found = line(plans.advise(host), item)
    assert found.level is level and value in found.value, found


def test_no_room_for_a_swap_file_anywhere() -> None:
    """Then it is not advised."""
    found = line(plans.advise(machine(room=Room({}, ""))), "32 GiB swap file by dd in /tmp")
    assert found.level is Level.WARN, "where nobody could look, nothing is known"
    full = machine(room=Room({"/": GIB}, "ext4"))
    found = line(plans.advise(full), "32 GiB swap file by dd in /tmp")
    assert found.level is Level.FAIL and "no ext4 here has room" in found.why
    for command in (found.command, line(memory.advise(full), "swap").command):
        assert "dd if=" not in command and "zramctl" in command


@pytest.mark.parametrize(
    ("gib", "mib"), [(1, 0), (2, 320), (4, 512), (15, 512), (32, 1024), (64, 2048), (128, 4096)]
)
def test_the_crashkernel_table_is_the_one_in_the_command(gib: int, mib: int) -> None:
    """The rows that judge are the words that are given to the kernel."""
    assert plans.crashkernel_for(gib * GIB) == mib * MIB
    rows = dict(row.split(":") for row in plans.CRASHKERNEL.split(","))
    assert not mib or f"{mib}M" in rows.values()


# -- what is, level by level

STATES = [
    (machine(), memory, "node 0 zone Normal", Level.OK, "above high"),
    (machine(), memory, "swap", Level.WARN, "none"),
    (machine(), memory, "overcommit", Level.OK, "25 %"),
    (with_vm(overcommit_memory=1), memory, "overcommit", Level.WARN, "mode 1"),
    (with_vm(overcommit_memory=2), memory, "overcommit", Level.OK, "mode 2"),
    (machine(), memory, "vfs_cache_pressure", Level.OK, "100"),
    (with_vm(vfs_cache_pressure=0), memory, "vfs_cache_pressure", Level.WARN, "0"),
    (with_vm(vfs_cache_pressure=200), memory, "vfs_cache_pressure", Level.WARN, "200"),
    (with_vm(dirty_ratio=80), memory, "dirty pages", Level.WARN, "11.2 GiB"),
    (with_vm(dirty_bytes=GIB, dirty_ratio=0), memory, "dirty pages", Level.OK, "1.0 GiB"),
    (with_memory(huge_total=4096), memory, "huge pages", Level.WARN, "8.0 GiB"),
    (with_memory(slab_unreclaimable=5 * GIB), memory, "slabs", Level.WARN, "5.0 GiB"),
    (machine(slabs=slabs(500_000_000)), memory, "ext4 inodes", Level.WARN, "51.2 GiB"),
    (machine(), memory, "pressure", Level.UNKNOWN, "no PSI"),
    (
        machine(pressure=(Pressure("memory", 30.0, 9.0, 20.0, 5.0),)),
        memory,
        "pressure",
        Level.FAIL,
        "full 20.00 %",
    ),
    (
        machine(reclaim={"pgscan_kswapd": 10, "pgscan_direct": 90_000}),
        memory,
        "reclaim",
        Level.WARN,
        "90000 by tasks",
    ),
    (
        dataclasses.replace(
            with_memory(swap_total=10 * GIB, swap_free=GIB // 2),
            swaps=(Swap("/s", "file", 10 * GIB, 10 * GIB, -2),),
        ),
        memory,
        "swap",
        Level.WARN,
        "/s (10.0 GiB)",
    ),
    (machine(), storage, "/ journal", Level.OK, "data=ordered"),
    (with_disk(journal="none"), storage, "/ journal", Level.WARN, "none"),
    (with_disk(journal=""), storage, "/ journal", Level.UNKNOWN, "not told"),
    (
        with_disk(stack=Stack(("nvme0n1",), ("nvme",), ("0000:01:00.0",))),
        storage,
        "/ disk",
        Level.WARN,
        "passed through (vfio)",
    ),
    (machine(disks=()), storage, "ext4", Level.FAIL, "no ext4"),
    (machine(ext4=(Ext4Errors("vda2", 0, 0),)), storage, "/ errors", Level.OK, "none"),
    (machine(ext4=(Ext4Errors("vda2", 0, 2),)), storage, "/ errors", Level.WARN, "2 warnings"),
    (
        machine(ext4=(Ext4Errors("vda2", 3, 0, 1_700_000_000, "ext4_lookup", 12),)),
        storage,
        "/ errors",
        Level.FAIL,
        "3, the last 2023-11-14 22:13 UTC in ext4_lookup",
    ),
    # a damaged superblock
    (machine(ext4=(Ext4Errors("vda2", 1, 0, 1 << 62),)), storage, "/ errors", Level.FAIL, "9999"),
    (machine(taint=Taint("", (), 9)), modules, "out-of-tree modules", Level.OK, "none of 9"),
    # loaded, and gone again
    (
        machine(taint=Taint("OE", (), 9)),
        modules,
        "out-of-tree modules",
        Level.WARN,
        "one was loaded",
    ),
    (machine(taint=Taint("DW")), modules, "taint D", Level.FAIL, "set"),
    (machine(taint=Taint("DW")), modules, "taint W", Level.WARN, "set"),
    (machine(taint=Taint("G")), modules, "taint", Level.OK, "G"),
    (machine(), modules, "taint", Level.UNKNOWN, "not read"),
    (machine(), survival, "crash readiness", Level.UNKNOWN, "not read"),
]


@pytest.mark.parametrize(("host", "section", "item", "level", "value"), STATES)
def test_what_is(host: HostState, section: Any, item: str, level: Level, value: str) -> None:
    """One line, one level, the value it was judged by."""
    found = line(section.advise(host), item)
    assert found.level is level and value in found.value, found
    assert found.why or level is Level.UNKNOWN


@pytest.mark.parametrize(
    ("free", "level"),
    [(0, Level.FAIL), (60, Level.WARN), (80, Level.WARN), (100, Level.WARN), (200, Level.OK)],
)
def test_free_against_the_watermarks(free: int, level: Level) -> None:
    """Below min, between, just above high, well above."""
    zone = Zone(0, "Normal", free * MIB, 60 * MIB, 75 * MIB, 90 * MIB, 16 * GIB)
    assert line(memory.advise(machine(zones=(zone,))), "node 0 zone Normal").level is level


GOOD = CrashReadiness(
    panic=10,
    panic_on_oops=1,
    panic_on_warn=0,
    crashkernel_bytes=512 * MIB,
    kdump_loaded=True,
    pstore="",
    ftrace_dump_on_oops="1",
    slub_debug="",
    kfence_ms=100,
)

CRASHES = [
    ({}, "crash record", Level.OK),
    ({"kdump_loaded": False}, "crash record", Level.FAIL),
    ({"kdump_loaded": False, "pstore": "ramoops"}, "crash record", Level.OK),
    ({"kdump_loaded": False}, "crashkernel", Level.WARN),
    ({"kdump_loaded": None, "crashkernel_bytes": None}, "crashkernel", Level.WARN),
    (
        {"kdump_loaded": False, "crashkernel_bytes": 0, "crashkernel": "4096M"},
        "crashkernel",
        Level.FAIL,
    ),
    ({"panic_on_oops": 0}, "panic_on_oops", Level.WARN),
    ({"kdump_loaded": False}, "panic_on_oops", Level.WARN),
    ({"panic": 0}, "panic", Level.WARN),
    ({"panic": -1}, "panic", Level.OK),
    ({"panic_on_warn": 1}, "panic_on_warn", Level.OK),
    ({"panic_on_warn": 1, "kdump_loaded": False}, "panic_on_warn", Level.WARN),
    ({"ftrace_dump_on_oops": "0"}, "ftrace_dump_on_oops", Level.WARN),
    ({"ftrace_dump_on_oops": "foo,bar=2"}, "ftrace_dump_on_oops", Level.OK),
    ({"slub_debug": None}, "slub_debug", Level.UNKNOWN),
    ({"slub_debug": "FU"}, "slub_debug", Level.OK),
    ({"kfence_ms": 0}, "kfence", Level.WARN),
]


@pytest.mark.parametrize(("parts", "item", "level"), CRASHES)
def test_crash_readiness(parts: dict[str, Any], item: str, level: Level) -> None:
    """A machine that is ready, and one thing that is not."""
    found = survival.advise(HostState(crash=dataclasses.replace(GOOD, **parts)))
    assert line(found, item).level is level
    assert {one.level for one in survival.advise(HostState(crash=GOOD))} == {Level.OK}


# -- hooks


FEATURES = Features(ringbuf=True, cmpxchg=True, probe_read_kernel=True, direct_read=True, btf=True)


def ladder(**changes: LoadedHook) -> tuple[LoadedHook, ...]:
    """Best rungs but for those given."""
    best = {
        role: LoadedHook(role, rows[0].kind, rows[0].attachments[0].target, reason="why")
        for role, rows in LADDER.items()
    }
    return tuple({**best, **changes}.values())


def without(*roles: str) -> tuple[LoadedHook, ...]:
    """Best rungs, and none for these."""
    return ladder(**{role: LoadedHook(role, reason="why") for role in roles})


def tried(refused: str = "", instead: str = "", left_out: str = "") -> DryRun:
    """Every program of the best rungs, one role's first refused, one role left out."""
    programs = [
        Program(role, one.function, "")
        for role, rows in LADDER.items()
        for one in rows[0].attachments
        if role != left_out
    ]
    programs += [Program("learner", "f", ""), Program("selftest", "g", "")]
    at = next((n for n, program in enumerate(programs) if program.role == refused), None)
    if at is not None:
        programs[at] = dataclasses.replace(programs[at], refusal="R1 is bad")
    return DryRun(tuple(programs), instead)


def advised(hooks_found: tuple[LoadedHook, ...], dry_run: DryRun) -> list[Advice]:
    """The lines for these hooks, on a kernel that has everything."""
    return hooks.advise(Examined(hooks_found, FEATURES, dry_run))


def test_hooks() -> None:
    """Best, weaker, absent, and absent where it must not be."""
    assert hooks.usable(ladder(), tried()) and not hooks.usable(without("evict"), tried())
    assert not hooks.usable(without("rcu_free", "any_free"), tried())
    found = dict(zip(LADDER, without("destroy", "evict")))
    found["alloc"] = LoadedHook("alloc", "kprobe", "another")
    features = dataclasses.replace(FEATURES, ringbuf=False)
    said = hooks.advise(Examined(tuple(found.values()), features, tried()))
    levels = {one.item: one.level for one in said}
    assert levels["unlink"] is levels["learner"] is levels["selftest"] is Level.OK
    assert levels["alloc"] is levels["destroy"] is levels["ringbuf"] is Level.WARN
    assert levels["evict"] is Level.FAIL and levels["btf"] is Level.OK
    none = advised(without("rcu_free", "any_free"), tried())
    assert line(none, "any_free").level is Level.FAIL


@pytest.mark.parametrize("role", [*LADDER, "learner", "selftest"])
def test_a_refused_program(role: str) -> None:
    """FAIL with the reason, which role is lost, and the wish that was tried; without one that
    helps, the watcher cannot work.
    """
    dry_run = tried(role, instead="reclaim=none")
    found = line(advised(ladder(), dry_run), role)
    assert found.level is Level.FAIL and "R1 is bad" in found.why and "lost: " in found.why
    assert found.command == '# config.yaml, hooks: rungs: "reclaim=none"'
    assert hooks.usable(ladder(), dry_run)
    assert line(advised(ladder(), tried(role)), role).command == ""
    assert not hooks.usable(ladder(), tried(role))


def test_what_shares_a_program_shares_its_refusal() -> None:
    """rcu_free on the hook of any_free is lost with it."""
    rcu_free = LoadedHook("rcu_free", "raw_tracepoint", "kmem_cache_free", shared=True)
    said = advised(ladder(rcu_free=rcu_free), tried("any_free"))
    assert line(said, "rcu_free").level is line(said, "any_free").level is Level.FAIL
    said = advised(ladder(rcu_free=rcu_free), tried())
    assert line(said, "rcu_free").level is Level.WARN  # not the best
    assert line(said, "rcu_free").value.startswith(
        "raw_tracepoint kmem_cache_free (shared with any_free), "
    )


def test_what_is_switched_off_is_not_what_does_not_hold() -> None:
    """alloc costs nothing when it is left out, the hook of any_free does."""
    for role, level in (("alloc", Level.OK), ("any_free", Level.WARN)):
        hook = LoadedHook(role, left_out="a rung")
        said = advised(ladder(**{role: hook}), tried(left_out=role))
        assert line(said, role).level is level and line(said, role).value == "not a rung"


def test_the_rules_that_are_not_checked_are_named_with_the_reason() -> None:
    """A kernel without the hook, or without the member; what is armed waits."""
    members = tuple(define for rule in RULES for define in rule.needs)

    def rules(found: tuple[LoadedHook, ...], members: tuple[str, ...] = members) -> Advice:
        return line(hooks.advise(Examined(found, FEATURES, tried(), members=members)), "rules")

    whole = rules(ladder())
    count = sum(not rule.instead for rule in RULES)
    assert (whole.level, whole.value) == (Level.OK, f"{count} rules of the VFS are checked")
    assert whole.why == "all of them"
    lacking = rules(without("dentry"), ("OFF_I_READCOUNT",))
    assert lacking.level is Level.WARN and lacking.value.startswith(f"{count - 3} rules")
    assert "has no children: the hook dentry is not there" in lacking.why
    assert "PREEMPT_RT" in lacking.why and "reading" not in lacking.why
    left_out = rules(ladder(alloc=LoadedHook("alloc", left_out="a rung")))
    assert left_out.level is Level.OK and "freed memory stays as it was" in left_out.why
    waits = rules(ladder(put=LoadedHook("put", "fentry", "iput", armed=True)))
    assert waits.why == "all of them; attached only while there is a reason: put"
    at_free = rules(ladder(dentry=LoadedHook("dentry", "kprobe", "dentry_free")))
    assert "dentry_free is hooked instead" in at_free.why


def test_before_the_verifier_grew_two_rules_are_not_checked() -> None:
    """Linux 4.19 follows 131072 instructions."""
    features = dataclasses.replace(FEATURES, ringbuf=False)
    found = line(hooks.advise(Examined(ladder(), features, tried())), "rules")
    assert found.why.count("RCU runs a callback") == found.why.count("the last minute") == 1
    shared = LoadedHook("rcu_free", "raw_tracepoint", "kmem_cache_free", shared=True)
    found = line(hooks.advise(Examined(ladder(rcu_free=shared), FEATURES, tried())), "rules")
    assert "RCU runs a callback" in found.why and "the last minute" not in found.why


def test_check_says_where_the_offsets_are_from() -> None:
    """Found in files of ours is a price: the start may fail."""
    for members, source, level in (
        (("OFF_I_INO",), "the kernel's BTF", Level.OK),
        ((), "what files of ours show", Level.WARN),
        ((), "", Level.UNKNOWN),
    ):
        found = Examined(ladder(), FEATURES, tried(), members=members, offsets_from=source)
        offsets = line(hooks.advise(found), "offsets")
        assert (offsets.level, source in offsets.value) == (level, True)


def test_what_could_not_be_tried_is_unknown() -> None:
    """The rungs that hold without a program that was loaded, and why."""
    error = EbpfwatchError("no compiler", "install it", Exit.UNAVAILABLE)
    said = advised(without("destroy"), DryRun(failure=Failure.of(error)))
    assert line(said, "evict").level is line(said, "programs").level is Level.UNKNOWN
    assert line(said, "programs").why == "install it"
    assert line(said, "destroy").level is Level.WARN
    assert "programs" not in {found.item for found in advised(ladder(), tried())}


# -- the command


def shown(found: tuple[LoadedHook, ...], dry_run: DryRun) -> check._Hooks:
    """As `check` has it after trying."""
    return check._Hooks(Examined(found, FEATURES, dry_run))


TRIED = shown(ladder(), tried())

CODES = [
    (TRIED, machine(), [], Exit.OK),
    (TRIED, machine(), [Advice("memory", "x", Level.FAIL, "", "")], Exit.FAILED),
    (TRIED, machine(), [Advice("plans", "x", Level.FAIL, "", "")], Exit.OK),
    (TRIED, machine(disks=()), [], Exit.UNAVAILABLE),
    (TRIED, machine(disks=(), problems={"disks": "x"}), [], Exit.OK),
    (shown(without("evict"), tried()), machine(), [], Exit.UNAVAILABLE),
    (shown(ladder(), tried("evict")), machine(), [], Exit.UNAVAILABLE),
    (
        shown(ladder(), tried("unlink", "unlink=none")),
        machine(),
        [Advice("hooks", "unlink", Level.FAIL, "", "")],
        Exit.FAILED,
    ),
    (
        shown(ladder(), DryRun(failure=Failure("x", "", Exit.UNAVAILABLE))),
        machine(),
        [],
        Exit.UNAVAILABLE,
    ),
    (
        check._Hooks(failure=EbpfwatchError("x", "", Exit.NOPERM)),
        machine(),
        [Advice("memory", "x", Level.FAIL, "", "")],
        Exit.NOPERM,
    ),
]


@pytest.mark.parametrize(("found", "host", "advice", "code"), CODES)
def test_exit_codes(found: Any, host: HostState, advice: list[Advice], code: Exit) -> None:
    """A plan's FAIL is not the machine's; not being able to look is not "fine"."""
    assert check._exit_code(found, host, advice) is code


@pytest.mark.parametrize("name", TREES)
def test_every_tree_gets_advice_that_a_shell_can_take(name: str) -> None:
    """Every section has a line; every command parses, and is one line."""
    advice = check._of_host(fixture(name))
    assert {one.section for one in advice} == set(check._ABOUT) - {"hooks"}
    commands = [one.command for one in advice if one.command]
    assert commands and not any("\n" in command for command in commands)
    parsed = subprocess.run(["sh", "-n"], input="\n".join(commands), capture_output=True, text=True)
    assert (parsed.returncode, parsed.stderr) == (0, "")


@pytest.mark.slow
@given(st.text(max_size=60))
def test_hostile_names_cannot_move_a_cursor(name: str) -> None:
    """A mount point called like an escape sequence is shown as text, and JSON holds it."""
    host = with_disk(mount=name)
    for one in storage.advise(host):
        json.dumps({**vars(one), "level": one.level.value})
        check._print_line(one, 100)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (2047, "2 KiB"), (117960704, "112.5 MiB"), (5 << 40, "5120.0 GiB")],
)
def test_sizes(count: int, text: str) -> None:
    """Binary units; the case's 112.5 MB."""
    assert size(count) == text


def test_room(tmp_path: Path) -> None:
    """Free bytes of what can be written; a disk that does not answer is left out."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self/mountinfo").write_text(
        "1 1 8:0 / / rw - ext4 x rw\n2 1 0:1 / /tmp rw - tmpfs x rw\n"
    )
    disks = [DISK, dataclasses.replace(DISK, mount="/nonexistent")]
    found = read_room(Paths(proc=tmp_path), disks)
    assert set(found.free) == {"/"} and found.tmp == "tmpfs"


def test_journals_all_have_a_reason() -> None:
    """What the reader can say, the doctor can explain."""
    assert set(storage._JOURNAL) == set(JOURNALS)
