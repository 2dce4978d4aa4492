"""RCU's lists of callbacks in a dump: what is on them twice, or cannot be called.

A callback stands on one list of one CPU (kernel/rcu/tree.c).  An object that was given to
call_rcu() twice closes a list to a circle or joins the lists of two CPUs, and RCU then frees what
follows it twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ebpfwatch.postmortem.memory import Fault, Memory
from ebpfwatch.postmortem.references import Anomaly
from ebpfwatch.postmortem.slabs import Slabs

__all__ = ["chains", "follow", "judge_chains"]

_MOST = 1 << 22  # callbacks of one list
#: Until 4.19 there were three flavours of RCU, each with lists of its own.
_DATA = ("rcu_data", "rcu_preempt_data", "rcu_sched_data", "rcu_bh_data")
#: The lists of a CPU: the ordinary one, and those of rcu_nocbs=, by the names that they have had.
_HEADS = (
    "cblist.head",
    "nocb_bypass.head",
    "nocb_head",
    "nocb_gp_head",
    "nocb_follower_head",
)


def chains(program: Any, drgn: Any) -> Iterator[tuple[str, int]]:
    """Each list: whose it is, and its first callback."""
    from drgn.helpers.linux.cpumask import for_each_possible_cpu
    from drgn.helpers.linux.percpu import per_cpu

    for name in _DATA:
        try:
            data = program[name]
        except LookupError:
            continue
        for cpu in for_each_possible_cpu(program):
            for head in _HEADS:
                with contextlib.suppress(AttributeError, LookupError, drgn.FaultError):
                    at = per_cpu(data, cpu)
                    for part in head.split("."):
                        at = at.member_(part)
                    yield f"CPU {cpu} ({name}.{head})", int(at)
    with contextlib.suppress(LookupError, AttributeError, drgn.FaultError):
        yield "the CPU (rcu_ctrlblk)", int(program["rcu_ctrlblk"].rcucblist)


def follow(memory: Memory, head: int) -> Iterator[tuple[int, int]]:
    """Each callback of a list with its function; raises ``Fault`` where it leads nowhere."""
    for _ in range(_MOST):
        if not head:
            return
        raw = memory.read(head, 16)
        yield head, int.from_bytes(raw[8:], "little")
        head = int.from_bytes(raw[:8], "little")


def judge_chains(
    lists: Iterable[tuple[str, int]],
    memory: Memory,
    slabs: Slabs | None,
    named: Callable[[int], str],
) -> tuple[list[Anomaly], int]:
    """What cannot be, and how many callbacks wait."""
    where: dict[int, str] = {}
    found: list[Anomaly] = []
    for whose, first in lists:
        here: set[int] = set()
        try:
            for head, function in follow(memory, first):
                if head in here:
                    found.append(_anomaly("rcu_twice", head, f"is twice on the list of {whose}"))
                    break
                here.add(head)
                if head in where:
                    found.append(
                        _anomaly(
                            "rcu_shared",
                            head,
                            f"is on the lists of {where[head]} and {whose}: RCU will run it, and"
                            " what follows it, twice",
                        )
                    )
                    break
                where[head] = whose
                found += _one(head, function, whose, slabs, named)
        except Fault as fault:
            says = f"leads to {fault}, which cannot be read"
            found.append(_anomaly("rcu_broken", first, f"({whose}) {says}", "list of callbacks"))
    return found, len(where)


def _one(
    head: int, function: int, whose: str, slabs: Slabs | None, named: Callable[[int], str]
) -> Iterator[Anomaly]:
    # Below a page it is kfree_rcu()'s offset of the head in the object
    # (__is_kvfree_rcu_offset()).
    name = named(function) if function >= 4096 else f"kfree_rcu() {function}"
    if not name:
        yield _anomaly(
            "rcu_no_function",
            head,
            f"is on the list of {whose}, and its function {function:#x} is none of the kernel's or"
            " a module's: the memory was used for something else",
        )
        return
    slab = slabs.at(head) if slabs is not None and slabs.known else None
    if slab is not None and not slab.wrong and not slab.allocated(head):
        yield _anomaly(
            "rcu_freed",
            head,
            f"({name}) waits on the list of {whose}, and its memory in {slab.cache.name} is free"
            " already: it will be freed twice",
        )


def _anomaly(kind: str, head: int, says: str, what: str = "RCU callback") -> Anomaly:
    return Anomaly(kind, head, what, says)
