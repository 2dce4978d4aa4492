"""The program of `ebpfwatch balance` on this kernel: by uprobes, which every kernel here has, on a
process that calls functions of the same names.  On a module: tests/vm/scripts/accounts.sh.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpfwatch.balance.calls import Module, find
from ebpfwatch.balance.counts import Counts, judge
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.kernel.libbpf import library
from ebpfwatch.loader import balancing
from tests.live.harness import ROOT, command

UPROBES = Path("/sys/bus/event_source/devices/uprobe")
#: Where a uprobe has its own address and a kprobe the one behind the breakpoint (x86).
BEHIND = 1 if platform.machine() == "x86_64" else 0
ROUNDS = 500

pytestmark = pytest.mark.skipif(not UPROBES.exists(), reason="no uprobes (CONFIG_UPROBE_EVENTS)")


class Process:
    """The lender, waiting; its calls, and where they lie."""

    def __init__(self, directory: Path) -> None:
        source = ROOT / "tests/live"
        flags = ["-O2", "-Wall", "-fno-pic", "-fcf-protection=none"][: 4 if BEHIND else 3]
        self.binary = directory / "lender"
        for name in ("lender", "lent"):
            into = str(directory / f"{name}.o")
            subprocess.run(["gcc", *flags, "-c", str(source / f"{name}.c"), "-o", into], check=True)
        objects = [directory / "lender.o", directory / "lent.o"]
        subprocess.run(["gcc", "-no-pie", "-o", self.binary, *objects], check=True)
        module = find((directory / "lender.o").read_bytes())
        assert module is not None
        self.module = module
        inside, placed = symbols(objects[0]), symbols(self.binary)
        self.sections = {
            ".text": placed["pairs"] - inside["pairs"],
            ".text.startup": placed["main"] - inside["main"],
        }

    def addresses(self) -> list[balancing.Placed]:
        """Each call, one byte early where the program takes that off."""
        return [
            balancing.Placed(site, self.sections[site.section] + site.offset - BEHIND)
            for site in self.module.sites
        ]


def symbols(file: Path) -> dict[str, int]:
    """By nm."""
    done = subprocess.run(["nm", file], capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    return {words[2]: int(words[0], 16) for words in lines if len(words) == 3}


@pytest.fixture
def lender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    """With uprobes in the place of kprobes."""
    process = Process(tmp_path)

    def attach(program: int, address: int) -> int:
        offset = address + BEHIND - 0x400000  # where a program that is no PIE is mapped
        event = f"test_balance_{os.getpid()}_{address:x}".encode()
        fd = library().bpf_attach_uprobe(
            program, 0, event, str(process.binary).encode(), ctypes.c_uint64(offset), -1, 0
        )
        return int(fd) if fd >= 0 else -ctypes.get_errno()

    monkeypatch.setattr(balancing, "_insist", lambda: None)
    monkeypatch.setattr(balancing, "_attach", attach)
    monkeypatch.setattr(balancing.Watch, "_measure", lambda self: None)
    yield process


def watched(lender: Process, habit: str) -> Counts:
    """What was counted of one run."""
    with subprocess.Popen([lender.binary, habit, str(ROUNDS)], stdin=subprocess.PIPE) as running:
        watch = balancing.Watch(lender.module, lender.addresses())
        assert not watch.unwatched
        running.communicate(b"\n", timeout=60)
    assert running.returncode == 0
    assert watch.calls
    return watch.finish({})


def verdicts(counts: Counts) -> dict[str, tuple[str, int, int]]:
    """By kind: the verdict, taken, given back."""
    return {one.kind: (one.verdict, one.taken, one.given) for one in judge(counts)}


def test_what_pairs_adds_up(lender: Process) -> None:
    """To the last call, with results that are NULL and calls that are jumps."""
    counts = watched(lender, "pairs")
    grabbed = ROUNDS - ROUNDS // 10
    assert verdicts(counts) == {
        "inode": ("adds up", ROUNDS + grabbed, ROUNDS + grabbed),
        "dentry": ("adds up", ROUNDS, ROUNDS),
        "file": ("adds up", ROUNDS, ROUNDS),
    }
    nothing = {one.site.function: one.nothing for one in counts.sites if one.nothing}
    assert nothing == {"igrab": ROUNDS // 10}
    assert counts.held == ()


def test_what_is_wrong_names_its_place(lender: Process) -> None:
    """One iput() too many in 50 rounds, from one jump; files that stay open, from one call."""
    counts = watched(lender, "wrong")
    found = verdicts(counts)
    assert found["inode"][0] == "too many given back"
    assert found["inode"][2] - found["inode"][1] == ROUNDS // 50
    (wrong,) = (one for one in counts.sites if one.again)
    assert (wrong.site.function, wrong.calls, wrong.beyond) == ("iput", ROUNDS // 50, ROUNDS // 50)
    assert wrong.site.tail
    assert found["dentry"] == ("adds up", ROUNDS, ROUNDS)
    assert found["file"] == ("not given back", 2 * ROUNDS, ROUNDS)
    assert {counts.sites[held.site].site.function for held in counts.held} == {"filp_open"}
    assert sum(held.more for held in counts.held) == ROUNDS


def test_more_objects_than_there_is_room_for(lender: Process) -> None:
    """Are counted, and then nobody is judged."""
    with subprocess.Popen([lender.binary, "wrong", "30000"], stdin=subprocess.PIPE) as running:
        watch = balancing.Watch(lender.module, lender.addresses())
        running.communicate(b"\n", timeout=300)
    found = {one.kind: one for one in judge(watch.finish({}))}
    assert found["file"].verdict == "not judged"
    assert "could not be counted" in " ".join(found["file"].says)
    assert found["file"].taken == 60000 and found["file"].given == 30000


def test_a_kernel_without_kprobes_says_so() -> None:
    """Exit 69 with the reason, before anything is compiled."""
    if balancing._KPROBES.exists():
        pytest.skip("this kernel has kprobes")
    with pytest.raises(EbpfwatchError) as refused:
        balancing.Watch(Module((), (), {}), [])
    assert refused.value.exit_code is Exit.UNAVAILABLE and "no kprobes" in str(refused.value)


def test_what_is_no_module() -> None:
    """Is said, with what to do."""
    done = command("balance", "no_such_module")
    assert done.returncode == Exit.USAGE and "is not loaded" in done.stderr
