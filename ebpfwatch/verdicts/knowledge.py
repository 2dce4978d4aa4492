"""What is known of the watcher and the machine when a verdict falls: all that judging may ask."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Callable

from ebpfwatch.events.wire import VerdictEvent
from ebpfwatch.host.process import Process
from ebpfwatch.verdicts.finding import Preceding, Responsible

__all__ = ["Knowledge"]


@dataclasses.dataclass(frozen=True)
class Knowledge:
    """What is known of the watcher itself at the moment of a verdict.

    ``attached`` and ``alive`` are by role; a role is alive when the canary proved it, and None
    means not yet proven.  ``lost(role, since_ns)`` is the number of skipped runs.
    ``symbol(address)`` names a kernel address, "" if it cannot, and ``taints(module)`` tells a
    module's.  ``realtime_offset_ns`` turns CLOCK_MONOTONIC into wall clock.
    ``test_object(address)`` tells the self-test's own memory.  ``frames(key)`` reads a stack that
    was taken at an earlier step; () if it is gone.  ``earlier(object, ns)`` is the id and the
    responsible one of the last finding about this object before that moment.  ``out_of_tree`` are
    the names of such modules, and ``lacks`` what no report of this daemon can tell, and why.
    ``preceding(event)`` are the findings before that may have to do with it, and ``named_by(id)``
    whom one of them named.
    ``reduced`` is what is not attached now, or only for a while, in words.
    ``unproven`` is why the offsets of dentries and open files are not proven, "" if they are.
    ``process(tgid, ns)`` tells a living process, and ``place(major, minor)`` a device's name and
    where it is mounted.
    """

    attached: frozenset[str]
    alive: Mapping[str, bool | None]
    lost: Callable[[str, int], int]
    symbol: Callable[[int], str]
    realtime_offset_ns: int
    test_object: Callable[[int], bool]
    frames: Callable[[int], tuple[int, ...]] = lambda key: ()
    taints: Callable[[str], str] = lambda module: ""
    earlier: Callable[[int, int], tuple[str, Responsible] | None] = lambda object_, ns: None
    named_by: Callable[[str], Responsible | None] = lambda id_: None
    preceding: Callable[[VerdictEvent], tuple[Preceding, ...]] = lambda event: ()
    out_of_tree: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    reduced: tuple[str, ...] = ()
    unproven: str = ""
    process: Callable[[int, int], Process | None] = lambda tgid, ns: None
    place: Callable[[int, int], tuple[str, str]] = lambda major, minor: ("", "")
