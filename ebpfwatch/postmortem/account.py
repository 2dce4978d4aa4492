"""The audit of one kernel: every reference counted and compared, and told in order.

A living kernel goes on while it is read.  So it is looked at twice, and only what stands there both
times, with the same figures, is told.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ebpfwatch.postmortem.callbacks import chains, judge_chains
from ebpfwatch.postmortem.references import Anomaly, judge
from ebpfwatch.postmortem.slabs import Slab
from ebpfwatch.postmortem.walk import Walk

__all__ = ["Account", "Located", "audit", "in_common", "stays", "summary"]

#: The beginning of the summary's line for each kind, for one object and for several.
_KINDS = {
    "name_too_few": "fewer references than lead to them",
    "dead_with_children": "dead while names in them are alive",
    "dead_in_use": "dead while they are used",
    "dead_on_list": "dead, and on the list of unused names",
    "parent_freed": "freed while names in them are alive",
    "inode_freed": "leading to an inode whose memory is free",
    "inode_freed_on_list": "free memory, and on their file system's list",
    "inode_foreign": "on the list of another file system",
    "inode_cleared_on_list": "dead, and on their file system's list",
    "inode_too_few": "fewer references than names lead to them",
    "file_too_few": "closed too often",
    "file_of_freed_name": "open on a name whose memory is free",
    "slab_broken": "with a list of free objects that cannot be",
    "rcu_twice": "twice on one list",
    "rcu_shared": "on the lists of two CPUs",
    "rcu_no_function": "with a function that is none",
    "rcu_freed": "waiting, and free already",
    "rcu_broken": "that cannot be read to its end",
}


@dataclasses.dataclass(frozen=True)
class Located:
    """An anomaly, where its object is, and on which file system ("" where it is on none)."""

    anomaly: Anomaly
    path: str
    filesystem: str


@dataclasses.dataclass
class Account:
    """What was looked at, what cannot be, and what is merely not explained."""

    release: str
    looked_at: dict[str, int]
    anomalies: list[Located]
    more: list[tuple[str, str, int, int]]  # path, file system, references, of them unexplained
    more_by_filesystem: dict[str, tuple[int, int]]
    held_by_nobody: dict[str, tuple[int, list[str]]]  # file system: open files, some paths
    changing: int
    moved: int
    unread: list[str]
    seconds: float


def audit(
    drgn: Any,
    program: Any,
    named: Callable[[int], str],
    live: bool = False,
    threshold: int = 10,
    seconds: float = 600,
    pause: Callable[[], None] = lambda: time.sleep(1),
) -> Account:
    """Look once at a dump, twice at a living kernel; each look ends after ``seconds``, said so."""
    began = time.monotonic()
    account = _look(drgn, program, named, threshold, seconds)
    if live:
        pause()
        again = _look(drgn, program, named, threshold, seconds)
        kept, moved = stays(account.anomalies, again.anomalies)
        account = dataclasses.replace(again, anomalies=kept, moved=moved)
    account.seconds = time.monotonic() - began
    return account


def stays(first: Iterable[Located], second: Iterable[Located]) -> tuple[list[Located], int]:
    """What both looks saw alike, and how much only one of them did."""

    def key(one: Located) -> tuple[object, ...]:
        anomaly = one.anomaly
        return anomaly.kind, anomaly.object, anomaly.says

    before, after = {key(one): one for one in first}, {key(one): one for one in second}
    both = [one for what, one in after.items() if what in before]
    return both, len(before) + len(after) - 2 * len(both)


def _look(
    drgn: Any, program: Any, named: Callable[[int], str], threshold: int, seconds: float
) -> Account:
    walk = Walk(drgn, program, seconds)
    result = judge(
        walk.names,
        walk.inodes,
        walk.files,
        walk.held,
        walk.slabs.allocated,
        walk.pinned,
        walk.whose,
    )
    waiting, callbacks = judge_chains(chains(program, drgn), walk.memory, walk.slabs, named)
    anomalies = [*result.anomalies, *_broken(walk.slabs.wrong()), *waiting]
    by_filesystem: dict[str, tuple[int, int]] = {}
    for name, _, more in result.more:
        label = _label(walk, name.superblock)
        objects, references = by_filesystem.get(label, (0, 0))
        by_filesystem[label] = objects + 1, references + more
    return Account(
        str(program["init_uts_ns"].name.release.string_().decode()),
        {
            "names": len(walk.names),
            "inodes": len(walk.inodes),
            "open files": len(walk.files),
            "mounts": walk.mounts,
            "tasks": walk.tasks,
            "slabs": walk.slabs.pages,
            "RCU callbacks": callbacks,
        },
        [_located(walk, one) for one in anomalies],
        [
            (walk.path(name.address), _label(walk, name.superblock), has, more)
            for name, has, more in result.more
            if more >= threshold
        ],
        by_filesystem,
        _nobodys(walk),
        result.changing,
        0,
        list(walk.unread),
        0.0,
    )


def _label(walk: Walk, superblock: int) -> str:
    found = walk.superblocks.get(superblock)
    return found.label if found else ""


def _located(walk: Walk, anomaly: Anomaly) -> Located:
    path = walk.path(anomaly.name) if anomaly.name else ""
    return Located(anomaly, path, _label(walk, anomaly.superblock))


def _broken(slabs: Iterable[Slab]) -> Iterable[Anomaly]:
    for slab in slabs:
        yield Anomaly("slab_broken", slab.start, f"slab of {slab.cache.name}", slab.wrong)


def _nobodys(walk: Walk) -> dict[str, tuple[int, list[str]]]:
    """Open files that no descriptor, mapping or program of a task leads to, by file system."""
    superblocks = {name.address: name.superblock for name in walk.names}
    found: dict[str, tuple[int, list[str]]] = {}
    for file in walk.files:
        if not file.sure:
            label = _label(walk, superblocks.get(file.name, 0))
            count, paths = found.get(label, (0, []))
            if len(paths) < 5:
                paths.append(walk.path(file.name))
            found[label] = count + 1, paths
    return found


def summary(account: Account) -> list[str]:
    """What it comes to, a line a kind; the worst first."""
    if not account.anomalies and account.unread:
        return ["Every count that was looked at agrees; not everything was looked at (see below)."]
    if not account.anomalies:
        return ["Every count agrees with what was found: no reference is missing."]
    kinds: dict[str, list[Located]] = collections.defaultdict(list)
    for one in account.anomalies:
        kinds[one.anomaly.kind].append(one)
    lines = []
    for kind, found in sorted(kinds.items(), key=lambda item: list(_KINDS).index(item[0])):
        first = found[0].anomaly
        if len(found) == 1:
            lines.append(f"1 {first.what} {first.says}")
        else:
            missing = sum(one.anomaly.missing for one in found)
            # A directory is a name, too.
            what = "name" if first.kind.startswith("name_") else first.what
            lines.append(
                f"{len(found)} x {what}: {_KINDS[kind]}"
                + (f"; {missing} references are missing in all" if missing else "")
                + (f", most of {found[0].path} ({first.missing})" if first.missing > 1 else "")
            )
    return lines


def in_common(accounts: Sequence[tuple[str, Account]]) -> list[str]:
    """What several dumps have in common: kinds, and directories in which it happened."""
    lines = []
    broken = [(name, account) for name, account in accounts if account.anomalies]
    lines.append(f"{len(broken)} of {len(accounts)} dumps have something that cannot be.")
    for what, of in (
        ("kind", lambda one: one.anomaly.kind),
        ("file system", lambda one: one.filesystem),
        ("path", lambda one: one.path),
    ):
        counts = collections.Counter(
            value
            for _, account in broken
            for value in {of(one) for one in account.anomalies}  # type: ignore[no-untyped-call]
            if value
        )
        for value, count in counts.most_common(5):
            if count > 1:
                lines.append(f"In {count} of {len(accounts)}: {what} {value}")
    return lines
