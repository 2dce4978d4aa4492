"""Model-based: random histories through the loaded programs and through the table of lifecycle.py.

The object is a page of map memory, the programs are the real ones, run by BPF_PROG_TEST_RUN.
"""

from __future__ import annotations

import ctypes
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ebpfwatch.catalogue.layout import OBJECT_BITS, Flag, State
from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.commands.selftest import double_free
from ebpfwatch.events.wire import Bucket, VerdictEvent, decode
from ebpfwatch.kernel import libbpf
from ebpfwatch.kernel.playback import Playback
from ebpfwatch.kernel.session import NEVER, Session
from ebpfwatch.verdicts.correlator import judge
from ebpfwatch.verdicts.finding import Confidence
from ebpfwatch.verdicts.knowledge import Knowledge
from ebpfwatch.verdicts.lifecycle import Step, Witness, step
from tests.live.conftest import load_session
from tests.live.model import WAYS, WEIGHTS, Action, Arena, Expected, Model, dry_session, history
from tests.trust.figures import record

EXAMPLES = int(os.environ.get("EBPFWATCH_EXAMPLES", "300"))
EVENTS = int(os.environ.get("EBPFWATCH_EVENTS", "100000"))
SEED = int(os.environ.get("EBPFWATCH_SEED", "0")) or int.from_bytes(os.urandom(4), "little")


@pytest.fixture(scope="module", params=["always", "never"])
def alloc(request: pytest.FixtureRequest) -> str:
    """With the hook on allocations, and without: then the object alone tells a new life."""
    return str(request.param)


@pytest.fixture(scope="module")
def session(ext4: Path, alloc: str) -> Iterator[Session]:
    """The watcher, attached to nothing: what it counts is what was played."""
    loaded = load_session(ext4, alloc=alloc, attach=False)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def bed(session: Session) -> Playback:
    """The object to play with."""
    return Playback(session.programs, session.maps, session.loaded.offsets, session.loaded.learned)


def verdicts(session: Session, address: int) -> list[VerdictEvent]:
    """What the ring holds about this object."""
    session.consume()
    events = [decode(record) for record in session.records]
    session.records.clear()
    return [e for e in events if isinstance(e, VerdictEvent) and e.object == address]


def make_it_say(bed: Playback, witness: Witness) -> None:
    """Make the object's memory say this."""
    bed.inode.published = witness is Witness.ALIVE
    bed.inode.reused = witness is Witness.REUSED
    bed.inode.state = bed.dead if witness is Witness.DEAD else 0
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
    session: Session, bed: Playback, alloc: str, history: list[tuple[Step, Witness]]
) -> None:
    """Every step of every history: the same verdict, the same counter, the same next state."""
    bed.alloc()  # whatever a former history left behind ends here
    state = State.ABSENT
    if alloc == "never":
        bed.evict()
        bed.free()
        state = State.FREED
    verdicts(session, bed.object)
    for what, witness in history:
        before = session.counters()
        make_it_say(bed, witness)
        expected = step(state, what, witness, alloc == "always")
        if what is Step.ALLOC:
            bed.alloc()
        elif what is Step.EVICT:
            bed.evict()
        else:
            bed.free()
        found = verdicts(session, bed.object)
        name = expected.verdict.name if expected.verdict else None
        assert [event.verdict.name for event in found] == ([name] if name else [])
        if found and found[0].life and Flag.LIFE_FORMER not in found[0].flags:
            assert found[0].life.state is state
        after = session.counters()
        if expected.counted:
            assert after[expected.counted] >= before[expected.counted] + 1, expected
        state = expected.state


class Judged(Model):
    """The model, with each verdict judged as the daemon would, knowing what was lost."""

    confirmed = critical = 0

    def judged(self, pairs: list[tuple[Expected, VerdictEvent]]) -> None:
        """Confirmed means that it happened, whatever was lost; doubted it is with cause only."""
        for wanted, event in pairs:
            finding = judge(event, knowledge(wanted.lost), 1)
            assert finding is not None
            if not finding.verdict.damage:
                assert finding.confidence is not Confidence.CONFIRMED
                continue
            self.critical += 1
            if finding.confidence is Confidence.CONFIRMED:
                self.confirmed += 1
                assert wanted.crime, (finding.verdict, wanted)
            elif not wanted.lost:
                assert wanted.crime and finding.reasons, (finding.verdict, wanted)


ROLES = ("alloc", "unlink", "evict", "rcu_free", "any_free", "reclaim")


def knowledge(lost: frozenset[str]) -> Knowledge:
    """All hooks proven; runs of these were lost, and the canary has found alloc to be silent."""
    return Knowledge(
        attached=frozenset(ROLES),
        alive={role: role != "alloc" or "alloc" not in lost for role in ROLES},
        lost=lambda role, since: int(role in lost),
        symbol=lambda address: "",
        realtime_offset_ns=1_700_000_000_000_000_000,
        test_object=lambda address: False,
    )


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """Rows of docs/reliability.md."""
    rows = [
        "| histories | steps | crimes | verdicts of damage | confirmed | forgotten |",
        "|---|---|---|---|---|---|",
    ]
    yield rows
    record("model", f"make soak EVENTS={EVENTS}", [*rows, "", f"Seed {SEED}."])


@pytest.fixture(scope="module")
def arena(ext4: Path) -> Iterator[Arena]:
    """The programs, attached to nothing, and eleven inodes or so that share one bucket."""
    session = dry_session(ext4)
    yield Arena(session)
    session.close()


@pytest.mark.parametrize(
    ("inodes", "lost"),
    [(WAYS, 0.0), (99, 0.0), (WAYS, 0.05), (99, 0.05)],
    ids=["all remembered", "a full table", "runs lost", "a full table, runs lost"],
)
def test_the_programs_are_the_model(
    arena: Arena,
    inodes: int,
    lost: float,
    table: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every record, every counter, the table's fill; no confirmed verdict that was not a crime."""
    rng = random.Random(f"{SEED} {inodes} {lost}")
    model = Judged.fresh(arena)
    before = dict(model.counters)
    inodes = min(inodes, len(arena.inodes))
    rest = EVENTS // 4
    while model.played < EVENTS // 4:
        actions = history(rng, min(rest, 10_000), inodes, lost)
        for number, action in enumerate(actions):
            try:
                model.play(action)
            except AssertionError:
                print(f"EBPFWATCH_SEED={SEED}, the last actions: {actions[: number + 1][-20:]}")
                raise
    model.check()
    losses = ("forgotten_dying", "forgotten_dead")
    forgotten = sum(model.counters[name] - before[name] for name in losses)
    if inodes == WAYS and not lost:
        assert model.unseen == 0
    table.append(
        f"| {inodes} inodes, {'one run in twenty lost' if lost else 'no run lost'} | {model.played}"
        f" | {model.crimes} | {model.critical} | {model.confirmed} | {forgotten} |"
    )
    with capsys.disabled():
        print(
            f"\n  {model.played} events of {inodes} inodes, {model.crimes} crimes,"
            f" {model.critical} verdicts of damage read from the ring, {model.confirmed} of them"
            f" confirmed, none wrongly; {forgotten} forgotten; seed {SEED}"
        )


ACTIONS = st.tuples(st.sampled_from(list(WEIGHTS)), st.integers(0, 5), st.booleans())


@settings(max_examples=EXAMPLES // 3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(ACTIONS, max_size=60))
def test_any_history_is_the_models(arena: Arena, actions: list[Action]) -> None:
    """The same, by histories that hypothesis can make short when one fails."""
    model = Judged.fresh(arena)
    for action in actions:
        model.play(action)
    model.check()


def test_identity_changed_is_found(session: Session, bed: Playback) -> None:
    """Another inode number at the free than at the eviction."""
    bed.alloc()
    bed.inode.ino = 1
    bed.evict()
    bed.inode.ino = 2
    bed.free()
    (event,) = verdicts(session, bed.object)
    assert event.verdict is Verdict.IDENTITY_CHANGED
    assert event.life is not None
    assert (event.life.ino, event.ino) == (1, 2)


@pytest.mark.parametrize("late", [True, False])
def test_an_entry_that_another_cpu_wrote_late_tells_no_identity(
    session: Session, bed: Playback, late: bool
) -> None:
    """A CPU that is interrupted between claiming a way and writing its life writes over the life of
    who took the way since: the seal is another object's, and the ordinary free is none of another
    inode. A life whose seal is whole still says so.
    """
    bed.alloc()
    bed.evict()
    before = session.counters()
    fd, size = session.maps["table"], ctypes.sizeof(Bucket)
    for index in range(session.table_slots // WAYS):
        bucket = Bucket.from_buffer_copy(libbpf.map_lookup(fd, index, size))
        for way in range(WAYS):
            if bucket.object[way] & ~OBJECT_BITS == bed.object:
                life = bucket.life[way]
                life.ino ^= 1
                life.seal ^= (1 << 17) | (0x1000 if late else 0)  # of an object one page on
                libbpf.map_update(fd, index, bytes(bucket))
    bed.free()
    found = [event.verdict for event in verdicts(session, bed.object)]
    free = session.counters()["free"] - before["free"]
    assert found == ([] if late else [Verdict.IDENTITY_CHANGED])
    assert free >= 1  # the programs are attached: other inodes of this machine die, too


def test_an_inode_that_was_never_listed_is_not_alive(session: Session, bed: Playback) -> None:
    """A lost race in iget_locked on memory fresh from the slab's constructor: NULL is no list."""
    bed.alloc()
    bed.inode.constructed = False
    before = session.counters()["free_aborted"]
    bed.free()
    bed.inode.constructed = True
    assert verdicts(session, bed.object) == []
    assert session.counters()["free_aborted"] == before + 1
    bed.alloc()


def test_a_free_by_an_unknown_caller_is_found(session: Session, bed: Playback) -> None:
    """A call site that is not ext4's, and only once ours is known."""
    bed.alloc()
    bed.evict()
    session.configure(0, (bed.call_site,))
    bed.free(call_site=0xFFFFFFFFC0DE0000)
    session.configure(0, ())
    (event,) = verdicts(session, bed.object)
    assert event.verdict is Verdict.FOREIGN_FREE
    assert event.call_site == 0xFFFFFFFFC0DE0000


def test_eviction_in_reclaim_during_an_unlink_is_a_candidate(
    session: Session, bed: Playback
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
    assert event.verdict is Verdict.FREED_IN_RECLAIM
    assert event.reclaim_pid
    assert (event.unlink_in_flight, event.name) == (True, "ebpfwatch-selftest")
    bed.unlink_exit()
    before = session.counters()["free_in_reclaim"]
    bed.free()
    assert session.counters()["free_in_reclaim"] == before + 1
    assert verdicts(session, bed.object) == []


def test_ordinary_reclaim_is_no_finding(session: Session, bed: Playback) -> None:
    """An inode with links, nobody unlinking it: what reclaim is for."""
    bed.alloc()
    bed.publish()
    bed.inode.nlink = 1
    bed.shrink_start()
    bed.evict()
    bed.shrink_end()
    bed.free()
    assert verdicts(session, bed.object) == []


def test_two_unlinks_at_once_are_context(session: Session, bed: Playback) -> None:
    """A second task enters ext4_unlink for the same inode before the first has left."""
    bed.alloc()
    bed.publish()
    bed.unlink_enter()
    keeps_owner = "OFF_I_RWSEM_OWNER" in bed.offsets
    bed.inode.lock_owner = bed.task()  # ours, so the other one has come without it
    child = os.fork()
    if child == 0:
        bed.unlink_enter()
        os._exit(0)
    os.waitpid(child, 0)
    bed.inode.lock_owner = None
    (event,) = verdicts(session, bed.object)
    assert event.verdict is (Verdict.UNLOCKED_UNLINK if keeps_owner else Verdict.CONCURRENT_UNLINK)
    assert event.unlinked.pid == os.getpid() and event.who.pid == child
    bed.evict()  # and with that life its note ends
    bed.free()
    bed.alloc()


@pytest.fixture
def gap(session: Session) -> Iterator[Callable[[str], None]]:
    """Tells the programs, as the governor does, that a hook is off; it is back at the end."""

    def begin(role: str) -> None:
        session.since[role] = NEVER
        session.configure(0, ())

    yield begin
    session.since = dict.fromkeys(session.since, 0)
    session.configure(0, ())


def test_a_life_that_began_while_alloc_was_off_is_no_second_death(
    session: Session, bed: Playback, gap: Callable[[str], None]
) -> None:
    """Dead, handed out again unseen, evicted: without the gap told that is a double eviction."""
    bed.alloc()
    bed.evict()
    bed.free()
    gap("alloc")
    bed.inode.state, bed.inode.count = 0, 1
    bed.publish()
    bed.evict()
    bed.free()
    assert verdicts(session, bed.object) == []


def test_an_unlink_whose_return_nobody_saw_is_not_in_flight(
    session: Session, bed: Playback, gap: Callable[[str], None]
) -> None:
    """Neither to reclaim, nor to a second task, nor in the evidence of another verdict."""
    bed.alloc()
    bed.publish()
    bed.inode.nlink = 1
    bed.unlink_enter()
    gap("unlink")
    child = os.fork()
    if child == 0:
        bed.unlink_enter()
        os._exit(0)
    os.waitpid(child, 0)
    bed.shrink_start()
    bed.evict()
    bed.shrink_end()
    assert verdicts(session, bed.object) == []
    bed.free()
    bed.free()
    (event,) = verdicts(session, bed.object)
    assert (event.verdict, event.unlink_in_flight) == (Verdict.DOUBLE_FREE, False)
    bed.alloc()


def test_hostile_names_arrive_whole(session: Session, bed: Playback) -> None:
    """Newlines, escapes and broken UTF-8 come through as text that can be shown."""
    bed.inode.name = b"a\n\x1b[31m\xff"
    double_free(bed)
    (event,) = verdicts(session, bed.object)
    assert event.name == "a\n\x1b[31m\\xff"
    bed.inode.name = b"ebpfwatch-selftest"
    bed.alloc()


def test_without_names_the_verdicts_are_the_same(ext4: Path) -> None:
    """``evidence.names: false``: who unlinked is known, and what it was called is not."""
    session = load_session(ext4, names=False)
    try:
        bed = Playback(
            session.programs, session.maps, session.loaded.offsets, session.loaded.learned
        )
        double_free(bed)
        (event,) = verdicts(session, bed.object)
        assert event.verdict is Verdict.DOUBLE_FREE
        assert event.unlinked.pid == os.getpid()
        assert (event.name, event.parents, event.directory_ino) == ("", (), 0)
    finally:
        session.close()
