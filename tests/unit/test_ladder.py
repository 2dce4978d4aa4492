"""The ladder: what may be wished for, which symbol stands for a name, how refusals are worded."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpfwatch.catalogue.ladder import LADDER, Attachment, Rung, wishes
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.kernel.dry_run import Program
from ebpfwatch.kernel.hook import LoadedHook
from ebpfwatch.loader import choice
from ebpfwatch.loader.btf import Btf
from ebpfwatch.loader.choice import Chooser
from ebpfwatch.loader.places import rung_of
from ebpfwatch.loader.prober import Prober
from ebpfwatch.loader.refusal import last_words
from ebpfwatch.loader.running import find_symbols, lockdown
from ebpfwatch.loader.verify import step_down

KALLSYMS = """\
ffff000008100000 t ext4_evict_inode.cold
ffff000008200000 t ext4_destroy_inode.isra.0
ffff000008300000 t shrink_slab.part.1
ffff000008400000 t shrink_slab
ffff000008500000 d inode_init_always
ffff000008600000 t destroy_inode.isra.0
ffff000008700000 t ext4_i_callback.part.0
"""


class Kernel(Prober):
    """A kernel that grants the rungs named here."""

    def __init__(self, *granted: str) -> None:
        super().__init__(0, {}, None)
        self._granted = granted

    def why_not(self, rung: Rung) -> str:
        """As the real one answers."""
        return "" if rung.name in self._granted else f"no {rung.kind}"


def test_what_is_not_wished_still_teaches() -> None:
    """any_free=none is a wish for no hook; ext4's cache has to be found all the same."""
    any_free = "kprobe kmem_cache_free"
    chooser = Chooser(Kernel(any_free), None, "any_free=none")
    hook = chooser.choose("any_free", LADDER["any_free"])
    assert not hook.has_rung
    learning_rung = chooser.learning_rung(hook, LADDER["any_free"])
    assert learning_rung is not None and learning_rung.name == any_free
    unable = Chooser(Kernel(), None, "")
    hook = unable.choose("any_free", LADDER["any_free"])
    assert unable.learning_rung(hook, LADDER["any_free"]) is None


def test_a_rung_says_its_price() -> None:
    """What it costs is no reason against a better one."""
    chooser = Chooser(Kernel("raw_tracepoint kmem_cache_free"), None, "")
    chooser._why_no_cache = lambda rung: ""  # type: ignore[method-assign]
    assert chooser.choose("any_free", LADDER["any_free"]).why == "it runs on every slab free"


def test_symbols_with_a_suffix(tmp_path: Path) -> None:
    """The plain name first, else a clone that has its arguments; never a piece, never data."""
    (tmp_path / "kallsyms").write_text(KALLSYMS)
    wanted = {"ext4_evict_inode", "ext4_destroy_inode", "shrink_slab", "inode_init_always"}
    wanted |= {"destroy_inode", "ext4_i_callback"}
    assert find_symbols(wanted, tmp_path / "kallsyms") == {
        "ext4_destroy_inode": "ext4_destroy_inode.isra.0",
        "shrink_slab": "shrink_slab",
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("aloc=kprobe", "names no role in 'aloc=kprobe': alloc, unlink"),
        ("alloc", "names no rung in 'alloc'"),
        ("alloc=uprobe", "names no rung in 'alloc=uprobe': fentry:inode_init_always_gfp"),
        ("destroy=kprobe:destroy", "names no rung in 'destroy=kprobe:destroy'"),
    ],
)
def test_a_wish_for_nothing(text: str, complaint: str) -> None:
    """What does not exist on any kernel is a mistake of the configuration."""
    with pytest.raises(ValueError, match=complaint):
        wishes(text)


def test_the_best_rung_that_holds() -> None:
    """Neighbours of one kind that fail alike share one clause."""
    kernel = Kernel("raw_tracepoint kmem_cache_alloc", "kprobe destroy_inode")
    hook = Chooser(kernel, None, "").choose("destroy", LADDER["destroy"])
    assert hook.name == "kprobe destroy_inode"
    assert (
        hook.why == "fentry ext4_destroy_inode: no fentry; kprobe ext4_destroy_inode: no kprobe;"
        " it runs for every filesystem, and not for who calls ext4's own function"
    )
    alloc = Chooser(kernel, None, "").choose("alloc", LADDER["alloc"])
    assert not alloc.has_rung
    assert alloc.reason == (
        "fentry inode_init_always_gfp, inode_init_always: no fentry;"
        " kprobe inode_init_always_gfp, inode_init_always: no kprobe;"
        " raw_tracepoint kmem_cache_alloc: without BTF nobody knows the arguments of this"
        " tracepoint"
    )


def test_a_wish_is_granted_or_refused() -> None:
    """No silent step down: a wished rung that does not hold ends the start with exit 69."""
    kernel = Kernel("raw_tracepoint ext4_evict_inode", "kprobe ext4_evict_inode")
    wished = Chooser(kernel, None, "evict=kprobe").choose("evict", LADDER["evict"])
    assert wished.name == "kprobe ext4_evict_inode"
    assert "asks for another way" in wished.reason
    nothing = Chooser(kernel, None, "evict=none").choose("evict", LADDER["evict"])
    assert not nothing.has_rung
    with pytest.raises(EbpfwatchError, match="hooks.rungs asks for alloc=fentry") as raised:
        Chooser(kernel, None, "alloc=fentry").choose("alloc", LADDER["alloc"])
    assert raised.value.exit_code is Exit.UNAVAILABLE
    assert "kprobe" not in raised.value.message


def test_every_rung_has_its_code() -> None:
    """Each define of the ladder selects code in probes/."""
    probes = Path(__file__).parents[2] / "probes"
    text = "".join(file.read_text() for file in probes.glob("*.[ch]"))
    for rungs in LADDER.values():
        for rung in rungs:
            for define in rung.defines:
                assert define in text, define
            for attachment in rung.attachments:
                assert isinstance(attachment, Attachment)
                assert f"int {attachment.function}(" in text


# -- when the verifier refuses a program

REFUSED = [
    # refused roles, hooks.rungs as it is, what holds, the advice
    (["unlink"], "", [], "unlink=none"),
    (["unlink", "reclaim"], "alloc=none", [], "alloc=none unlink=none reclaim=none"),
    (["evict"], "", ["kprobe ext4_evict_inode"], "evict=kprobe:ext4_evict_inode"),
    (["evict"], "evict=raw_tracepoint", ["kprobe ext4_evict_inode"], "evict=kprobe:ext4_evict"),
    (["evict"], "", [], ""),
    (["destroy"], "", ["kprobe ext4_destroy_inode"], "destroy=kprobe:ext4_destroy_inode"),
    (["destroy"], "", ["kprobe destroy_inode"], "destroy=none"),  # a rung with a price is no advice
    (["learner"], "", [], ""),
    (["unlink", "selftest"], "", [], ""),
]


@pytest.mark.parametrize(("roles", "rungs", "holds", "advice"), REFUSED)
def test_the_way_round_a_refused_program(
    roles: list[str], rungs: str, holds: list[str], advice: str
) -> None:
    """The next rung that holds, else none; no way round what nothing works without."""
    best = [rung.name for rows in LADDER.values() for rung in rows[:1]]
    kernel = Kernel(*best, *holds)
    chooser = Chooser(kernel, None, rungs)
    hooks = [
        LoadedHook(role, rows[0].kind, rows[0].attachments[0].target)
        for role, rows in LADDER.items()
    ]
    assert [rung_of(hook, LADDER) for hook in hooks] == [rows[0] for rows in LADDER.values()]
    refused = [Program(role, "f", "no") for role in roles]
    found = step_down(chooser, hooks, refused, rungs)
    assert found.startswith(advice) and bool(found) is bool(advice)
    assert wishes(found) is not None


#: As kernels wrote them; the first is what bcc puts around it.
LOGS = [
    (
        "bpf: Failed to load program: Permission denied\n0: R1=ctx() R10=fp0\n"
        "; return *(volatile int *)((char*)ctx+4096);} @ main.c:18\n"
        "0: (61) r0 = *(u32 *)(r1 +4096)\ninvalid bpf_context access off=4096 size=4\n"
        "processed 1 insns (limit 1000000) max_states_per_insn 0 total_states 0\n\n",
        "invalid bpf_context access off=4096 size=4",
    ),
    (
        "infinite loop detected at insn 2\ncur state: R1=scalar(smin=1) R10=fp0 fp-8=mmmm????\n"
        "old state: R1=scalar(smin=1) R10=fp0 fp-8=mmmm????\nprocessed 15 insns (limit 1000000)\n",
        "infinite loop detected at insn 2",
    ),
    (
        "0: (bf) r6 = r1\nR0=inv(id=0) R6=ctx(id=0,off=0,imm=0)\n5: (79) r1 = *(u64 *)(r0 +0)\n"
        "R0 invalid mem access 'map_value_or_null'\n\nHINT: The 'map_value_or_null' error can"
        " happen if you dereference a pointer value from a map lookup without first checking\n",
        "R0 invalid mem access 'map_value_or_null'",
    ),
    (
        "from 12 to 20: R0=0 R10=fp0\n20: (95) exit\nBPF program is too large. Processed 131073"
        " insn\nverification time 400 usec\nstack depth 320\n",
        "BPF program is too large. Processed 131073 insn",
    ),
    ("", ""),
    ("processed 1 insns (limit 1000000)\n", ""),
]


@pytest.mark.parametrize(("log", "reason"), LOGS)
def test_the_verifiers_last_words(log: str, reason: str) -> None:
    """The reason, not what stands around it."""
    assert last_words(log) == reason


@given(st.text())
def test_any_log_has_last_words_or_none(log: str) -> None:
    """One line of it, of bounded length."""
    found = last_words(log)
    assert found in log and len(found) <= 300 and len(found.splitlines()) <= 1


class Types(Btf):
    """A kernel whose tracepoint of the slab free carries these."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = list(arguments)

    def raw_tracepoint_arguments(self, name: str) -> list[str]:
        """As the real one answers."""
        return self._arguments


@pytest.mark.parametrize(
    ("arguments", "version", "size", "says"),
    [
        (("", "", "kmem_cache"), 0x60100, 0, ""),
        (("", "", "char"), 0x51300, 1096, ""),
        (("", "", "char"), 0x51300, 0, "size of ext4's inode objects"),
        (("", "", "char"), 0x50F00, 1096, "after the free"),
        (("", ""), 0x41300, 1096, "does not carry the cache"),
    ],
)
def test_the_name_of_a_cache_is_as_good_as_the_cache(
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    version: int,
    size: int,
    says: str,
) -> None:
    """Linux 5.16 to 6.0: the pointer to its name identifies it; no kprobe has to stand there."""
    monkeypatch.setattr(choice, "object_size", lambda: size)
    kernel = Kernel("raw_tracepoint kmem_cache_free")
    kernel.version = version
    chooser = Chooser(kernel, Types(*arguments), "")
    found = chooser.choose("any_free", LADDER["any_free"])
    assert found.has_rung is not bool(says) and says in found.reason
    if found.has_rung:
        flags = chooser.defines(LADDER["any_free"][0])
        assert "-DFREE_CACHE_ARG=2" in flags
        assert ("-DFREE_CACHE_BY_NAME" in flags) is ("char" in arguments)


def test_a_lockdown_is_read(tmp_path: Path) -> None:
    """securityfs marks the one that is on."""
    file = tmp_path / "lockdown"
    assert lockdown(file) == ""
    for text, on in (
        ("[none] integrity confidentiality", ""),
        ("none integrity [confidentiality]", "confidentiality"),
    ):
        file.write_text(text + "\n")
        assert lockdown(file) == on
