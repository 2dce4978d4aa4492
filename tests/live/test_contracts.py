"""The contracts, kept and broken: the loaded programs, run on a page that plays the objects."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from ebpfwatch.catalogue.layout import Broken, Flag
from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.events.wire import VerdictEvent, decode
from ebpfwatch.kernel.playback import FakeInode, Playback
from ebpfwatch.kernel.session import Session
from tests.live.workbench import Workbench

INODE_MEMBERS = {
    Broken.WRITERS: ("OFF_I_WRITECOUNT", -1),
    Broken.READERS: ("OFF_I_READCOUNT", 1),
    Broken.MAPPED: ("OFF_I_MMAP", 1),
}


@pytest.fixture(scope="module", params=["direct_read", "helpers"])
def bench(request: pytest.FixtureRequest) -> Iterator[Workbench]:
    """All programs, attached nowhere, so that nobody else's inodes are told of; also as they are
    where the kernel's memory is read by helpers only.
    """
    loaded = Workbench(["NO_DIRECT_READ"] if request.param == "helpers" else [])
    yield loaded
    loaded.close()


@pytest.fixture
def session(bench: Workbench) -> Session:
    """Their maps and their ring."""
    return bench.session


@pytest.fixture
def bed(bench: Workbench, session: Session) -> Iterator[Playback]:
    """An object that nothing is known of, its life just begun."""
    bed = bench.bed
    session.since["evict"] = 0
    session.configure(0, ())
    bed.alloc()
    bed.publish()
    found(session)
    yield bed
    bed.inode = FakeInode()
    bed.alloc()


def found(session: Session) -> list[VerdictEvent]:
    """What the ring holds."""
    session.consume()
    events = [decode(record) for record in session.records]
    session.records.clear()
    return [event for event in events if isinstance(event, VerdictEvent)]


def only(session: Session, name: str, broken: Broken) -> VerdictEvent:
    """The one verdict, of this name and for this reason."""
    (event,) = found(session)
    assert (event.verdict.name, event.broken) == (name, broken)
    return event


def test_who_keeps_the_rules_is_no_finding(session: Session, bed: Playback) -> None:
    """A life from its unlink to its free and to the next one; dentries killed, put and closed."""
    bed.inode.nlink = 1
    bed.unlink_enter()
    bed.unlink_exit()
    bed.play("iput", bed.inode_address)
    bed.inode.dentry = {"OFF_D_COUNT": 1, **no_children(bed)}
    bed.play("dentry_kill", bed.dentry_address)
    bed.inode.dentry["OFF_D_COUNT"] = -128
    bed.play("dentry_free", bed.dentry_address)
    bed.inode.dentry["OFF_D_COUNT"] = 2
    bed.inode.members = {"OFF_F_DENTRY": bed.dentry_address}
    bed.play("fput", bed.inode_address)
    bed.inode.members = {"OFF_F_DENTRY": 0}  # its open failed
    bed.play("fput", bed.inode_address)
    bed.inode.members = {}
    bed.play("iput", 0, 0)
    bed.evict()
    bed.free()
    bed.alloc()
    assert found(session) == []


def no_children(bed: Playback) -> dict[str, int]:
    """The members of a dentry that say so."""
    if "OFF_D_SUBDIRS" in bed.offsets:
        return {"OFF_D_SUBDIRS": bed.dentry_address + bed.offsets["OFF_D_SUBDIRS"]}
    return {"OFF_D_CHILDREN": 0}


# -- eviction


@pytest.mark.parametrize("broken", list(INODE_MEMBERS), ids=lambda broken: broken.name)
def test_an_inode_evicted_in_use(session: Session, bed: Playback, broken: Broken) -> None:
    """Open for writing (or denied to writers), open for reading, mapped."""
    define, value = INODE_MEMBERS[broken]
    if define not in bed.offsets:
        pytest.skip(f"this kernel has no {define}")
    bed.inode.members = {define: value}
    bed.evict()
    event = only(session, "EVICTED_IN_USE", broken)
    assert event.ino == bed.inode.ino
    assert event.writers == (value if broken is Broken.WRITERS else 0)


def test_an_inode_evicted_with_a_reference(session: Session, bed: Playback) -> None:
    """i_count is not 0."""
    bed.inode.count, bed.inode.published = 3, False
    bed.play("ext4_evict_inode", bed.inode_address)
    assert only(session, "EVICTED_IN_USE", Broken.COUNT).found == 3


@pytest.mark.parametrize("ours", [True, False])
def test_an_inode_evicted_while_a_dentry_names_it(
    session: Session, bed: Playback, ours: bool
) -> None:
    """The dentry's names are told, if it says that it is this inode's."""
    bed.inode.members = {"OFF_I_DENTRY": bed.dentry_address + bed.offsets["OFF_D_U"]}
    if not ours:
        bed.inode.dentry = {"OFF_D_INODE": 0}
    bed.evict()
    event = only(session, "EVICTED_IN_USE", Broken.ALIAS)
    assert event.related == bed.dentry_address
    assert bool(event.flags & Flag.RELATED_PROVEN) is ours
    assert (event.name, event.parents) == (
        ("ebpfwatch-selftest", ("made-up",)) if ours else ("", ())
    )


def test_a_second_eviction_tells_the_broken_rule_beside(session: Session, bed: Playback) -> None:
    """What the table knows weighs more; the evidence is kept."""
    bed.evict()
    bed.inode.members = {"OFF_I_WRITECOUNT": 1}
    bed.evict()
    only(session, "DOUBLE_EVICT", Broken.WRITERS)


# -- unlink


@pytest.mark.parametrize("other", [True, False], ids=["another task's", "nobody's"])
def test_an_unlink_without_the_lock(session: Session, bed: Playback, other: bool) -> None:
    """The directory plays itself here, so both locks are held, or neither."""
    if "OFF_I_RWSEM_OWNER" not in bed.offsets:
        pytest.skip("this kernel's lock has no owner")
    bed.inode.lock_owner = 0xFFFF888000001000 if other else 0
    bed.unlink_enter()
    event = only(session, "UNLOCKED_UNLINK", Broken.DIRECTORY_LOCK | Broken.VICTIM_LOCK)
    assert event.found == bed.inode.lock_owner
    assert (event.name, event.parents) == ("ebpfwatch-selftest", ("made-up",))
    assert event.who.pid == os.getpid()


def test_a_lock_held_for_reading_is_not_enough(session: Session, bed: Playback) -> None:
    """Bit 0 of the owner: the last reader, not a writer."""
    if "OFF_I_RWSEM_OWNER" not in bed.offsets:
        pytest.skip("this kernel's lock has no owner")
    bed.inode.lock_owner = bed.task() | 1
    bed.unlink_enter()
    only(session, "UNLOCKED_UNLINK", Broken.DIRECTORY_LOCK | Broken.VICTIM_LOCK)
    for harmless in (2, 4):  # flags for whoever waits (kernel/locking/rwsem.c)
        bed.inode.lock_owner = bed.task() | harmless
        bed.unlink_enter()
    assert found(session) == []


def test_an_unlink_of_what_has_no_link(session: Session, bed: Playback) -> None:
    """i_nlink is 0: it was deleted before."""
    bed.inode.nlink = 0
    bed.play("ext4_unlink_enter", bed.inode_address, bed.dentry_address)
    only(session, "UNLOCKED_UNLINK", Broken.NO_LINK)


def test_an_unlink_from_a_directory_where_the_name_is_not(session: Session, bed: Playback) -> None:
    """The dentry's parent is another directory than the one that ext4_unlink() was given."""
    bed.inode.dentry = {"OFF_D_PARENT": bed.another_dentry()}
    bed.unlink_enter()
    event = only(session, "UNLOCKED_UNLINK", Broken.PARENT)
    assert event.related == bed.inode_address


# -- allocation


def test_memory_that_was_written_after_its_free(session: Session, bed: Playback) -> None:
    """i_state is neither what clear_inode() left nor 0: the only witness of such a write."""
    bed.evict()
    bed.free()
    bed.inode.state |= 0x800
    bed.play("kmem_cache_alloc", bed.call_site, bed.object, session.loaded.learned.cache)
    event = only(session, "WRITTEN_AFTER_FREE", Broken.STATE)
    assert event.found == bed.inode.state
    assert event.life is not None and event.life.evicted.pid == os.getpid()


@pytest.mark.parametrize("known", [True, False], ids=["freed before", "unknown to the table"])
def test_a_living_inode_handed_out_again(session: Session, bed: Playback, known: bool) -> None:
    """It is on its superblock's list of inodes."""
    if known:
        bed.evict()
        bed.free()
        bed.publish()
    bed.play("kmem_cache_alloc", bed.call_site, bed.object, session.loaded.learned.cache)
    event = only(session, "ALLOCATED_WHILE_ALIVE", Broken.LISTED)
    assert (event.filesystem, event.life is not None) == ("ext4", known)


# -- a free whose first half was forgotten


@pytest.mark.parametrize("watched", [True, False], ids=["for long", "not long enough"])
def test_a_second_free_whose_first_was_forgotten(
    session: Session, bed: Playback, watched: bool
) -> None:
    """The table knows nothing, the object is dead, and no eviction of a minute was missed."""
    session.since["evict"] = 1 if watched else time.monotonic_ns()
    session.configure(0, ())
    before = session.counters()["free_unmatched"]
    bed.inode.state, bed.inode.count, bed.inode.published = bed.dead, 0, False
    bed.free()
    if watched:
        event = only(session, "DOUBLE_FREE", Broken(0))
        assert event.life is None and event.flags & Flag.WITNESS_CLEAR
    else:
        assert found(session) == []
    assert session.counters()["free_unmatched"] == before + (not watched)


def test_a_lost_race_that_inherits_a_dead_state_is_legal(session: Session, bed: Playback) -> None:
    """Before Linux 6.11 the state of the life before stays; its count of 1 tells it."""
    session.since["evict"] = 1
    session.configure(0, ())
    before = session.counters()["free_aborted"]
    bed.inode.state, bed.inode.count, bed.inode.published = bed.dead, 1, False
    bed.free()
    assert found(session) == []
    assert session.counters()["free_aborted"] == before + 1


# -- dentries


def test_a_dentry_killed_twice(session: Session, bed: Playback) -> None:
    """lockref_mark_dead() has left a negative count."""
    bed.inode.dentry = {"OFF_D_COUNT": -128, **no_children(bed)}
    bed.play("dentry_kill", bed.dentry_address)
    event = only(session, "DENTRY_KILLED_TWICE", Broken.DEAD)
    assert event.object == bed.dentry_address and event.flags & Flag.OBJECT_DENTRY
    assert (event.name, event.parents) == ("ebpfwatch-selftest", ("made-up",))
    assert (event.count, event.filesystem) == (-128, "ext4")


@pytest.mark.parametrize("program", ["dentry_kill", "dentry_free"])
def test_a_directory_killed_with_children(session: Session, bed: Playback, program: str) -> None:
    """One of them says that this is its parent."""
    beside, below = (
        ("OFF_D_CHILD", "OFF_D_SUBDIRS")
        if "OFF_D_SUBDIRS" in bed.offsets
        else ("OFF_D_SIB", "OFF_D_CHILDREN")
    )
    child = bed.directory_address  # whose parent is made to be our dentry
    bed.inode.dentry = {
        "OFF_D_COUNT": 1,
        below: child + bed.offsets[beside],
    }
    bed.inode.above_directory = bed.dentry_address
    bed.play(program, bed.dentry_address)
    event = only(session, "DENTRY_KILLED_IN_USE", Broken.CHILDREN)
    assert event.related == child and event.flags & Flag.RELATED_PROVEN
    assert event.count == 1


@pytest.mark.parametrize("queued", [True, False])
def test_a_dentry_freed_that_is_not_free(session: Session, bed: Playback, queued: bool) -> None:
    """What the kernel's own warning at dentry_free() does not tell apart: RCU has it already, or it
    is on its inode's list.
    """
    session.text = (0xFFFFFFFF81000000, 0xFFFFFFFF82000000)
    session.configure(0, ())
    address = 0xFFFFFFFF81234560 if queued else bed.inode_address
    bed.inode.dentry = {"OFF_D_COUNT": -128, "OFF_D_FUNC": address, **no_children(bed)}
    bed.play("dentry_free", bed.dentry_address)
    name = "DENTRY_KILLED_TWICE" if queued else "DENTRY_KILLED_IN_USE"
    assert only(session, name, Broken.QUEUED if queued else Broken.ALIAS).found == address


# -- references given back


@pytest.mark.parametrize("count", [0, -1])
def test_a_put_without_a_reference(session: Session, bed: Playback, count: int) -> None:
    """i_count is 0 or less, and the inode is alive."""
    bed.inode.count = count & 0xFFFFFFFF
    bed.play("iput", bed.inode_address)
    event = only(session, "PUT_WITHOUT_REFERENCE", Broken.COUNT)
    assert (event.object, event.count) == (bed.object, count)


def test_a_put_of_a_dead_inode(session: Session, bed: Playback) -> None:
    """It was evicted, and its memory still says so."""
    bed.inode.state, bed.inode.count, bed.inode.published = bed.dead, 0, False
    bed.play("iput", bed.inode_address)
    only(session, "PUT_WITHOUT_REFERENCE", Broken.COUNT | Broken.DEAD)


def names(bed: Playback) -> dict[str, int]:
    """The members of an inode that a dentry names."""
    return {"OFF_I_DENTRY": bed.dentry_address + bed.offsets["OFF_D_U"]}


def test_a_put_of_the_reference_that_a_dentry_has(session: Session, bed: Playback) -> None:
    """The last one, while the dentry still names the inode: told at the mistake itself."""
    bed.inode.count, bed.inode.members = 1, names(bed)
    bed.play("iput", bed.inode_address)
    event = only(session, "PUT_WITHOUT_REFERENCE", Broken.COUNT | Broken.ALIAS)
    assert (event.object, event.count, event.related) == (bed.object, 1, bed.dentry_address)
    assert event.flags & Flag.RELATED_PROVEN and event.name == "ebpfwatch-selftest"


@pytest.mark.parametrize("why", ["not the last", "no dentry", "another inode's dentry"])
def test_a_put_of_a_reference_of_its_own_is_legal(
    session: Session, bed: Playback, why: str
) -> None:
    """One reference more, an empty list, or a dentry that does not say it is this inode's."""
    bed.inode.count = 2 if why == "not the last" else 1
    bed.inode.members = {"OFF_I_DENTRY": 0} if why == "no dentry" else names(bed)
    if why == "another inode's dentry":
        bed.inode.dentry = {"OFF_D_INODE": 0}
    bed.play("iput", bed.inode_address)
    assert found(session) == []


@pytest.mark.parametrize(
    ("count", "broken"), [(0, Broken.COUNT), (-128, Broken.COUNT | Broken.DEAD)]
)
def test_a_file_closed_after_its_dentry_died(
    session: Session, bed: Playback, count: int, broken: Broken
) -> None:
    """An open file holds its dentry to the end."""
    bed.inode.dentry = {"OFF_D_COUNT": count}
    bed.inode.members = {"OFF_F_DENTRY": bed.dentry_address}
    bed.play("fput", bed.inode_address)
    event = only(session, "CLOSED_AFTER_DEATH", broken)
    assert event.object == bed.dentry_address and event.related == bed.inode_address


# -- RCU's lists


@pytest.fixture
def two_cpus() -> Iterator[tuple[int, int]]:
    """Where to queue and where to free; the affinity is as before at the end."""
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("one CPU")
    yield tuple(sorted(before))[:2]  # type: ignore[misc]
    os.sched_setaffinity(0, before)


def freed_elsewhere(bed: Playback, cpus: tuple[int, int], times: int) -> None:
    """So many lives, queued for RCU on the first CPU and freed on the second."""
    for _ in range(times):
        os.sched_setaffinity(0, {cpus[0]})
        bed.alloc()
        bed.publish()
        bed.evict()
        bed.play("ext4_destroy_inode", bed.inode_address, 0)
        os.sched_setaffinity(0, {cpus[1]})
        bed.play("ext4_free_in_core_inode", bed.inode_address, 0)


def test_many_callbacks_on_another_cpu_are_crossed_lists(
    session: Session, bed: Playback, two_cpus: tuple[int, int]
) -> None:
    """Eight in a row, each soon after the last; one by one they are a task that moved."""
    before = session.counters()["rcu_other_cpu"]
    freed_elsewhere(bed, two_cpus, 40)
    told = [event for event in found(session) if event.verdict is Verdict.RCU_LISTS_CROSSED]
    elsewhere = session.counters()["rcu_other_cpu"] - before
    assert elsewhere == 40 and told
    assert told[0].life is not None and told[0].life.destroyed.cpu == two_cpus[0] != told[0].cpu
    freed_elsewhere(bed, (two_cpus[0], two_cpus[0]), 20)
    assert session.counters()["rcu_other_cpu"] - before == 40 and found(session) == []


def test_a_cpu_that_came_or_went_excuses_them(
    session: Session, bed: Playback, two_cpus: tuple[int, int]
) -> None:
    """RCU gives its callbacks to another CPU."""
    bed.play("cpuhp_enter", 1, 0, 0, 0)
    freed_elsewhere(bed, two_cpus, 40)
    assert found(session) == []
