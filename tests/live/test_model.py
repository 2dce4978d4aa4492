"""Model-based: random histories through the loaded programs and through the table of lifecycle.py.

The object is a page of map memory, the programs are the real ones, run by BPF_PROG_TEST_RUN.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ebpfwatch.events.wire import KernelVerdict, State, VerdictEvent, decode
from ebpfwatch.kernel.session import Session
from ebpfwatch.kernel.testbed import Testbed
from ebpfwatch.verdicts.lifecycle import Step, Witness, step
from tests.live.conftest import load_session

EXAMPLES = int(os.environ.get("EBPFWATCH_EXAMPLES", "300"))


@pytest.fixture(scope="module")
def session(ext4: Path) -> Iterator[Session]:
    """The loaded watcher."""
    loaded = load_session(ext4)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def bed(session: Session) -> Testbed:
    """The object to play with."""
    return Testbed(session.programs, session.maps, session.offsets, session.learned)


def verdicts(session: Session, address: int) -> list[VerdictEvent]:
    """What the ring holds about this object."""
    session.consume()
    events = [decode(record) for record in session.records]
    session.records.clear()
    return [e for e in events if isinstance(e, VerdictEvent) and e.object == address]


def make_it_say(bed: Testbed, witness: Witness) -> None:
    """Make the object's memory say this."""
    bed.inode.published = witness is Witness.ALIVE
    bed.inode.state = bed._dead if witness is Witness.DEAD else 0
    bed.inode.count = 0 if witness is Witness.DEAD else 1


STEPS = st.tuples(
    st.sampled_from([Step.ALLOC, Step.EVICT, Step.FREE]), st.sampled_from(list(Witness))
)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(history=st.lists(STEPS, max_size=40))
def test_the_kernel_does_what_the_table_says(
    session: Session, bed: Testbed, history: list[tuple[Step, Witness]]
) -> None:
    """Every step of every history: the same verdict, the same counter, the same next state."""
    bed.alloc()  # whatever a former history left behind ends here
    state = State.ABSENT
    verdicts(session, bed.object)
    for what, witness in history:
        before = session.counters()
        make_it_say(bed, witness)
        expected = step(state, what, witness)
        if what is Step.ALLOC:
            bed.alloc()
        elif what is Step.EVICT:
            bed.evict()
        else:
            bed.free()
        found = verdicts(session, bed.object)
        name = expected.verdict.name if expected.verdict else None
        assert [event.verdict.name for event in found] == ([name] if name else [])
        if found and found[0].life:
            assert found[0].life.state is state
        after = session.counters()
        if expected.counted:
            assert after[expected.counted] >= before[expected.counted] + 1, expected
        state = expected.state


def test_identity_changed_is_found(session: Session, bed: Testbed) -> None:
    """Another inode number at the free than at the eviction."""
    bed.alloc()
    bed.inode.ino = 1
    bed.evict()
    bed.inode.ino = 2
    bed.free()
    (event,) = verdicts(session, bed.object)
    assert event.verdict is KernelVerdict.IDENTITY_CHANGED
    assert event.life is not None
    assert (event.life.ino, event.ino) == (1, 2)


def test_an_inode_that_was_never_listed_is_not_alive(session: Session, bed: Testbed) -> None:
    """A lost race in iget_locked on memory fresh from the slab's constructor: NULL is no list."""
    bed.alloc()
    bed.inode.constructed = False
    before = session.counters()["free_aborted"]
    bed.free()
    bed.inode.constructed = True
    assert verdicts(session, bed.object) == []
    assert session.counters()["free_aborted"] == before + 1
    bed.alloc()


def test_a_free_by_a_stranger_is_found(session: Session, bed: Testbed) -> None:
    """A call site that is not ext4's, and only once ours is known."""
    bed.alloc()
    bed.evict()
    session.configure(0, (bed.call_site,))
    bed.free(call_site=0xFFFFFFFFC0DE0000)
    session.configure(0, ())
    (event,) = verdicts(session, bed.object)
    assert event.verdict is KernelVerdict.FOREIGN_FREE
    assert event.call_site == 0xFFFFFFFFC0DE0000


def test_eviction_in_reclaim_during_an_unlink_is_a_candidate(
    session: Session, bed: Testbed
) -> None:
    """Inside shrink_slab, with the unlink not yet returned; the free carries the context on."""
    bed.alloc()
    bed.publish()
    bed.inode.nlink = 1
    bed.unlink_enter()
    bed.shrink_start()
    bed.evict()
    bed.shrink_end()
    (event,) = verdicts(session, bed.object)
    assert event.verdict is KernelVerdict.FREED_IN_RECLAIM
    assert event.reclaim_pid
    assert (event.unlink_in_flight, event.name) == (True, "ebpfwatch-selftest")
    bed.unlink_exit()
    before = session.counters()["free_in_reclaim"]
    bed.free()
    assert session.counters()["free_in_reclaim"] == before + 1
    assert verdicts(session, bed.object) == []


def test_ordinary_reclaim_is_no_finding(session: Session, bed: Testbed) -> None:
    """An inode with links, nobody unlinking it: what reclaim is for."""
    bed.alloc()
    bed.publish()
    bed.inode.nlink = 1
    bed.shrink_start()
    bed.evict()
    bed.shrink_end()
    bed.free()
    assert verdicts(session, bed.object) == []


def test_two_unlinks_at_once_are_context(session: Session, bed: Testbed) -> None:
    """A second task enters ext4_unlink for the same inode before the first has left."""
    bed.alloc()
    bed.publish()
    bed.unlink_enter()
    child = os.fork()
    if child == 0:
        bed.unlink_enter()
        os._exit(0)
    os.waitpid(child, 0)
    (event,) = verdicts(session, bed.object)
    assert event.verdict is KernelVerdict.CONCURRENT_UNLINK
    assert event.unlinked.pid == os.getpid() and event.who.pid == child
    bed.alloc()


def test_hostile_names_arrive_whole(session: Session, bed: Testbed) -> None:
    """Newlines, escapes and broken UTF-8 come through as text that can be shown."""
    bed.alloc()
    bed.publish()
    bed.inode.name = b"a\n\x1b[31m\xff"
    bed.inode.ino += 1  # another inode than the one left in flight above, at the same address
    bed.unlink_enter()
    bed.unlink_exit()
    bed.evict()
    bed.free()
    bed.free()
    (event,) = verdicts(session, bed.object)
    assert event.name == "a\n\x1b[31m\\xff"
    bed.inode.name = b"ebpfwatch-selftest"
    bed.alloc()
