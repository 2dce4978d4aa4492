"""What is attached only for a reason: which hooks, for how long, and what is said meanwhile."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ebpfwatch import config
from ebpfwatch.advice import Level
from ebpfwatch.advice import hooks as advice
from ebpfwatch.catalogue.ladder import Attachment
from ebpfwatch.daemon.arming import Arming
from ebpfwatch.daemon.governor import Governor
from ebpfwatch.daemon.precursors import Precursors
from ebpfwatch.daemon.this_boot import ThisBoot
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.kernel.dry_run import DryRun, Program
from ebpfwatch.kernel.hook import LoadedHook
from ebpfwatch.kernel.protocol import Examined, Features, Place
from ebpfwatch.kernel.state import KernelState
from ebpfwatch.kernellog.known import KNOWN, Relation
from ebpfwatch.loader.choice import configure
from ebpfwatch.paths import Paths
from ebpfwatch.sinks import summary
from ebpfwatch.sinks.status import Armed, Proofs, Status
from ebpfwatch.verdicts.recorder import Recorder

RAW = LoadedHook("any_free", "raw_tracepoint", "kmem_cache_free", ("kmem_cache_free",))
TRAP = LoadedHook("any_free", "kprobe", "kmem_cache_free", ("kmem_cache_free",), reason="no BTF")
RCU = LoadedHook("rcu_free", "kprobe", "ext4_i_callback", ("ext4_free_in_core_inode",))
PUT = LoadedHook("put", "kprobe", "iput", ("iput",))
UNSEEN = "frees by foreign code are not seen"


def configured(*hooks: LoadedHook, **changes: Any) -> dict[str, LoadedHook]:
    """The hooks as the configuration wants them, by role."""
    settings = config.Config(
        hooks=config.HooksConfig(any_free=changes.get("any_free", "auto")),
        contracts=config.ContractsConfig(armed=changes.get("armed", "auto")),
    )
    return {hook.role: hook for hook in configure(hooks, config.loader_request(settings))}


@pytest.mark.parametrize(
    ("any_free", "hook", "armed", "has_rung"),
    [
        ("auto", RAW, False, True),
        ("auto", TRAP, True, True),
        ("always", TRAP, False, True),
        ("armed", RAW, True, True),
        ("never", RAW, False, False),
        ("never", TRAP, False, False),
    ],
)
def test_a_trap_at_every_slab_free_waits_for_a_reason(
    any_free: str, hook: LoadedHook, armed: bool, has_rung: bool
) -> None:
    """A raw tracepoint does not; each is what the configuration says."""
    found = configured(RCU, hook, any_free=any_free)["any_free"]
    assert (found.armed, found.has_rung) == (armed, has_rung)
    assert (UNSEEN in found.why) == armed
    if armed:
        assert hook.reason in found.why and "hooks.any_free" in found.why


@pytest.mark.parametrize("any_free", ["auto", "armed", "never"])
def test_the_only_hook_that_sees_a_free_never_waits(any_free: str) -> None:
    """Where the RCU callback has no hook of its own."""
    found = configured(LoadedHook("rcu_free", reason="none"), TRAP, any_free=any_free)
    assert found["rcu_free"].shared and not found["any_free"].armed and found["any_free"].has_rung
    assert ("no other hook sees a free here" in found["any_free"].why) == (any_free != "auto")


def test_the_contracts_hooks_wait_as_contracts_armed_says() -> None:
    """And a role without a rung waits for nothing."""
    for armed, waits in (("auto", True), ("always", False)):
        found = configured(RCU, RAW, PUT, LoadedHook("close"), armed=armed)
        assert (found["put"].armed, found["close"].armed) == (waits, False)
    assert not configured(RCU, RAW, PUT, armed="never")["put"].has_rung


@pytest.mark.parametrize(
    ("said", "meant"), [("true", "always"), ("false", "never"), ("armed", "armed")]
)
def test_a_file_from_before_is_read_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], said: str, meant: str
) -> None:
    """hooks.any_free was a switch: an upgrade changes nothing in silence."""
    file = tmp_path / "config.yaml"
    file.write_text(f"hooks:\n  any_free: {said}\n")
    assert config.load(file).hooks.any_free == meant
    told = f"{file}:2: hooks.any_free: {said} is read as {meant}"
    assert (told in capsys.readouterr().err) == (said != meant)


def test_check_says_what_is_not_seen() -> None:
    """One line of the role, with what would keep it on."""
    features = Features(
        ringbuf=False, cmpxchg=False, probe_read_kernel=False, direct_read=False, btf=False
    )
    hooks = tuple(configured(RCU, TRAP).values())
    programs = tuple(Program(hook.role, hook.functions[0], "") for hook in hooks)
    lines = advice.advise(Examined(hooks, features, DryRun(programs)))
    line = next(line for line in lines if line.item == "any_free")
    assert line.level is Level.WARN
    assert UNSEEN in line.why and "hooks.any_free: always" in line.why


class Links:
    """The links of a session, as far as arming asks them."""

    def __init__(self, kind: str = "fentry", refuses: str = "") -> None:
        self.places = tuple(
            Place(role, kind, role, Attachment(role, role))
            for role in ("evict", "any_free", "put", "close")
        )
        self.on = {"evict"}
        self._refuses = refuses

    def attach(self, role: str) -> None:
        if role == self._refuses:
            raise EbpfwatchError("no", "", Exit.OSERR)
        self.on.add(role)

    def detach(self, role: str) -> None:
        self.on.discard(role)


class Liveness:
    """What liveness is told of roles."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def on(self, role: str) -> None:
        self.told.append(("on", role))

    def off(self, role: str) -> None:
        self.told.append(("off", role))


class Bed:
    """An ``Arming`` over these links, and what the programs were told and when."""

    def __init__(self, links: Links, minutes: float = 30) -> None:
        self.links = links
        self.liveness = Liveness()
        self.told: list[tuple[int, bool]] = []
        self.session = SimpleNamespace(
            links=links,
            loaded=SimpleNamespace(
                hooks=[
                    LoadedHook(place.role, place.kind, "f", armed=place.role != "evict")
                    for place in links.places
                ]
            ),
            since={"any_free": 0},
        )
        session: Any = self.session
        liveness: Any = self.liveness
        self.arming = Arming(session, minutes, liveness, self.configure)

    def configure(self) -> None:
        self.told.append((self.session.since["any_free"], "any_free" in self.links.on))


ALL = ("any_free", "put", "close")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds."""
    now = [0.0]
    monkeypatch.setattr("ebpfwatch.daemon.arming.time.monotonic", lambda: now[0])
    return now


def test_armed_hooks_come_for_a_reason_and_go_when_their_time_is_up(clock: list[float]) -> None:
    """A second reason makes it longer; nothing else is touched."""
    bed = Bed(Links())
    links, arming = bed.links, bed.arming
    assert arming.roles == ALL and not arming.on
    assert bed.liveness.told == [("off", role) for role in ALL]
    arming.arm("of a test")
    assert links.on == {"evict", *ALL} and arming.on == ALL
    clock[0] = 1000.0
    arming.arm("of another")
    assert (arming.state().roles, arming.state().why) == (ALL, "of another")
    clock[0] = 1801.0
    arming.look()
    assert arming.on == ALL
    clock[0] = 2801.0
    arming.look()
    assert links.on == {"evict"} and arming.state() == Armed()


def test_what_costs_too_much_is_disarmed_and_rests(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernel may repeat its message every second; the refusal is said once."""
    arming = Bed(Links()).arming
    arming.arm("of a test")
    arming.look(over_budget=True)
    assert not arming.on and f"costs too much; {UNSEEN}" in capsys.readouterr().err
    for seconds in (5.0, 1795.0):
        clock[0] = seconds
        arming.look()
        arming.arm("of another")
        assert not arming.on
    assert capsys.readouterr().err.count("not armed, though there is a reason") == 1
    clock[0] = 1801.0
    arming.arm("of a third")
    assert arming.on == ALL


def test_what_cannot_be_armed_is_said_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """And with no minutes nothing is, and no capability is kept for it."""
    arming = Bed(Links(refuses="put")).arming
    arming.arm("of a test")
    assert arming.on == ("any_free", "close")
    never = Bed(Links("kprobe"), 0).arming
    never.arm("of a test")
    assert not never.on and never.needs == ()
    restricted = "ebpfwatch.kernel.attach.perf_is_restricted"
    monkeypatch.setattr(restricted, lambda: False)
    assert Bed(Links("kprobe")).arming.needs == ("perfmon",)
    monkeypatch.setattr(restricted, lambda: True)  # Debian 11 and 12
    assert Bed(Links("kprobe")).arming.needs == ("perfmon", "sys_admin")
    assert Bed(Links()).arming.needs == ()


def test_each_verdict_says_what_was_not_seen() -> None:
    """Before it is armed, while it is, since when, and afterwards again."""
    arming = Bed(Links()).arming
    (waits,) = arming.doubts
    assert waits == f"the hook any_free waits for a reason to be attached: {UNSEEN}"
    arming.arm("of a test")
    (since,) = arming.doubts
    assert since.startswith(f"the hook any_free has been attached since {time.gmtime().tm_year}-")
    assert since.endswith(f" UTC only: before, {UNSEEN}")
    arming.look(over_budget=True)
    assert arming.doubts == (waits,)


def test_the_programs_know_since_when_it_sees() -> None:
    """What was due to be freed before that has come and gone: it excuses nobody."""
    bed = Bed(Links())
    began = time.monotonic_ns()
    bed.arming.arm("of a test")
    ((since, attached),) = bed.told
    assert began <= since <= time.monotonic_ns() and attached


def test_what_is_armed_goes_before_any_step_of_the_governor() -> None:
    """Two ticks over the budget; only if that was not it, the first step."""
    governor = Governor(10, 2)
    assert governor.feed(50, armed=True) == 0 and not governor.disarm
    assert governor.feed(50, armed=True) == 0 and governor.disarm
    assert governor.feed(50) == 0 and not governor.disarm
    assert governor.feed(50) == 1 and not governor.disarm


def test_damage_from_before_the_start_is_a_reason(tmp_path: Path) -> None:
    """Whoever starts the watcher because of a message wants to see all there is."""
    dev = Paths(dev=tmp_path)
    damage = next(known.kind for known in KNOWN if known.relation is Relation.DAMAGE)
    other = next(known.kind for known in KNOWN if known.relation is Relation.OTHER)
    for before, reason in (
        ({other: 1}, ""),
        ({damage: 2}, f"this boot's kernel log holds: {damage}"),
    ):
        found = Precursors(dev, Recorder(), ThisBoot(tmp_path, "boot"))
        found.watcher.before.update(before)
        found.look_back()
        assert found.take_reason() == reason
        assert found.take_reason() == ""


def test_what_waits_is_not_called_unproven() -> None:
    """Neither on the page nor in the metrics: an alert would come of it."""
    hooks = (LoadedHook("evict", "kprobe", "f"), LoadedHook("any_free", "kprobe", "f", armed=True))
    status = Status(
        0.0, ready=True, kernel=KernelState(hooks=hooks), proofs=Proofs({"evict": True})
    )
    assert [summary.hook_state(status, hook) for hook in hooks] == ["alive", "on demand"]
    assert "1 of 1 hooks in use" in summary.headline(status).why
