"""The ladder: what may be wished for, which symbol stands for a name, how refusals are worded."""

from __future__ import annotations

from pathlib import Path

import pytest

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.kernel.choice import Chooser
from ebpfwatch.kernel.ladder import LADDER, Attachment, Rung, wishes
from ebpfwatch.kernel.prober import Prober
from ebpfwatch.kernel.running import find_symbols

KALLSYMS = """\
ffff000008100000 t ext4_evict_inode.cold
ffff000008200000 t ext4_destroy_inode.isra.0
ffff000008300000 t shrink_slab.part.1
ffff000008400000 t shrink_slab
ffff000008500000 d inode_init_always
"""


class Kernel(Prober):
    """A kernel that grants the rungs named here."""

    def __init__(self, *granted: str) -> None:
        super().__init__(0, {}, None)
        self._granted = granted

    def why_not(self, rung: Rung) -> str:
        """As the real one answers."""
        return "" if rung.name in self._granted else f"no {rung.kind}"


def test_symbols_with_a_suffix(tmp_path: Path) -> None:
    """The plain name first, else a clone; never the cold part, never data."""
    (tmp_path / "kallsyms").write_text(KALLSYMS)
    wanted = {"ext4_evict_inode", "ext4_destroy_inode", "shrink_slab", "inode_init_always"}
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
    choice = Chooser(kernel, None, "").choose("destroy", LADDER["destroy"])
    assert choice.name == "kprobe destroy_inode"
    assert (
        choice.reason
        == "fentry ext4_destroy_inode: no fentry; kprobe ext4_destroy_inode: no kprobe"
    )
    alloc = Chooser(kernel, None, "").choose("alloc", LADDER["alloc"])
    assert alloc.rung is None
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
    assert "not wished" in wished.reason
    nothing = Chooser(kernel, None, "evict=none").choose("evict", LADDER["evict"])
    assert nothing.rung is None
    with pytest.raises(EbpfwatchError, match="hooks.rungs wishes alloc=fentry") as raised:
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
