"""The audit's rules on made-up objects; real dumps are `make test-postmortem`."""

from __future__ import annotations

import dataclasses
import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpfwatch.postmortem.account import Account, Located, in_common, stays, summary
from ebpfwatch.postmortem.callbacks import judge_chains
from ebpfwatch.postmortem.memory import Fault, Memory, Shape
from ebpfwatch.postmortem.references import (
    Anomaly,
    Holder,
    Inode,
    Name,
    OpenFile,
    Result,
    judge,
)
from ebpfwatch.postmortem.slabs import Cache, FreeLists, Slab

ROOT = Path(__file__).parents[2]
SB, OTHER = 0x1000, 0x2000
DIR, FILE, INODE, DESCRIPTOR = 0xD0, 0xF0, 0x10, 0x77


def name(address: int, references: int, parent: int = 0, inode: int = 0) -> Name:
    """A living name that nobody holds the lock of; without a parent a root."""
    parent = parent or address
    return Name(address, references, False, parent, inode, SB, 0, False, True)


def inode(references: int, address: int = INODE) -> Inode:
    """One of SB's, in order."""
    return Inode(address, references, False, False, False, SB, SB, 12, False, False, 1)


def look(
    names: Iterable[Name] = (),
    inodes: Iterable[Inode] = (),
    files: Iterable[OpenFile] = (),
    holders: Sequence[tuple[int, Holder]] = (),
    free: Sequence[int] = (),
) -> Result:
    """Judge; ``free`` are the addresses that the slab allocator calls free."""
    held: dict[int, list[Holder]] = {}
    for address, holder in holders:
        held.setdefault(address, []).append(holder)
    return judge(names, inodes, files, held, lambda address: address not in free)


def kinds(result: Result) -> list[tuple[str, int]]:
    """What was told, with the number missing."""
    return [(one.kind, one.missing) for one in result.anomalies]


def test_what_adds_up_is_silent() -> None:
    """Children, open files, working directories and mounts, each a reference."""
    names = [name(DIR, 4), name(FILE, 1, DIR, INODE), name(FILE + 1, 0, DIR)]
    files = [OpenFile(DESCRIPTOR, 1, FILE, 1, True)]
    holders = [(DIR, Holder("mount")), (DIR, Holder("working directory", "sh (pid 1)"))]
    result = look(names, [inode(1)], files, holders)
    assert (result.anomalies, result.more, result.changing) == ([], [], 0)


def test_a_directory_that_was_put_too_often() -> None:
    """The case's own mistake, in the words of the summary."""
    names = [name(DIR, 55), *(name(FILE + n, 0, DIR) for n in range(200))]
    result = look(names, holders=[(DIR, Holder("working directory", "sh (pid 7)"))])
    (one,) = result.anomalies
    assert (one.kind, one.has, one.counted, one.missing) == ("name_too_few", 55, 201, 146)
    assert one.what == "directory" and "146 times too often" in one.says
    assert one.holders == ["200 children", "1 as working directory (sh (pid 7))"]


def test_who_has_the_file_open() -> None:
    """By task, each once."""
    files = [OpenFile(n, 1, FILE, 1, True) for n in (1, 2, 3)]
    result = judge(
        [name(FILE, 1)],
        [],
        files,
        {},
        lambda _: True,
        whose=lambda n: "sh (pid 7)" if n < 3 else "",
    )
    assert result.anomalies[0].holders == ["3 open files (sh (pid 7))"]


def test_more_references_than_found_are_no_mistake() -> None:
    """Something holds them that was not looked at."""
    result = look([name(FILE, 5, DIR), name(DIR, 1)])
    assert result.anomalies == []
    assert [(one.address, has, more) for one, has, more in result.more] == [(FILE, 5, 5)]
    pinned = judge(
        [name(FILE, 1, DIR, INODE), name(DIR, 1)], [], [], {}, lambda _: True, lambda _: True
    )
    assert pinned.more == []


def test_what_only_the_slab_shows_is_no_proof() -> None:
    """A file that no process leads to may be memory that looks like one."""
    unsure = OpenFile(DESCRIPTOR, 1, FILE, 0, False)
    assert look([name(FILE, 0)], files=[unsure]).anomalies == []
    assert kinds(look([name(FILE, 0)], files=[unsure._replace(sure=True)])) == [("name_too_few", 1)]
    assert look([name(FILE, 0)], holders=[(FILE, Holder("perhaps socket"))]).anomalies == []


def test_a_held_lock_is_not_judged() -> None:
    """The object is being changed at this moment; it is counted."""
    result = look(
        [name(DIR, 0)._replace(locked=True), name(FILE, 0, DIR)],
        [inode(-1)._replace(locked=True)],
    )
    assert (result.anomalies, result.changing) == ([], 2)


@pytest.mark.parametrize(
    "names, expected",
    [
        ([name(FILE, -1)], [("name_too_few", 1)]),
        ([name(DIR, -128), name(FILE, 0, DIR)], [("dead_with_children", 1)]),
        ([name(FILE, -128)._replace(listed=True)], [("dead_on_list", 0)]),
        ([name(FILE, -128, DIR)], []),
        ([name(FILE, 0, 0xBAD), name(FILE + 1, 0, 0xBAD)], [("parent_freed", 2)]),
        ([name(FILE, 1, 0, 0xBAD)], [("inode_freed", 0)]),
    ],
)
def test_names_that_cannot_be(names: list[Name], expected: list[tuple[str, int]]) -> None:
    """Negative, dead with children, dead on a list, in a freed directory, of a freed inode."""
    assert kinds(look(names, free=[0xBAD])) == expected


def test_a_name_that_is_being_made_is_no_child() -> None:
    """It has the parent of its former life until __d_alloc() has set its own; on no list."""
    made = name(FILE, 1, DIR)._replace(linked=False)
    assert look([name(DIR, 0), made]).anomalies == []
    assert look([name(DIR, -128), made]).anomalies == []
    assert look([name(FILE, 1, 0xBAD)._replace(linked=False)], free=[0xBAD]).anomalies == []
    assert look([name(DIR, 1), made]).more[0][0].address == FILE  # a cursor of readdir() holds it


def test_a_dead_name_in_use() -> None:
    """An open file's, or a mount's."""
    dead = name(FILE, -128)
    assert kinds(look([dead], files=[OpenFile(1, 1, FILE, 1, True)])) == [("dead_in_use", 1)]
    assert kinds(look([dead], holders=[(FILE, Holder("mount"))])) == [("dead_in_use", 1)]


@pytest.mark.parametrize(
    "one, expected",
    [
        (inode(1), []),
        (inode(0), [("inode_too_few", 1)]),
        (inode(3), []),
        (inode(1)._replace(own=OTHER), [("inode_foreign", 0)]),
        (inode(1)._replace(cleared=True), [("inode_cleared_on_list", 0)]),
        (inode(1, 0xBAD), [("inode_freed_on_list", 0)]),
        (inode(-1, 0x20), [("inode_too_few", 1)]),
    ],
)
def test_inodes_that_cannot_be(one: Inode, expected: list[tuple[str, int]]) -> None:
    """One name leads to the inode at INODE."""
    assert kinds(look([name(FILE, 0, FILE, INODE)], [one], free=[0xBAD])) == expected


def test_files_that_cannot_be() -> None:
    """Closed too often, or open on a name that is free."""
    assert kinds(look([name(FILE, 1)], files=[OpenFile(1, 1, FILE, 2, True)])) == [
        ("file_too_few", 1)
    ]
    assert kinds(look(files=[OpenFile(1, 1, 0xBAD, 1, True)], free=[0xBAD])) == [
        ("file_of_freed_name", 0)
    ]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(0, 2)), max_size=20),
    st.integers(0, 19),
)
def test_any_tree_that_adds_up_is_silent_and_one_put_more_is_told(
    plan: list[tuple[int, int, int]], which: int
) -> None:
    """Whatever its shape: each object's count is what leads to it, and then one less."""
    names = [name(100 + n, 0, 100 + min(parent, n)) for n, (parent, _, _) in enumerate(plan)]
    files = [
        OpenFile(1000 + 10 * n + k, 1, 100 + n, 1, True)
        for n, (_, count, _) in enumerate(plan)
        for k in range(count)
    ]
    holders = [(100 + n, Holder("mount")) for n, (_, _, c) in enumerate(plan) for _ in range(c)]
    for at, one in enumerate(names):
        leads = len([c for c in names if c.parent == one.address != c.address])
        leads += len([f for f in files if f.name == one.address])
        leads += len([h for h, _ in holders if h == one.address])
        names[at] = one._replace(references=leads)
    assert look(names, files=files, holders=holders).anomalies == []
    if plan:
        at = which % len(plan)
        names[at] = names[at]._replace(references=names[at].references - 1)
        (told,) = look(names, files=files, holders=holders).anomalies
        assert told.object == names[at].address


class Bytes:
    """Memory made of words; what was not written cannot be read."""

    def __init__(self, words: dict[int, int]) -> None:
        self.words = words
        self.reads = 0

    def __call__(self, address: int, size: int) -> bytes:
        self.reads += 1
        if not any(address <= at < address + size for at in self.words):
            raise Fault(hex(address))
        return b"".join(
            struct.pack("<Q", self.words.get(address + n, 0)) for n in range(0, size, 8)
        )


def memory(words: dict[int, int]) -> Memory:
    """Of these words."""
    return Memory(Bytes(words))


def test_memory_is_read_by_the_page_and_once() -> None:
    """Also over the edge of two pages; what is not there is a fault, each time."""
    raw = Bytes({0x1FF8: 7, 0x2000: 9})
    kept = Memory(raw)
    assert kept.read(0x1FF8, 16) == struct.pack("<QQ", 7, 9)
    assert (kept.word(0x1FF8), kept.word(0x2000), raw.reads) == (7, 9, 2)
    for _ in range(2):
        with pytest.raises(Fault):
            kept.word(0x9000)
    kept.forget()
    raw.words[0x2000] = 10
    assert kept.word(0x2000) == 10


def test_members_out_of_bytes() -> None:
    """In the order asked for, whatever their places; one that the kernel lacks is 0."""
    shape = Shape([(12, 4), None, (0, 8), (9, 1)])
    assert list(shape.take(struct.pack("<QBBHI", 5, 0, 6, 0, 7)))[:4] == [7, 0, 5, 6]
    with pytest.raises(ValueError):
        Shape([(0, 8), (4, 4)])


#: Three objects of 32 bytes; a free one leads to the next one in its second word.
PLAIN = Cache(0x500, "dentry", 32, 0, 8, None, frozenset())


def free_list(words: dict[int, int], first: int, cache: Cache = PLAIN) -> tuple[set[int], str]:
    """Follow the list of free objects of a slab at 0x1000."""
    return FreeLists(memory(words)).chain(cache, first, Slab(cache, 0x1000, 3, set()))


def test_a_list_of_free_objects() -> None:
    """To its end; a circle, a foreign pointer, and memory that is not there are told."""
    assert free_list({0x1028: 0x1000, 0x1008: 0}, 0x1020) == ({0x1000, 0x1020}, "")
    free, says = free_list({0x1008: 0x1000}, 0x1000)
    assert free == {0x1000} and "twice" in says
    assert "none of its" in free_list({0x1008: 0x1010}, 0x1000)[1]
    assert "none of its" in free_list({0x1008: 0x1060}, 0x1000)[1]
    assert "cannot be read" in free_list({0x9000: 0}, 0x1000)[1]
    slab = Slab(PLAIN, 0x1000, 3, {0x1020})
    assert [slab.allocated(at) for at in (0x1000, 0x101F, 0x1020, 0x103F, 0x1040, 0x1060)] == [
        True,
        True,
        False,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("turned", [False, True])
def test_a_hidden_list_of_free_objects(turned: bool) -> None:
    """CONFIG_SLAB_FREELIST_HARDENED, before Linux 5.7 and since; nobody says which."""
    secret = 0x1122334455667788
    cache = dataclasses.replace(PLAIN, secret=secret)

    def hide(place: int, to: int) -> int:
        mixed = int.from_bytes(place.to_bytes(8, "little"), "big") if turned else place
        return to ^ secret ^ mixed

    words = {0x1008: hide(0x1008, 0x1040), 0x1048: hide(0x1048, 0x1020), 0x1028: hide(0x1028, 0)}
    assert free_list(words, 0x1000, cache) == ({0x1000, 0x1020, 0x1040}, "")
    assert free_list(words, 0x1020, cache) == ({0x1020}, "")


def chain(*heads: int, function: int = 0xF000, end: int = 0) -> dict[int, int]:
    """A list of callbacks through these heads."""
    words = {}
    for head, following in zip(heads, [*heads[1:], end]):
        words[head], words[head + 8] = following, function
    return words


def callbacks(
    words: dict[int, int], *firsts: int, named: Callable[[int], str] = lambda _: "__d_free"
) -> list[str]:
    """The kinds told of these lists, one a CPU."""
    lists = [(f"CPU {n}", first) for n, first in enumerate(firsts)]
    return [one.kind for one in judge_chains(lists, memory(words), None, named)[0]]


def test_lists_of_callbacks() -> None:
    """Twice on one list, on two lists, a function that is none, a list that leads nowhere."""
    whole = {**chain(0x100, 0x200), **chain(0x300)}
    assert callbacks(whole, 0x100, 0x300, 0) == []
    assert callbacks(chain(0x100, 0x200, end=0x100), 0x100) == ["rcu_twice"]
    assert callbacks({**chain(0x100, 0x200), **chain(0x300, end=0x200)}, 0x100, 0x300) == [
        "rcu_shared"
    ]
    assert callbacks(chain(0x100), 0x100, named=lambda _: "") == ["rcu_no_function"]
    assert callbacks(chain(0x100, function=16), 0x100, named=lambda _: "") == []  # kfree_rcu()
    assert callbacks(chain(0x100, end=0xBAD000), 0x100) == ["rcu_broken"]


def located(kind: str, object_: int, has: int = 0) -> Located:
    """An anomaly of a directory."""
    says = f"cannot be {has}" if has else "cannot be"
    one = Anomaly(kind, object_, "directory", says, has=has, counted=9)
    return Located(one, "/mnt/dir", "ext4 vdb (254:16)")


def account(*anomalies: Located) -> Account:
    """What an audit found."""
    return Account("4.19.78", {"names": 3}, list(anomalies), [], {}, {}, 0, 0, [], 0.1)


def test_a_living_kernel_is_looked_at_twice() -> None:
    """Only what stands there both times, with the same figures."""
    kept, moved = stays(
        [located("name_too_few", 1), located("name_too_few", 2, 3), located("name_too_few", 4)],
        [located("name_too_few", 1), located("name_too_few", 2, 4)],
    )
    assert ([one.anomaly.object for one in kept], moved) == ([1], 3)


def test_the_summary_and_what_dumps_have_in_common() -> None:
    """One object in full, several as a number; kinds, file systems and paths of more than one."""
    assert summary(account()) == [
        "Every count agrees with what was found: no reference is missing."
    ]
    partly = dataclasses.replace(account(), unread=["names after 1374: the time was over"])
    assert "not everything was looked at" in summary(partly)[0]
    assert summary(account(located("name_too_few", 1))) == ["1 directory cannot be"]
    both = account(located("name_too_few", 1, 8), located("name_too_few", 2, 7))
    assert summary(both) == [
        "2 x name: fewer references than lead to them; 3 references are missing in all"
    ]
    lines = in_common([("a", both), ("b", account(located("name_too_few", 3))), ("c", account())])
    assert lines == [
        "2 of 3 dumps have something that cannot be.",
        "In 2 of 3: kind name_too_few",
        "In 2 of 3: file system ext4 vdb (254:16)",
        "In 2 of 3: path /mnt/dir",
    ]
    json.dumps(dataclasses.asdict(both))


@pytest.mark.parametrize(
    "content, part",
    [
        (None, "no file"),
        (b"nonsense", "drgn"),
        (b"makedumpfile\0\0\0\0rest", "makedumpfile -R"),
        (b"KDUMP   \x06\0\0\0\0\0\0\0", "drgn"),
    ],
)
def test_what_is_no_dump_is_one_line(content: bytes | None, part: str, tmp_path: Path) -> None:
    """By sysexits, without a traceback; without drgn exit 69 and what to install."""
    file = tmp_path / "vmcore"
    if content is not None:
        file.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-m", "ebpfwatch", "audit", file], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode in (64, 69), done.stderr
    assert part in done.stderr or "drgn is missing" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_live_without_what_it_needs_is_one_line() -> None:
    """No /proc/kcore, no rights, no drgn or no debug information: exit 69 or 77."""
    done = subprocess.run(
        [sys.executable, "-m", "ebpfwatch", "audit", "live"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1, 69, 77), done.stderr
    assert "Traceback" not in done.stderr
    if done.returncode in (69, 77):
        assert done.stderr.count("\n") == 1
