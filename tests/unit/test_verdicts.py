"""Judging, folding, losses, the recorder, the canary: pure, so tested with nothing but values."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from ebpfwatch.catalogue.layout import Flag, LifeFlag, State
from ebpfwatch.catalogue.roles import Hook
from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.daemon.canary import Canary, Life, Run
from ebpfwatch.events.wire import LifeSeen, StepEvent, VerdictEvent, Who
from ebpfwatch.sinks import kmsg
from ebpfwatch.verdicts.confidence import ago
from ebpfwatch.verdicts.correlator import Knowledge, judge
from ebpfwatch.verdicts.finding import Confidence, Finding, Severity, Strength
from ebpfwatch.verdicts.folding import Folder
from ebpfwatch.verdicts.lifecycle import TESTIFIED, TRANSITIONS, Step, Witness, step
from ebpfwatch.verdicts.losses import LossHistory
from ebpfwatch.verdicts.recorder import Recorder

RM = Who(1_000, 11, 11, 0, "rm")
KSOFTIRQD = Who(2_000_000, 12, 12, 1, "ksoftirqd/1")
NOBODY = Who(0, 0, 0, 0, "")

LIFE = LifeSeen(42, 7, 8 << 20, State.FREED, LifeFlag(0), 0, 1, RM, NOBODY, KSOFTIRQD)
EVENT = VerdictEvent(
    ns=5_000_000,
    cpu=1,
    verdict=Verdict.DOUBLE_FREE,
    hook=Hook.ANY_FREE,
    flags=Flag.LIFE_VALID | Flag.WITNESS_READ | Flag.WITNESS_CLEAR | Flag.WITNESS_IDENTITY,
    object=0xFFFF0000,
    call_site=0xC0DE,
    ino=42,
    generation=7,
    dev=8 << 20,
    state=0x60,
    count=0,
    reclaim_pid=0,
    life=LIFE,
    who=Who(5_000_000, 13, 13, 1, "browser"),
    unlinked=RM,
    unlink_in_flight=False,
    name="victim",
    stack=(0xC0DE,),
)

ALL = ("alloc", "unlink", "evict", "destroy", "rcu_free", "any_free", "reclaim")
HEALTHY = Knowledge(
    attached=frozenset(ALL),
    alive=dict.fromkeys(ALL, True),
    lost=lambda role, since: 0,
    symbol=lambda address: "evil_free+0x10 [evil]" if address == 0xC0DE else "",
    realtime_offset_ns=1_700_000_000_000_000_000,
    test_object=lambda address: False,
    taints={"evil": "OE"}.get,  # type: ignore[arg-type]
)


def judged(event: VerdictEvent = EVENT, knowledge: Knowledge = HEALTHY) -> Finding:
    """The finding, which must be one."""
    finding = judge(event, knowledge, 1)
    assert finding is not None
    return finding


def test_the_table_is_total() -> None:
    """Every state, step and witness has exactly one outcome, and leads to a state."""
    for state, what, witness in itertools.product(State, Step, Witness):
        assert isinstance(step(state, what, witness).state, State)
        assert ((state, what) in TRANSITIONS) != ((state, what, witness) in TESTIFIED)


def test_no_legal_life_is_a_verdict() -> None:
    """Born, evicted, queued, freed, reused, with and without the destroy hook."""
    for order in (
        [Step.EVICT, Step.DESTROY, Step.FREE, Step.ALLOC],
        [Step.EVICT, Step.FREE, Step.ALLOC],
    ):
        state = State.ABSENT
        for what in order:
            outcome = step(state, what, Witness.DEAD)
            assert outcome.verdict is None
            state = outcome.state
        assert state is State.ABSENT


def test_a_clean_double_free_is_confirmed_and_critical() -> None:
    """Who first, who second, which inode, where from."""
    finding = judged()
    assert (finding.confidence, finding.severity) == (Confidence.CONFIRMED, Severity.CRIT)
    assert finding.first is not None and finding.first.comm == "ksoftirqd/1"
    assert finding.second is not None and finding.second.comm == "browser"
    assert [str(frame) for frame in finding.second.stack] == ["evil_free+0x10 [evil] (OE)"]
    assert finding.evicted_by is not None and finding.evicted_by.comm == "rm"
    assert (finding.identity.ino, finding.identity.dev_major) == (42, 8)
    assert finding.name == "victim"
    assert Finding.from_json(finding.to_json()) == finding


DOUBTS = {
    "torn entry": (
        {"flags": EVENT.flags | Flag.SEAL_BROKEN},
        {},
        Confidence.UNDECIDABLE,
        "two CPUs wrote",
    ),
    "object says alive": (
        {"flags": EVENT.flags & ~Flag.WITNESS_CLEAR},
        {},
        Confidence.PROBABLE,
        "does not say that it is dead",
    ),
    "unreadable": (
        {"flags": Flag.LIFE_VALID | Flag.WITNESS_CLEAR},
        {},
        Confidence.PROBABLE,
        "could not be read",
    ),
    "reused memory": (
        {"flags": EVENT.flags | Flag.WITNESS_NO_INODE},
        {},
        Confidence.PROBABLE,
        "no ext4 inode any more",
    ),
    "skipped allocations and evictions": (
        {},
        {"lost": lambda role, since: 2 * (role in ("alloc", "evict"))},
        Confidence.PROBABLE,
        "2 runs of the hook alloc were skipped",
    ),
    "another inode": ({"ino": 43}, {}, Confidence.PROBABLE, "was inode 42 generation 7"),
    "hooks silent": (
        {},
        {"alive": {**dict.fromkeys(ALL, True), "alloc": False, "evict": False}},
        Confidence.UNDECIDABLE,
        "silent when the canary tried it",
    ),
    "hooks unproven": (
        {},
        {"alive": dict.fromkeys(ALL)},
        Confidence.PROBABLE,
        "is not proven alive",
    ),
    "no alloc hook and skipped evictions": (
        {},
        {"attached": frozenset(ALL) - {"alloc"}, "lost": lambda role, since: 3},
        Confidence.PROBABLE,
        "3 runs of the hook evict were skipped",
    ),
}


@pytest.mark.parametrize("name", DOUBTS)
def test_each_doubt_lowers_the_confidence(name: str) -> None:
    """And says why."""
    event, knowledge, confidence, reason = DOUBTS[name]
    finding = judged(
        dataclasses.replace(EVENT, **event),  # type: ignore[arg-type]
        dataclasses.replace(HEALTHY, **knowledge),  # type: ignore[arg-type]
    )
    assert finding.confidence is confidence
    assert any(reason in text for text in finding.reasons), finding.reasons


def test_one_blind_hook_alone_does_not_forge_a_double_free() -> None:
    """A missed allocation is repaired at the next eviction: both must be missed."""
    blind = dataclasses.replace(HEALTHY, attached=frozenset(ALL) - {"alloc"})
    assert judged(knowledge=blind).confidence is Confidence.CONFIRMED


def test_an_eviction_that_nothing_but_silence_shows_may_be_forged() -> None:
    """Where the object does not say that it was evicted: a free and an allocation were missed."""
    event = dataclasses.replace(EVENT, verdict=Verdict.DOUBLE_EVICT)
    blind = dataclasses.replace(HEALTHY, lost=lambda role, since: 1)
    assert judged(event, blind).confidence is Confidence.CONFIRMED
    event = dataclasses.replace(event, flags=event.flags & ~Flag.WITNESS_CLEAR)
    assert any("rcu_free were skipped" in text for text in judged(event, blind).reasons)


def test_no_verdict_passes_without_a_judgement() -> None:
    """Each number that the probes know becomes a finding of that verdict."""
    for kind in Verdict:
        assert judged(dataclasses.replace(EVENT, verdict=kind)).verdict is kind


def test_context_is_no_alarm() -> None:
    """concurrent_unlink is a notice, a reclaim candidate a warning and never confirmed."""
    unlink = judged(dataclasses.replace(EVENT, verdict=Verdict.CONCURRENT_UNLINK))
    assert unlink.severity is Severity.NOTICE
    reclaim = judged(dataclasses.replace(EVENT, verdict=Verdict.FREED_IN_RECLAIM))
    assert (reclaim.severity, reclaim.confidence) == (Severity.WARNING, Confidence.PROBABLE)


def test_repetitions_are_counted_not_written() -> None:
    """Once, then a count that the next one carries; other findings are not held up."""
    folder = Folder(fold_seconds=60, per_minute=100)
    assert folder.admit(judged(), 0.0) == (True, 0)
    assert folder.admit(judged(), 1.0) == (False, 0)
    assert folder.admit(judged(dataclasses.replace(EVENT, ino=43)), 1.0) == (True, 0)
    assert folder.admit(judged(), 61.0) == (True, 1)


def test_only_what_may_still_be_told_is_remembered() -> None:
    """A daemon that runs for weeks keeps a finding as long as it may be repeated, or a count of
    repetitions that nobody has been told yet.
    """
    folder = Folder(fold_seconds=60, per_minute=1000)
    for ino in range(100):
        assert folder.admit(judged(dataclasses.replace(EVENT, ino=ino)), 0.0) == (True, 0)
    last = judged(dataclasses.replace(EVENT, ino=99))
    assert folder.admit(last, 1.0) == (False, 0)
    assert folder.admit(judged(dataclasses.replace(EVENT, ino=100)), 61.0) == (True, 0)
    assert len(folder._open) == 2
    assert folder.admit(last, 300.0) == (True, 1)


def test_a_flood_is_limited_and_counted() -> None:
    """So many a minute; the rest is a number."""
    folder = Folder(fold_seconds=0, per_minute=3)
    written = [
        folder.admit(judged(dataclasses.replace(EVENT, ino=n)), n / 10)[0] for n in range(10)
    ]
    assert written == [True] * 3 + [False] * 7
    assert folder.limited == 7
    assert folder.admit(judged(), 61.0)[0]


def test_neither_context_nor_the_self_test_takes_a_crimes_place() -> None:
    """Anybody may cause context; a crime beside it is written, and only then acted on."""
    folder = Folder(fold_seconds=0, per_minute=1)
    context = judged(dataclasses.replace(EVENT, verdict=Verdict.FREED_IN_RECLAIM))
    played = dataclasses.replace(judged(), test=True)
    findings = (context, context, played, played, judged(), judged())
    assert [folder.admit(finding, 0.0)[0] for finding in findings] == [True, False] * 3
    assert folder.limited == 3


def test_losses_are_asked_by_window() -> None:
    """What was lost before the window does not count; older than the history counts all."""
    history = LossHistory(capacity=3)
    history.record(10, {"evict": 1})
    history.record(20, {"evict": 5})
    assert history.lost("evict", 10) == 4
    assert history.lost("evict", 25) == 0
    assert history.lost("evict", 5) == 5
    history.record(30, {"evict": 5})
    history.record(40, {"evict": 9})
    assert history.lost("evict", 20) == 4
    assert history.lost("other", 0) == 0


def test_the_recorder_keeps_the_last_lines() -> None:
    """Oldest first, nothing from outside the window, nothing from the future."""
    recorder = Recorder(capacity=2)
    for ns, line in ((1, "gone"), (10_000_000_000, "old"), (39_000_000_000, "near")):
        recorder.note(ns, line)
    assert [m.text for m in recorder.before(40_000_000_000)] == ["old", "near"]
    assert [m.text for m in recorder.before(20_000_000_000)] == ["old"]


def test_the_recorder_knows_an_objects_last_finding() -> None:
    """By address and only for minutes; bounded."""
    recorder = Recorder(capacity=2)
    finding = judged()
    recorder.found(finding)
    address, ns = finding.identity.object_address, finding.ns
    assert recorder.earlier(address, ns + 1) == (finding.id, finding.responsible)
    assert recorder.earlier(address, ns) is None  # not itself
    assert recorder.earlier(address, ns + 301_000_000_000) is None
    for other in (1, 2):
        recorder.found(judged(dataclasses.replace(EVENT, object=other)))
    assert recorder.earlier(address, ns + 1) is None


def test_a_victim_of_a_softirq_is_named_nowhere_but_as_a_bystander() -> None:
    """Neither in the summary nor as responsible, also where a module of its own was interrupted."""
    names = {1: "kmem_cache_free+0x0", 2: "rcu_do_batch+0x10", 3: "innocent+0x4 [evil]"}
    knowledge = dataclasses.replace(HEALTHY, symbol=lambda address: names.get(address, ""))
    finding = judged(dataclasses.replace(EVENT, call_site=2, stack=(1, 3)), knowledge)
    assert finding.second is not None and finding.second.context == "softirq"
    assert "browser" not in finding.summary and "in a softirq on cpu 1" in finding.summary
    assert finding.responsible.strength is Strength.UNKNOWN
    assert not any("browser" in reason for reason in finding.responsible.because)


def test_where_frames_have_no_names_nobody_is_said_to_have_done_it() -> None:
    """kernel.kptr_restrict hides which free ran in a softirq, and whose caller is the kernel's."""
    hidden = dataclasses.replace(HEALTHY, symbol=lambda address: "")
    for stack in ((1, 2, 3), ()):
        finding = judged(dataclasses.replace(EVENT, call_site=0, stack=stack), hidden)
        assert finding.second is not None and finding.second.context == "unknown"
        assert finding.responsible.strength is Strength.UNKNOWN
        told = (finding.summary, kmsg.line(finding).replace("while browser[13] was running", ""))
        assert not any("browser" in text for text in (*told, *finding.responsible.because))
    foreign = dataclasses.replace(EVENT, verdict=Verdict.FOREIGN_FREE)
    assert judged(foreign).confidence is Confidence.CONFIRMED
    finding = judged(foreign, hidden)
    assert finding.confidence is Confidence.PROBABLE
    assert "the caller has no name: it may be the kernel's own" in finding.reasons
    # A task that evicts, destroys or unlinks does it itself, whatever it is called.
    evicting = judged(dataclasses.replace(EVENT, hook=Hook.EVICT), hidden)
    assert evicting.second is not None and evicting.second.context == "task"


def test_what_the_report_lacks_is_said() -> None:
    """No name, no whole stack, no destroy hook, hidden addresses: each is a line."""
    blind = dataclasses.replace(
        HEALTHY, attached=frozenset(ALL) - {"destroy"}, lacks=("addresses are hidden",)
    )
    nameless = judged(dataclasses.replace(EVENT, name="")).lacks
    assert any("evidence.names is false" in lack for lack in nameless)
    other = dataclasses.replace(RM, pid=0)
    finding = judged(
        dataclasses.replace(EVENT, name="", stack=(), call_site=0, unlinked=other), blind
    )
    for part in ("no name", "first_stacks", "hook destroy", "hidden", "stack of this step"):
        assert any(part in lack for lack in finding.lacks), part


@pytest.mark.parametrize(
    ("flags", "parents", "name", "path"),
    [
        (Flag.PARENTS_VALID | Flag.PARENTS_WHOLE, ("b", "a"), "victim", "/mnt/a/b/victim"),
        (Flag.PARENTS_VALID | Flag.PARENTS_WHOLE, (), "victim", "/mnt/victim"),
        (Flag.PARENTS_VALID, ("b", "a"), "victim", ".../a/b/victim"),
        (Flag(0), (), "victim", ".../victim"),
        (Flag(0), (), "x" * 63, ".../" + "x" * 63 + "..."),
        (Flag(0), (), "", ""),
    ],
)
def test_a_path_is_as_whole_as_it_is_known(
    flags: Flag, parents: tuple[str, ...], name: str, path: str
) -> None:
    """From the mount point down, or with dots for what is not known."""
    knowledge = dataclasses.replace(HEALTHY, place=lambda major, minor: ("sda", "/mnt"))
    event = dataclasses.replace(EVENT, flags=EVENT.flags | flags, parents=parents, name=name)
    assert judged(event, knowledge).path == path


def test_only_who_did_it_himself_is_asked_for_in_proc() -> None:
    """Not the bystander of a softirq; and each step's process at the time of that step."""
    asked = []
    knowledge = dataclasses.replace(
        HEALTHY, process=lambda tgid, ns: asked.append((tgid, ns)), symbol=lambda a: "rcu_core+0x1"
    )
    judged(EVENT, knowledge)
    assert asked == [(RM.tgid, RM.ns)] * 2  # evicted and unlinked


def test_the_timeline_is_in_the_order_of_time() -> None:
    """Unlinked, evicted, freed, freed again."""
    texts = [moment.text for moment in judged().timeline]
    assert ["ext4_unlink" in texts[0], "evicted" in texts[1]] == [True, True]
    assert texts[-1].startswith("freed a second time")


def test_a_tick_that_is_ahead_changes_no_order() -> None:
    """The freeing CPU's tick after the verdict's exact time, the evicting CPU's before the
    unlink's: the order is still the only one possible, and no step is shown in the future.
    """
    life = EVENT.life
    assert life is not None
    ahead = dataclasses.replace(
        life,
        evicted=dataclasses.replace(life.evicted, ns=EVENT.ns - 4_000_000),
        freed=dataclasses.replace(life.freed, ns=EVENT.ns + 4_000_000),
    )
    unlinked = dataclasses.replace(EVENT.unlinked, ns=EVENT.ns - 1)
    timeline = judged(dataclasses.replace(EVENT, life=ahead, unlinked=unlinked)).timeline
    assert [moment.text.split(" on ")[0] for moment in timeline] == [
        "ext4_unlink of this inode",
        f"evicted with {life.nlink} links",
        "freed",
        "freed a second time",
    ]
    assert max(moment.ns for moment in timeline) == EVENT.ns


def test_an_unlink_after_the_life_comes_after_it() -> None:
    """The next inode at this address was deleted: ticks apart, by the clock."""
    unlinked = dataclasses.replace(EVENT.unlinked, ns=EVENT.ns)
    life = EVENT.life
    assert life is not None
    long_ago = dataclasses.replace(
        life,
        evicted=dataclasses.replace(life.evicted, ns=EVENT.ns - 90_000_000),
        freed=dataclasses.replace(life.freed, ns=EVENT.ns - 80_000_000),
    )
    event = dataclasses.replace(EVENT, life=long_ago, unlinked=unlinked)
    words = [moment.text.split(" ")[0] for moment in judged(event).timeline]
    assert words == ["evicted", "freed", "ext4_unlink", "freed"]


def canary_step(hook: Hook, ns: int = 5, ino: int = 9, leaving: bool = False) -> StepEvent:
    """A step of the canary's file."""
    return StepEvent(ns, hook, leaving, 0xAB, ino, 1, 8 << 20, RM)


def running(roles: set[str]) -> tuple[Canary, Run]:
    """A canary whose file was created and deleted at 1 ns."""
    canary = Canary(frozenset(roles), shared_free=True)
    run = Run("/nonexistent", (8, 0), 1, lives=[Life(1, (8, 0), 9)], shared_free=True)
    canary._pending.append(run)
    return canary, run


def test_a_whole_life_proves_the_hooks() -> None:
    """In order, with the hook of any_free standing in for the RCU callback."""
    canary, run = running({"alloc", "unlink", "evict", "rcu_free", "any_free"})
    for hook in (Hook.ALLOC, Hook.UNLINK, Hook.EVICT, Hook.ANY_FREE):
        canary.feed(canary_step(hook))
    assert canary.finished(10, 1000) == [run]
    assert run.missing(frozenset({"alloc", "rcu_free", "any_free"})) == ()
    assert run.in_order


def test_a_silent_hook_is_named_when_time_is_up() -> None:
    """Nothing before, the role after."""
    canary, run = running({"alloc", "evict"})
    canary.feed(canary_step(Hook.ALLOC))
    canary.feed(canary_step(Hook.EVICT, ino=10))  # somebody else's inode
    assert canary.finished(10, 1000) == []
    assert canary.finished(5000, 1000) == [run]
    assert "evict" in run.missing(frozenset({"evict"}))


def test_one_missed_free_is_no_silence() -> None:
    """Another file follows; what any of them proves is proven."""
    canary, run = running({"evict", "any_free"})
    canary.feed(canary_step(Hook.EVICT))
    run.lives.append(Life(2, (8, 0), 10))
    canary.feed(canary_step(Hook.EVICT, ino=10))
    canary.feed(canary_step(Hook.ANY_FREE, ino=10))
    assert canary.finished(10, 1000) == [run]
    assert run.missing(frozenset({"evict", "any_free"})) == ()


def test_the_wrong_order_is_seen() -> None:
    """A free before its eviction is not a life."""
    canary, run = running({"evict", "any_free"})
    canary.feed(canary_step(Hook.ANY_FREE))
    canary.feed(canary_step(Hook.EVICT))
    assert not run.in_order


def test_no_step_is_said_to_lie_in_the_future() -> None:
    """A tick of one CPU may be ahead of the exact time of a verdict on another."""
    assert [ago(ns) for ns in (-32_000, 850_000, 20_000_000)] == ["less than 10 ms"] * 2 + ["20 ms"]


def test_a_task_that_calls_the_callback_itself_is_no_bystander() -> None:
    """A synchronous second free by a system call: the stack tells, not the hook."""
    names = {1: "ext4_free_in_core_inode+0x0", 2: "evil_write+0x10 [evil]", 3: "vfs_write+0x4"}
    knowledge = dataclasses.replace(HEALTHY, symbol=lambda address: names.get(address, ""))
    event = dataclasses.replace(EVENT, hook=Hook.RCU_FREE, call_site=2, stack=(1, 2, 3))
    finding = judged(event, knowledge)
    assert finding.second is not None and finding.second.context == "task"
    assert "by browser (pid 13" in finding.summary


def test_a_caller_that_a_tracer_hides_confirms_nothing() -> None:
    """The return address is the tracer's; the stack may be another's word for it."""
    knowledge = dataclasses.replace(HEALTHY, symbol=lambda address: "return_to_handler+0x0")
    finding = judged(dataclasses.replace(EVENT, verdict=Verdict.FOREIGN_FREE), knowledge)
    assert finding.confidence is Confidence.PROBABLE
