"""What the probes do on rungs that this kernel does not have (tests/live/workbench.py)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ebpfwatch.catalogue.layout import Flag
from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.events.wire import VerdictEvent, decode
from tests.live.workbench import Workbench


def verdicts(bench: Workbench) -> list[VerdictEvent]:
    """What the ring holds."""
    bench.session.consume()
    events = [decode(record) for record in bench.session.records]
    bench.session.records.clear()
    return [event for event in events if isinstance(event, VerdictEvent)]


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
    assert verdicts(fentry) == []
    assert fentry.session.counters()["free_aborted"] == 1


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
    (event,) = verdicts(fentry)
    assert event.verdict is Verdict.DOUBLE_EVICT
    bed.free()
    bed.free()
    (event,) = verdicts(fentry)
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
    (event,) = verdicts(fentry)
    assert event.verdict is Verdict.DOUBLE_FREE
    assert event.flags & Flag.WITNESS_NO_INODE and not event.flags & Flag.WITNESS_PUBLISHED
    bed.alloc()
