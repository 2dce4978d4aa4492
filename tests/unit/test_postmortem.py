"""What a dump holds, from its bytes; the real dump is `make test-postmortem`."""

from __future__ import annotations

import ctypes
import re
import struct
import subprocess
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpfwatch.catalogue.layout import OBJECT_DEAD, OBJECT_QUEUED, LifeFlag
from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.errors import EbpfwatchError
from ebpfwatch.events.wire import ActorStruct, Bucket, VerdictRecord, selftest_record
from ebpfwatch.postmortem import machine
from ebpfwatch.postmortem.blackbox import entries, transitions, verdicts
from ebpfwatch.postmortem.frames import MOST_ALIKE, frame_records, until_circle
from ebpfwatch.postmortem.opening import import_drgn

ROOT = Path(__file__).parents[2]
OBJECT = 0xFFFF000012340000


def actor(ns: int, comm: bytes) -> ActorStruct:
    """Somebody on CPU 1."""
    return ActorStruct(ns=ns, pid=7, tgid=7, cpu=1, caller=0xC0DE, comm=comm)


def table() -> bytes:
    """Two buckets: one empty, one with an object dying, one queued and one dead."""
    bucket = Bucket()
    for way, bits in ((0, 0), (1, OBJECT_QUEUED), (3, OBJECT_DEAD | OBJECT_QUEUED)):
        bucket.object[way] = (OBJECT + way * 0x1000) | bits
        bucket.life[way].ino = 10 + way
        bucket.life[way].dev = 254 << 20 | 16
        bucket.life[way].evicted = actor(100 + way, b"rm")
    bucket.life[1].flags = LifeFlag.RECLAIM
    bucket.life[1].destroyed = actor(105, b"rm")
    bucket.life[3].freed = actor(104, b"browser")
    return bytes(Bucket()) + bytes(bucket)


def test_the_table_of_a_dead_machine() -> None:
    """State by the key, addresses without its bits, steps as far as they were seen."""
    first, second, third = entries(table())
    assert (first.object, first.state, first.dying) == (OBJECT, "evicting", True)
    assert (second.object, second.state) == (OBJECT + 0x1000, "queued")
    assert second.in_reclaim and second.steps[0].what == "evicted inside shrink_slab"
    assert (third.object, third.state, third.dying) == (OBJECT + 0x3000, "freed", False)
    assert (third.ino, third.dev) == (13, (254, 16))


def test_the_last_transitions_are_in_the_order_of_time() -> None:
    """Of all objects together, and no more than asked for."""
    steps = transitions(entries(table()), 40)
    assert [step.ns for step in steps] == [100, 101, 103, 104, 105]
    assert [step.ns for step in transitions(entries(table()), 2)] == [104, 105]
    assert transitions(entries(table()), 0) == []


def test_the_last_verdicts_outlive_user_space() -> None:
    """What the probe wrote down is decoded; memory never written is nothing."""
    record = selftest_record(OBJECT, 42, 7, 1000)
    never = bytes(ctypes.sizeof(VerdictRecord))
    later = selftest_record(OBJECT, 43, 7, 2000)
    events = verdicts([later, never, record + b"padding"])
    assert [event.ino for event in events] == [42, 43]
    assert events[0].verdict is Verdict.DOUBLE_FREE


@given(st.binary(max_size=5000))
def test_torn_memory_never_raises(noise: bytes) -> None:
    """A dump is taken while CPUs write."""
    assert len(transitions(entries(noise), 5)) <= 5
    assert len(list(entries(table() + noise))) >= 3
    verdicts([noise, bytes([2, 0]) + noise])


def test_an_unwinder_that_runs_in_circles_is_cut() -> None:
    """After the first time round, whatever the circle's length; recursion and inlined functions,
    which share an address, are none.
    """
    good = [(0x10, "panic"), (0x20, "die"), (0x30, "set_freepointer")]
    assert until_circle(good) == (3, False)
    assert until_circle(good + [(0x30, "set_freepointer")] * 1012) == (3, True)
    assert until_circle([*good, *[(0x40, "a"), (0x50, "b")] * 500]) == (5, True)
    assert until_circle([(0x30, "f")] * MOST_ALIKE) == (MOST_ALIKE, False)
    assert until_circle([(0x30, f"inlined {n}") for n in range(9)]) == (9, False)


def test_the_frame_records_lead_on() -> None:
    """Through signed return addresses and from the stack of interrupts back to a task's."""
    text, stack, irq = 0xFFFF800008000000, 0xFFFF80000A000000, 0xFFFF80000B000000
    signed = (text + 0x20) & ~(0x7F << 48)
    records = {
        irq: (irq + 0x40, text + 0x10),
        irq + 0x40: (stack, signed),
        stack: (stack + 0x40, text + 0x30),
        stack + 0x40: (0, text + 0x40),
    }

    def read(address: int, size: int) -> bytes:
        if address not in records:
            raise ValueError("not in the dump")
        return struct.pack("<QQ", *records[address])[:size]

    assert frame_records(read, irq, 0) == [text + n for n in (0x10, 0x20, 0x30, 0x40)]
    assert frame_records(read, irq, text + 0x10) == [text + n for n in (0x20, 0x30, 0x40)]
    records[stack + 0x40] = (irq, text + 0x40)  # a circle of records ends, too
    assert len(frame_records(read, irq, 0)) == 4
    del records[irq + 0x40]
    assert frame_records(read, irq, 0) == [text + 0x10]
    assert frame_records(read, 0, 0) == frame_records(read, 0x99, 0) == []


def test_what_is_no_dump_is_one_line(tmp_path: Path) -> None:
    """Exit 64 and the file's name; without drgn exit 69 and what to install."""
    (tmp_path / "x").write_bytes(b"nonsense")
    for file, part in ((tmp_path / "none", "no file"), (tmp_path / "x", "drgn")):
        done = subprocess.run(
            [sys.executable, "-m", "ebpfwatch", "postmortem", file],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode in (64, 69) and part in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_which_drgn_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """One older than the package suggests is refused by number; what one lacks is told."""
    oldest = re.search(
        r"python3-drgn \(>= ([0-9.]+)\)", (ROOT / "deploy/debian/control").read_text()
    )
    assert oldest is not None
    drgn = types.ModuleType("drgn")
    monkeypatch.setitem(sys.modules, "drgn", drgn)
    for version in (oldest[1], f"{oldest[1]}+unknown", "0.1.0", "1.0"):
        monkeypatch.setattr(drgn, "__version__", version, raising=False)
        assert import_drgn() is drgn
    for version in ("0.0.22", "0.0.30", ""):
        monkeypatch.setattr(drgn, "__version__", version)
        with pytest.raises(EbpfwatchError) as refused:
            import_drgn()
        assert f"{oldest[1]} or later is needed" in refused.value.hint
    monkeypatch.setattr(drgn, "__version__", oldest[1])
    monkeypatch.setattr(drgn, "FaultError", OSError, raising=False)
    monkeypatch.setitem(sys.modules, "drgn.helpers.linux.mm", None)
    told = dict(machine.sections(drgn, {"PAGE_SIZE": 4096}))
    assert told["Tasks"] == [f"drgn {oldest[1]} cannot tell this; 0.0.33 and later can"]
