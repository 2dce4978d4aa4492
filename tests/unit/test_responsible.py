"""Who is named, and who never is: a table of cases, each as the kernels really showed it."""

from __future__ import annotations

import dataclasses

import pytest

from ebpfwatch.catalogue.layout import LifeFlag, State
from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.daemon.judging import Judging
from ebpfwatch.verdicts.finding import Actor, Confidence, Frame, Responsible, Strength
from ebpfwatch.verdicts.responsible import Clues, describe_taints, responsible
from ebpfwatch.verdicts.stacks import (
    behind_tracer,
    frame,
    in_softirq,
    is_own_caller,
    is_tracer,
    own_frames,
    resolve,
)
from tests.unit.test_verdicts import EVENT, LIFE

TAINTS = {"crime": "OE", "vfs_monitor": "OE", "cifs": "O", "overlay": "", "ext4": ""}


def actor(text: str, context: str = "task") -> Actor:
    """An actor with the frames "symbol [module]" between "<", innermost first."""
    frames = []
    for word in text.split(" < "):
        symbol, _, module = word.partition(" [")
        module = module.rstrip("]")
        frames.append(Frame(1, symbol, 16, module, TAINTS.get(module, "")) if symbol else Frame(1))
    return Actor(1, 0, 77, 77, "bystander", context, tuple(frames))


RCU = "rcu_do_batch < rcu_core < handle_softirqs < irq_exit_rcu < el1_interrupt"

#: verdict, the second's stack and context, the first's stack -> who, strength, part of the reason
CASES = {
    "a module calls the slab itself": (
        Verdict.DOUBLE_FREE,
        actor("kmem_cache_free < commit [crime] < process_one_work < worker_thread"),
        actor("rcu_do_batch", "softirq"),
        ("module crime (out-of-tree, unsigned)", Strength.SHOWN, "its own code made the second"),
    ),
    "a module's own RCU callback": (
        Verdict.DOUBLE_FREE,
        actor(f"ext4_free_in_core_inode < second_callback [crime] < {RCU}", "softirq"),
        actor("rcu_do_batch", "softirq"),
        ("module crime (out-of-tree, unsigned)", Strength.SHOWN, "second_callback+0x10 [crime]"),
    ),
    "a module that puts an inode once too often": (
        Verdict.DOUBLE_EVICT,
        actor("ext4_evict_inode [ext4] < evict < iput < work [vfs_monitor] < kthread"),
        None,
        ("module vfs_monitor (out-of-tree, unsigned)", Strength.SHOWN, "second eviction"),
    ),
    "a module that passes an unlink on": (
        Verdict.DOUBLE_EVICT,
        actor("ext4_evict_inode < evict < do_unlinkat < hook [vfs_monitor] < __arm64_sys_unlinkat"),
        None,
        ("module vfs_monitor (out-of-tree, unsigned)", Strength.SUSPECTED, "through do_unlinkat"),
    ),
    "an in-tree module is suspected only without an out-of-tree one": (
        Verdict.DOUBLE_EVICT,
        actor("ext4_evict_inode < evict < ovl_x [overlay] < hook [cifs] < sys"),
        None,
        ("module cifs (out-of-tree)", Strength.SUSPECTED, "may have passed on"),
    ),
    "a victim whose module was interrupted": (
        Verdict.DOUBLE_FREE,
        actor(f"kmem_cache_free < ext4_i_callback < {RCU} < write [cifs] < vfs_write", "softirq"),
        actor("rcu_do_batch", "softirq"),
        ("", Strength.UNKNOWN, "has nothing to do with it"),
    ),
    "a victim in an interrupt's tail on 4.19": (
        Verdict.FREE_WHILE_ALIVE,
        actor(
            "kmem_cache_free < ext4_i_callback < rcu_process_callbacks < clear [cifs]", "softirq"
        ),
        None,
        ("", Strength.UNKNOWN, "who queued it a second time is not known"),
    ),
    "the first free was the wrong one": (
        Verdict.DOUBLE_FREE,
        actor(f"ext4_free_in_core_inode < {RCU}", "softirq"),
        actor("commit [crime]", "unknown"),
        ("module crime (out-of-tree, unsigned)", Strength.SHOWN, "made the first free"),
    ),
    "ext4 as a module is no suspect": (
        Verdict.DOUBLE_DESTROY,
        actor("ext4_destroy_inode [ext4] < ext4_x [ext4] < destroy_inode < evict < kswapd"),
        None,
        ("", Strength.UNKNOWN, "the kernel's own code alone"),
    ),
    "no stack": (
        Verdict.FREE_WHILE_ALIVE,
        dataclasses.replace(actor("x"), stack=()),
        None,
        ("", Strength.UNKNOWN, "there is no stack"),
    ),
    "frames without a name accuse nobody": (
        Verdict.DOUBLE_FREE,
        dataclasses.replace(actor("x"), stack=(Frame(0xFFFF0000), Frame(0xFFFF0001))),
        None,
        ("", Strength.UNKNOWN, "the kernel's own code alone"),
    ),
    "other people's BPF programs are on many stacks": (
        Verdict.DOUBLE_EVICT,
        actor("ext4_evict_inode < bpf_prog_x [bpf] < evict < x [__builtin__kprobes] < iput"),
        None,
        ("", Strength.UNKNOWN, "no system call may do that"),
    ),
    "reclaim may": (
        Verdict.FREED_IN_RECLAIM,
        actor("ext4_evict_inode < evict < prune_icache_sb < x [cifs]"),
        None,
        ("", Strength.UNKNOWN, "nobody is accused"),
    ),
    "memory was overwritten": (
        Verdict.IDENTITY_CHANGED,
        actor("kmem_cache_free < x [cifs]"),
        None,
        ("", Strength.UNKNOWN, "left no trace"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_case(name: str) -> None:
    """Never more certain than the evidence."""
    verdict, second, first, (who, strength, part) = CASES[name]
    accused = responsible(verdict, Confidence.CONFIRMED, first, second, (), Clues())
    assert (accused.who, accused.strength) == (who, strength)
    assert any(part in reason for reason in accused.because), accused.because
    assert not any("bystander (pid" in reason for reason in accused.because) or (
        second.context == "task"
    )


def test_an_undecidable_verdict_shows_nothing() -> None:
    """Shown becomes suspected, and says why."""
    verdict, second, first, _ = CASES["a module calls the slab itself"]
    accused = responsible(verdict, Confidence.UNDECIDABLE, first, second, (), Clues())
    assert accused.strength is Strength.SUSPECTED
    assert any("undecidable" in reason for reason in accused.because)


def test_what_an_earlier_finding_named_is_remembered() -> None:
    """The double queueing had the culprit on its stack; the free that follows has nobody."""
    verdict, second, first, _ = CASES["a victim whose module was interrupted"]
    named = Responsible("module crime", Strength.SHOWN, ("its own code made it",))
    clues = Clues(earlier=("20260101T000000.000000Z-0001", named))
    accused = responsible(verdict, Confidence.CONFIRMED, first, second, (), clues)
    assert (accused.who, accused.strength) == ("module crime", Strength.SHOWN)
    assert "20260101T000000.000000Z-0001" in accused.because[0]
    nobody = Responsible("", Strength.UNKNOWN, ("?",))
    clues = Clues(earlier=("x", nobody))
    assert responsible(verdict, Confidence.CONFIRMED, first, second, (), clues).who == ""


def test_who_evicted_legally_is_a_suspect_at_most() -> None:
    """Its code was near; that step was its right."""
    verdict, second, first, _ = CASES["a victim whose module was interrupted"]
    evicted = actor("work [vfs_monitor]")
    accused = responsible(verdict, Confidence.CONFIRMED, first, second, (None, evicted), Clues())
    assert accused.strength is Strength.SUSPECTED
    assert "legal by itself" in accused.because[1]


def test_loaded_modules_are_no_evidence() -> None:
    """They are listed, and it is said what that is worth; a watched destroy hook tells more."""
    verdict, second, first, _ = CASES["a victim whose module was interrupted"]
    clues = Clues(destroy_watched=True, out_of_tree=("cifs", "dlp_fcore"))
    accused = responsible(verdict, Confidence.CONFIRMED, first, second, (), clues)
    assert accused.who == ""
    assert any("no evidence against them): cifs, dlp_fcore" in text for text in accused.because)
    assert any("was not seen to queue it a second time" in text for text in accused.because)


def test_names_become_frames() -> None:
    """With module and taints; what has no name keeps its address."""
    assert str(frame(1, "commit+0x2c [crime]", lambda module: "OE")) == "commit+0x2c [crime] (OE)"
    assert str(frame(1, "crime+0x2c [crime, unloaded]", lambda module: "")) == (
        "crime+0x2c [crime, unloaded]"
    )
    assert str(frame(0xC0DE, "", lambda module: "OE")) == "0xc0de"
    assert str(frame(1, "evict+0x0", lambda module: "?")) == "evict+0x0"
    assert describe_taints("POZ") == "proprietary, out-of-tree, taint Z"


def test_the_probes_own_frames_go_and_the_caller_comes() -> None:
    """A probe at a function's entry hides its caller from the unwinder."""
    names = {1: "bpf_prog_a+0x1", 2: "bpf_trace_run3+0x2", 3: "kmem_cache_free+0x0", 5: "evict+0x9"}

    def name(address: int) -> Frame:
        return frame(address, names.get(address, ""), lambda module: "")

    shown = resolve((1, 2, 3, 5), 0xBAD, name)
    assert [str(f) for f in shown] == ["kmem_cache_free+0x0", "0xbad", "evict+0x9"]
    assert [str(f) for f in resolve((3, 5), 5, name)] == ["kmem_cache_free+0x0", "evict+0x9"]
    assert [str(f) for f in resolve((), 5, name)] == ["evict+0x9"]
    assert resolve((), 0, name) == ()
    # In a dump the program and the trampoline have no name; one further out may have none either.
    shown = resolve((0xB1, 0xB2, 3, 0xBAD, 5), 0, name)
    assert [str(f) for f in shown] == ["kmem_cache_free+0x0", "0xbad", "evict+0x9"]
    assert [str(f) for f in resolve((0xB1, 0xB2), 0, name)] == ["0xb1", "0xb2"]


def test_an_interrupted_stack_is_cut() -> None:
    """What follows the entry is somebody else's."""
    stack = actor(f"kmem_cache_free < {RCU} < victim [cifs]").stack
    assert in_softirq(stack)
    assert [f.symbol for f in own_frames(stack)] == ["kmem_cache_free"]
    assert not in_softirq(own_frames(stack))


def test_a_strangers_function_of_an_own_name_is_a_strangers() -> None:
    """Its free must not be learned as one of ext4's, and be silent from then on."""
    own = ("i_callback", "rcu_do_batch.llvm.123", "ext4_i_callback.isra.0 [ext4]")
    strange = ("i_callback [crime]", "destroy_inode [crime]", "evil_free [crime]", "")
    callers = [actor(text).stack[0] for text in (*own, *strange)]
    assert [is_own_caller(caller) for caller in callers] == [True] * 3 + [False] * 4


def test_a_livepatched_ext4_is_ext4() -> None:
    """Its functions lie in a module of its own, which the kernel marks."""
    for taints, own in (("OK", True), ("O", False)):
        assert is_own_caller(Frame(1, "i_callback", 16, "fix_ext4", taints)) is own


@pytest.mark.parametrize(
    ("stack", "behind"),
    [
        ("kmem_cache_free < return_to_handler < rcu_do_batch", "rcu_do_batch"),
        ("kmem_cache_free < arch_rethook_trampoline < evil_free [crime]", "evil_free"),
        ("bpf_trampoline_6442 < i_callback", "i_callback"),
        ("kmem_cache_free < return_to_handler", None),
        ("kmem_cache_free <  < rcu_do_batch", None),
    ],
)
def test_who_is_behind_a_tracer_is_told_by_the_stack(stack: str, behind: str | None) -> None:
    """function_graph, a kretprobe or fexit on kmem_cache_free replace the address it returns to."""
    found = behind_tracer(actor(stack).stack)
    assert (found.symbol if found else None) == behind
    assert is_tracer(Frame(1, "bpf_trampoline_6442", 1)) and not is_tracer(Frame(1, "evict", 1))


class KnownSymbols:
    """Names by address."""

    def __init__(self, **names: int) -> None:
        self._names = {address: f"{name}+0x10" for name, address in names.items()}

    def name(self, address: int) -> str:
        """As kallsyms has it."""
        return self._names.get(address, "")

    def taints(self, module: str) -> str:
        """None is tainted."""
        return ""


@pytest.mark.parametrize(
    ("call_site", "stack", "flags", "withdrawn"),
    [
        (1, (), LifeFlag(0), True),  # RCU's own
        (2, (3, 2, 1), LifeFlag(0), True),  # function_graph, and RCU behind it
        (2, (3, 2), LifeFlag(0), True),  # function_graph, and nobody knows who is behind it
        (2, (3, 2, 4), LifeFlag(0), False),  # function_graph, and foreign code behind it
        (4, (3, 4), LifeFlag(0), False),
        (4, (3, 4), LifeFlag.CANARY, True),  # our own file: what frees it is ext4
    ],
)
def test_a_foreign_free_that_is_none_is_withdrawn(
    call_site: int, stack: tuple[int, ...], flags: LifeFlag, withdrawn: bool
) -> None:
    """And its place is told to the probes, so that it costs no record any more."""
    judging = Judging.__new__(Judging)
    names = {"rcu_do_batch": 1, "return_to_handler": 2, "kmem_cache_free": 3, "some_free": 4}
    told: list[tuple[int, ...]] = []
    vars(judging).update(
        _symbols=KnownSymbols(**names),
        _test_page=range(0),
        _call_sites=(),
        configure=lambda: told.append(judging._call_sites),
    )
    life = dataclasses.replace(LIFE, flags=flags, state=State.EVICTING)
    event = dataclasses.replace(
        EVENT, verdict=Verdict.FOREIGN_FREE, call_site=call_site, stack=stack, life=life
    )
    assert judging._is_own_caller(event) is withdrawn
    assert told == ([(call_site,)] if withdrawn else [])
