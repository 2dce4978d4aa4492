"""The early warning: only the three together, only in their time, only now and then."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpfwatch.daemon.precursors import Precursors
from ebpfwatch.daemon.this_boot import ThisBoot
from ebpfwatch.host.zoneinfo import Zone
from ebpfwatch.kernellog.known import recognise
from ebpfwatch.kernellog.watcher import Watcher
from ebpfwatch.paths import Paths
from ebpfwatch.sinks.journal import Journal
from ebpfwatch.verdicts.early import EarlyWarning
from ebpfwatch.verdicts.recorder import Recorder

MIB = 1 << 20
LOW = Zone(0, "Normal", 70 * MIB, 66 * MIB, 84 * MIB, 101 * MIB, 15000 * MIB)
FINE = Zone(0, "DMA32", 900 * MIB, 6 * MIB, 8 * MIB, 10 * MIB, 3000 * MIB)


def ready(now: float = 1000.0) -> EarlyWarning:
    """All three, just now."""
    early = EarlyWarning()
    early.pressure(now, (FINE, LOW))
    early.burst(now, "reclaim evicted 20000 ext4 inodes")
    early.precursor(now, "WARNING: dentry_free")
    return early


def test_the_three_together_are_a_warning_with_three_reasons() -> None:
    """What, how much, how long ago."""
    warning = ready().judge(1002.0, 300)
    assert warning is not None
    assert warning.reasons == (
        "free memory of node 0 Normal is between min and low (70 MiB) (2 s ago)",
        "reclaim evicted 20000 ext4 inodes (2 s ago)",
        "the kernel said: WARNING: dentry_free (2 s ago)",
    )


@pytest.mark.parametrize("absent", ["pressure", "burst", "precursor"])
def test_two_of_three_are_none(absent: str) -> None:
    """Each alone is an ordinary day."""
    early = EarlyWarning()
    if absent != "pressure":
        early.pressure(1, (LOW,))
    if absent != "burst":
        early.burst(1, "burst")
    if absent != "precursor":
        early.precursor(1, "said")
    early.pressure(1, (FINE,))
    early.burst(-float("inf"), "") if absent == "burst" else None
    assert not early.active(1) and early.judge(1, 0) is None


def test_each_has_its_time() -> None:
    """A burst of a minute ago is over; a precursor counts for five."""
    early = ready(0)
    assert early.active(60) and not early.active(61)
    early.pressure(299, (LOW,))
    early.burst(299, "again")
    assert early.active(300) and not early.active(301)


def test_it_is_not_said_again_at_once() -> None:
    """At most one in that time, however long it lasts."""
    early = ready(0)
    assert early.judge(0, 300) and not early.judge(10, 300)
    early.pressure(310, (LOW,))
    early.burst(310, "b")
    early.precursor(310, "p")
    assert early.judge(310, 300)


@given(st.lists(st.tuples(st.sampled_from("pbwj"), st.floats(0, 100)), max_size=60))
def test_never_two_within_the_interval(steps: list[tuple[str, float]]) -> None:
    """Whatever order things come in."""
    early, now, said = EarlyWarning(), 0.0, []
    for what, later in steps:
        now += later
        if what == "p":
            early.precursor(now, "x")
        elif what == "b":
            early.burst(now, "y")
        elif what == "w":
            early.pressure(now, (LOW,))
        elif early.judge(now, 120):
            said.append(now)
    assert all(after - before >= 120 for before, after in zip(said, said[1:]))


def test_without_a_kernel_log_it_says_so(tmp_path: Path) -> None:
    """A container has none: nothing is counted, nothing fails; the daemon tells it once it has
    loaded (tests/live/test_refusals.py: a start that fails says one line).
    """
    found = Precursors(Paths(dev=tmp_path), Recorder(), ThisBoot(tmp_path, "boot"))
    found.drain()
    found.judge((LOW,), (-float("inf"), ""), 300, Journal(tmp_path / "none", "off"))
    found.look_back()
    assert found.watcher.missing.startswith(f"{tmp_path}/kmsg: No such file")
    assert found.watcher.fd == -1 and not found.active


RECORDS = (
    b"4,10,1,-;kernel BUG at mm/slub.c:1!\n",
    b"12,11,1,-;kernel BUG at mm/slub.c:2!\n",  # user space: facility 1
    b"garbage\n",
    b"4,13,1,-;ordinary\n SUBSYSTEM=x\n",
    b"6,20,1,c;list_del corruption. next->prev should be x\n",
)


def test_records_their_facility_and_their_gaps(tmp_path: Path) -> None:
    """One read is one record, as in the kernel's file: here a socket that keeps the borders."""
    import socket

    writer, reader = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with writer, reader:
        reader.setblocking(False)
        watcher = Watcher(tmp_path / "none")
        watcher.fd = os.dup(reader.fileno())
        for record in RECORDS:
            writer.send(record)
        batch = watcher.read()
        watcher.close()
    assert [e.known.kind for e in batch.events] == ["slab_corruption", "list_corruption"]
    assert watcher.lost == 7, "12 and 14 to 19"


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=20))
def test_any_records(records: list[bytes]) -> None:
    """Whatever is read: no exception."""
    watcher = Watcher(Path("/nonexistent"))
    for record in records:
        watcher._message(record)
    assert watcher.lost >= 0


def test_a_flood_is_read_up_to_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst is read at once; a flood that lasts costs so many records a second, no more."""
    now = 1000.0
    monkeypatch.setattr("ebpfwatch.kernellog.watcher.time.monotonic", lambda: now)
    watcher = Watcher(Path("/nonexistent"))
    read = 0

    def endless() -> str:
        nonlocal read
        read += 1
        return "tmpfs: Unknown parameter 'uuuu'"

    monkeypatch.setattr(watcher, "_read", endless)
    watcher.fd = 0
    for _ in range(100):
        watcher.read()
    assert read == 20000 and not watcher.wanted, "nobody must poll it now"
    for _ in range(60):
        now += 1.0
        for _ in range(10):
            watcher.read()
    assert 20000 + 29000 <= read <= 20000 + 30000
    now += 3600
    assert watcher.wanted
    watcher.fd = -1


def headlines() -> list[str]:
    """What the kernel prints, one or more of each row, as the samples have it."""
    found = {}
    for log in (Path(__file__).parents[1] / "fixtures/logs").glob("*.txt"):
        for line in log.read_text(errors="replace").splitlines():
            text = re.sub(r"^[^A-Za-z_]*", "", line)
            known = recognise(text)
            if known is not None:
                found[text] = known
    return list(found)


#: The kernel's own lines that begin with a name which a user chose: up to 15 bytes.
BEGUN_BY_USERS = (
    "{}[4242]: segfault at 0 ip 00005555deadbeef sp 00007ffc error 4 in a.out[555500+1000]",
    "{}[4242]: unhandled exception: ESR 0x92000046, address = 0x0",
    "{}[4242]: unhandled level 2 translation fault (11) at 0x00000000, esr 0x92000006",
    "{} (4242): drop_caches: 3",
    "{}/4242: potentially unexpected fatal signal 11.",
    "{}[4242] vsyscall attempted with vsyscall=none ip:ffffffffff600000",
    "{}: renamed from corruption",
    "{}: renamed from corruption. (while UP)",
    "{}: entered promiscuous mode",
)


def test_no_name_that_a_user_chooses_is_a_message() -> None:
    """15 bytes of any message that is known here, in each place where a name comes first."""
    names = {text[begin : begin + 15] for text in headlines() for begin in range(1)}
    names |= {"BUG: KASAN: x", "BUG a (b): c", "WARNING: [", "JBD2: error", "list_add", "list_del"}
    names |= {"EDAC a: 1 UE", "mce: [Hardware", "BUG: KFENCE: x", "list_add corrup"}
    assert len(names) > 20
    for name in names:
        for line in BEGUN_BY_USERS:
            found = recognise(line.format(name))
            assert found is None, line.format(name)
