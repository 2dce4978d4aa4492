"""A kernel report as data: what a warning, an oops or a sanitizer says, and where."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from ebpfwatch.kernellog.known import KnownMessage

__all__ = ["Frame", "Module", "Record", "Report"]


class Record(NamedTuple):
    """One kernel message without its prefixes; ``seconds`` since boot, None where not printed.

    ``boot``: the journal's name of the boot it is of, "" where the log does not say.
    """

    text: str
    seconds: float | None = None
    boot: str = ""


@dataclasses.dataclass(frozen=True)
class Frame:
    """``symbol+offset/size [module]``; ``sure`` is False for x86's "? symbol"."""

    symbol: str
    offset: int
    size: int
    module: str = ""
    sure: bool = True

    def __str__(self) -> str:
        return f"{self.symbol}+{self.offset:#x}" + (f" [{self.module}]" if self.module else "")


@dataclasses.dataclass(frozen=True)
class Module:
    """A loaded module and its taint flags ("O" out of tree, "E" unsigned, "P" proprietary)."""

    name: str
    flags: str = ""

    @property
    def listed(self) -> str:
        """As the kernel lists it: name(flags)."""
        return f"{self.name} ({self.flags})" if self.flags else self.name

    @property
    def foreign(self) -> bool:
        """Not of the kernel's own tree."""
        return "O" in self.flags or "P" in self.flags


@dataclasses.dataclass
class Report:
    """One report; what the log did not say stays empty, -1 or None.

    ``frames`` go from the innermost outwards and end where the interrupted code begins; that is in
    ``victim_frames``.  ``other_stacks`` are those of the first free and the allocation, as KASAN,
    KFENCE and the slab print them, by their heading.
    """

    known: KnownMessage
    headline: str
    seconds: float | None = None
    #: the number of its first record in the log
    order: int = 0
    #: the headlines after the first one that belong to it
    more: list[str] = dataclasses.field(default_factory=list)
    arch: str = ""
    cpu: int = -1
    pid: int = -1
    comm: str = ""
    release: str = ""
    build: str = ""
    hardware: str = ""
    taint: str = ""
    work: str = ""
    where: str = ""
    at: Frame | None = None
    caller: Frame | None = None
    fault_address: int | None = None
    #: x86-64's, of a page fault
    error_code: int | None = None
    number: int = 0
    code: str = ""
    cache: str = ""
    #: the cache that the object was freed into, where that is another than its own
    wrong_cache: str = ""
    #: the list of modules has words that are no names of modules: it was cut, or mixed
    modules_cut: bool = False
    #: it has lines that only a kernel that dies of a fault prints
    fatal: bool = False
    #: the registers that follow are those of user space, or of code that was interrupted
    others_registers: bool = False
    registers: dict[str, int] = dataclasses.field(default_factory=dict)
    frames: list[Frame] = dataclasses.field(default_factory=list)
    victim_frames: list[Frame] = dataclasses.field(default_factory=list)
    other_stacks: dict[str, list[Frame]] = dataclasses.field(default_factory=dict)
    modules: dict[str, Module] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The kind of the row that named it."""
        return self.known.kind

    @property
    def symbols(self) -> list[str]:
        """The functions of its own stack, innermost first, without compiler suffixes."""
        first = [self.at] if self.at else []
        rest = self.frames[1:] if self.at and self.frames[:1] == first else self.frames
        return [frame.symbol.split(".")[0] for frame in [*first, *rest] if frame.sure]

    @property
    def all_frames(self) -> list[Frame]:
        """Every frame that the report has, of whatever stack and however sure."""
        others = [frame for frames in self.other_stacks.values() for frame in frames]
        single = [frame for frame in (self.at, self.caller) if frame is not None]
        return [*single, *self.frames, *self.victim_frames, *others]

    @property
    def modules_at_work(self) -> set[str]:
        """Modules that any of these frames, or the work function, belong to."""
        names = {frame.module for frame in self.all_frames if frame.module}
        if self.work.endswith("]"):
            names.add(self.work.rpartition("[")[2].rstrip("]"))
        return names

    @property
    def title(self) -> str:
        """One line: what, where, fault address."""
        where = f" at {self.where}" if self.where else ""
        at = f", {self.at}" if self.at else ""
        size = f"/{self.at.size:#x}" if self.at else ""
        caller = ""
        if self.caller and self.caller != self.at:
            caller = f", called from {self.caller}"
        number = f" #{self.number}" if self.number else ""
        address = (
            f", fault address {self.fault_address:#x}" if self.fault_address is not None else ""
        )
        return f"{self.kind}{number}{where}{at}{size}{caller}{address}"
