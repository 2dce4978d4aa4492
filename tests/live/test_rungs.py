"""What the probes do on rungs that this kernel does not have (tests/live/workbench.py)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from typing import Any, Callable

import pytest

from ebpfwatch.catalogue.layout import Flag
from ebpfwatch.catalogue.roles import Hook
from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.commands.selftest import double_free
from ebpfwatch.events.wire import LAYOUTS
from ebpfwatch.kernel import libbpf
from ebpfwatch.loader.btf import Btf
from tests.live.workbench import Workbench


@pytest.fixture(scope="module")
def fentry() -> Iterator[Workbench]:
    """Allocations are told by a fentry program, which may be skipped."""
    bench = Workbench(["ALLOC_MAY_MISS"])
    yield bench
    bench.close()


def test_a_life_whose_allocation_was_skipped_is_no_second_death(fentry: Workbench) -> None:
    """fentry programs are preemptible: while a task is preempted inside, others skip theirs."""
    bed = fentry.bed
    bed.alloc()
    bed.evict()
    bed.free()
    bed.inode.state, bed.inode.count = 0x20, 1  # I_FREEING of a life that nobody saw begin
    bed.publish()
    bed.evict()
    bed.free()
    bed.inode.state, bed.inode.count = 0, 1  # one that lost the race in iget_locked()
    bed.free()
    assert fentry.verdicts() == []
    counters = fentry.session.counters()
    assert (counters["free_aborted"], counters["alloc_missed"]) == (1, 2)


@pytest.mark.parametrize("freed", [False, True])
def test_a_second_eviction_is_still_one(fentry: Workbench, freed: bool) -> None:
    """While the first one runs, and of an inode that is freed and says that it is dead."""
    bed = fentry.bed
    bed.alloc()
    bed.evict()
    if freed:
        bed.free()
    else:
        bed.inode.state = 0x20
    bed.evict()
    (event,) = fentry.verdicts()
    assert event.verdict is Verdict.DOUBLE_EVICT
    bed.free()
    bed.free()
    (event,) = fentry.verdicts()
    assert event.verdict is Verdict.DOUBLE_FREE


def test_memory_that_is_no_inode_is_not_called_alive(fentry: Workbench) -> None:
    """A link to the superblock's list that does not lead back: the page is somebody else's now."""
    bed = fentry.bed
    bed.alloc()
    bed.evict()
    bed.free()
    bed.inode.reused, bed.inode.state, bed.inode.count = True, 0x9999, 0x4141
    bed.free()
    bed.inode.reused = False
    (event,) = fentry.verdicts()
    assert event.verdict is Verdict.DOUBLE_FREE
    assert event.flags & Flag.WITNESS_NO_INODE and not event.flags & Flag.WITNESS_PUBLISHED
    bed.alloc()


@pytest.fixture(scope="module")
def locks() -> Iterator[Workbench]:
    """The kernel keeps who holds an inode's lock, and the probes look there."""
    btf = Btf()
    at = btf.offset("inode", "i_rwsem") + btf.offset("rw_semaphore", "owner")
    bench = Workbench(OFF_I_RWSEM_OWNER=at)
    yield bench
    bench.close()


def other_task(play: Callable[[], None]) -> None:
    """Play something as another task."""
    child = os.fork()
    if child == 0:
        play()
        os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.parametrize("held", [True, False])
def test_an_unlink_that_failed_is_not_in_flight(locks: Workbench, held: bool) -> None:
    """Up to Linux 5.8 ext4_unlink() has returns on errors that its tracepoint does not see; the
    inode's lock is free then, and reclaim may have the inode.
    """
    bed = locks.bed
    bed.alloc()
    bed.publish()
    bed.inode.nlink = 1
    bed.inode.lock_owner = None
    bed.unlink_enter()
    bed.inode.lock_owner = None if held else 0
    bed.shrink_start()
    bed.evict()
    bed.shrink_end()
    bed.unlink_exit()
    found = [event.verdict for event in locks.verdicts()]
    assert found == ([Verdict.FREED_IN_RECLAIM] if held else [])
    bed.free()
    bed.inode.lock_owner, bed.inode.nlink = None, 0


def test_a_task_that_has_gone_on_is_not_in_its_former_unlink(fentry: Workbench) -> None:
    """The same where nobody knows who holds the lock: the task's next unlink tells."""
    bed = fentry.bed
    bed.alloc()
    bed.publish()
    bed.unlink_enter()  # it returns with an error, unseen
    fentry.run("ext4_unlink_enter", 0, bed.another_dentry())
    other_task(bed.unlink_enter)
    # The other name is in no directory here, and that is told; two tasks at one inode are not.
    found = {event.verdict for event in fentry.verdicts()}
    assert found <= {Verdict.UNLOCKED_UNLINK}
    bed.evict()
    bed.free()


def test_reclaim_inside_reclaim_does_not_end_it(fentry: Workbench) -> None:
    """What drop_slab()'s shrinkers allocate may reclaim; the scan outside goes on afterwards."""
    bed = fentry.bed
    bed.alloc()
    bed.publish()
    bed.shrink_start()
    bed.shrink_start()
    bed.shrink_end()
    bed.inode.nlink = 0  # a candidate, if in reclaim
    bed.evict()
    bed.shrink_end()
    (event,) = fentry.verdicts()
    assert event.verdict is Verdict.FREED_IN_RECLAIM
    bed.free()
    bed.alloc()
    bed.evict()
    assert fentry.verdicts() == []
    bed.free()


def test_the_slab_free_that_was_due_excuses_no_other(fentry: Workbench) -> None:
    """One that the hook of any_free missed leaves its mark: another task's free is not that one."""
    bed = fentry.bed
    for late in (False, True):
        bed.alloc()
        bed.evict()
        fentry.run("ext4_free_in_core_inode", bed.inode_address)
        other_task(bed.free) if late else bed.free()
        found = [event.verdict for event in fentry.verdicts()]
        assert found == ([Verdict.DOUBLE_FREE] if late else [])


def test_a_note_that_two_cpus_wrote_names_nobody(fentry: Workbench) -> None:
    """Its seal is broken: the finding has no name, and not the wrong one."""
    bed = fentry.bed
    for torn in (False, True):
        bed.alloc()
        bed.publish()
        bed.unlink_enter()
        bed.unlink_exit()
        if torn:
            tear_note(fentry, bed.inode_address)
        bed.evict()
        bed.free()
        bed.free()
        (event,) = fentry.verdicts()
        assert event.name == ("" if torn else "ebpfwatch-selftest")
        assert bool(event.unlinked) is not torn
        bed.alloc()


def tear_note(bench: Workbench, inode: int) -> None:
    """Another unlink's task in the note of this inode."""
    fd, size = bench.session.maps["notes"], ctypes.sizeof(LAYOUTS["note"])
    for slot in range(64):
        note: Any = LAYOUTS["note"].from_buffer_copy(libbpf.map_lookup(fd, slot, size))
        if note.inode == inode:
            note.actor.pid ^= 1
            libbpf.map_update(fd, slot, bytes(note))


@pytest.mark.parametrize("page", [4096, 16384, 65536])
def test_a_ring_is_as_large_as_it_was_asked_for(page: int) -> None:
    """bcc's macro counts in pages, and the kernel wants whole ones (ringbuf_map_alloc_check())."""
    bench = Workbench(page=page, RING_PAGES=4)
    try:
        assert libbpf.map_info(bench.session.maps["records"]).max_entries == 4 * page
    finally:
        bench.close()


def test_the_former_life_of_a_living_inode_that_is_freed_is_told(fentry: Workbench) -> None:
    """As long as nobody took its way: who freed the inode that was there before."""
    bed = fentry.bed
    bed.alloc()
    bed.inode.ino = 4141
    bed.publish()
    bed.evict()
    bed.free()
    bed.alloc()
    bed.inode.ino = 4242
    bed.publish()
    bed.free()
    (event,) = fentry.verdicts()
    assert event.verdict is Verdict.FREE_WHILE_ALIVE
    assert Flag.LIFE_FORMER in event.flags
    assert event.life is not None
    assert event.life.ino == 4141 and event.life.freed
    bed.alloc()


def test_a_verdict_inside_a_verdict_is_counted_as_lost(fentry: Workbench) -> None:
    """A softirq on top of the same program (Linux before 6.2) leaves the record to the first."""
    fd, cpus = fentry.session.maps["verdict_in_use"], libbpf.possible_cpus()
    libbpf.map_update(fd, Hook.ANY_FREE.number, (b"\1" + bytes(7)) * cpus)
    before = fentry.session.counters()["submit"]
    double_free(fentry.bed)
    assert fentry.verdicts() == []
    assert fentry.session.counters()["submit"] == before + 1
    libbpf.map_update(fd, Hook.ANY_FREE.number, bytes(8 * cpus))
    double_free(fentry.bed)
    assert len(fentry.verdicts()) == 1
    fentry.bed.alloc()


def test_without_compare_and_swap_the_verdicts_are_the_same() -> None:
    """Linux before 5.12: the same histories, on plain loads and stores."""
    bench = Workbench(["NO_CMPXCHG"])
    bed = bench.bed
    try:
        for crime in (False, True):
            bed.alloc()
            bed.publish()
            bed.evict()
            bed.free()
            if crime:
                bed.free()
            found = [event.verdict for event in bench.verdicts()]
            assert found == ([Verdict.DOUBLE_FREE] if crime else [])
        assert bench.session.counters()["torn"] == 0
    finally:
        bench.close()
