"""The verdicts that the probes printed into the kernel's trace buffer, where a crash dumped it.

``ftrace_dump_on_oops`` writes the trace buffer to the console, so these lines stand in the log of a
dead machine, in pstore and in vmcore-dmesg.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Callable

from ebpfwatch.catalogue.verdicts import numbered
from ebpfwatch.events.wire import device

__all__ = ["TracedVerdict", "traced"]


@dataclasses.dataclass
class TracedVerdict:
    """A verdict as the probe itself printed it."""

    verdict: str
    ino: int
    object: int
    now: str
    cpu: int
    generation: int = 0
    dev: int = 0
    caller: int = 0
    first_pid: int = 0
    first_caller: int = 0
    evicted_by: str = ""
    evicted_pid: int = 0
    softirq: bool = False
    stack: tuple[int, ...] = ()

    def text(self, name: Callable[[int], str] | None = None) -> str:
        """One line for people; ``name`` names an address of that boot.

        Of the stack it tells the modules: no symbols of that boot are left.
        """
        modules = [name(frame) for frame in self.stack] if name else []
        modules = [frame for frame in modules if frame.startswith("[")]
        name = name or (lambda address: f"{address:#x}" if address else "?")
        major, minor = device(self.dev)
        line = (
            f"{self.verdict}: inode {self.ino} generation {self.generation} on {major}:{minor},"
            f" object {self.object:#x}; now {self._by()}, called from {name(self.caller)}"
        )
        if modules:
            line += f", modules on the stack: {' < '.join(modules)}"
        if self.first_pid or self.first_caller:
            line += f"; first by pid {self.first_pid}, called from {name(self.first_caller)}"
        if self.evicted_by:
            line += f"; evicted by {self.evicted_by} (pid {self.evicted_pid})"
        return line

    def _by(self) -> str:
        """A task is named only for what it did itself, not for the softirq that interrupted it."""
        if self.softirq:
            return f"in a softirq on cpu {self.cpu}"
        return f"by {self.now} (cpu {self.cpu})"


# "  kworker/1:1-39  [001] d..3  48.645135: bpf_trace_printk: ebpfwatch verdict=3 ..."; in a dump
# before Linux 5.9 the event's name is an address ("0x00000000: "), and the flags follow the CPU at
# once ("0d.s3"). Of the flags (Documentation/trace/ftrace.rst) the third says "s" in a softirq, "h"
# and "H" in an interrupt. Only at the beginning of a line: in the middle it may be a mount option
# or another text of any user's choice.
_TRACE = re.compile(
    r"^(?:<\d+>)?(?:\[ *\d+\.\d+\](?:\[ *[TC]\d+\])?)? *"
    r"(?P<who>\S.{0,15}?-\d+|<\.\.\.>-\d+)\s+(?:\[(?P<cpu>\d+)\]\s+|(?P<tight>\d+))"
    r"(?P<flags>[a-zA-Z.][^\s]{2,4})\s[^\n]*?ebpfwatch (?P<body>[^\n]*)"
)
_MOST_FRAMES = 15  # probes/verdict.h, TRACED_FRAMES
_PAIR = re.compile(r"(\w+)=(\w+)")


def traced(lines: Iterable[str]) -> Iterator[TracedVerdict]:
    """The verdicts in a dumped trace buffer, in its order; anything else is passed over."""
    current: dict[str, TracedVerdict] = {}
    for text in lines:
        found = _TRACE.search(text)
        if not found:
            continue
        body, cpu = found["body"], found["cpu"] or found["tight"]
        try:
            pairs = dict(_PAIR.findall(body))
            if body.startswith("verdict="):
                if cpu in current:
                    yield current.pop(cpu)
                verdict = numbered(int(pairs["verdict"])).value
                now = TracedVerdict(
                    verdict, int(pairs["ino"]), int(pairs["obj"], 16), found["who"], int(cpu)
                )
                now.softirq = found["flags"][2] in "shHzZ"
                current[cpu] = now
                continue
            verdict_now = current.get(cpu)
            if verdict_now is None:
                continue
            _add(verdict_now, body, pairs)
        except (ValueError, KeyError):
            continue
    yield from current.values()


def _add(verdict: TracedVerdict, body: str, pairs: dict[str, str]) -> None:
    if body.startswith("caller="):
        verdict.caller = int(pairs["caller"], 16)
        verdict.generation = int(pairs["gen"])
        verdict.dev = int(pairs["dev"], 16)
    elif body.startswith("stack "):
        frames = [int(word, 16) for word in body.split()[1:4]]
        verdict.stack = (*verdict.stack, *filter(None, frames))[:_MOST_FRAMES]
    elif body.startswith("first "):
        verdict.first_pid = int(pairs["pid"])
        verdict.first_caller = int(pairs["caller"], 16)
    elif body.startswith("evicted "):
        verdict.evicted_pid = int(pairs["pid"])
        verdict.evicted_by = body.partition(" by ")[2].strip()
