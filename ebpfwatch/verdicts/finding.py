"""What leaves the program: a finding, its verdict, how sure we are and why.

docs/finding.md and docs/finding.schema.json document the JSON form; a test holds real findings
to them.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.host.process import Process
from ebpfwatch.text.jsonable import jsonable

__all__ = [
    "SCHEMA",
    "Actor",
    "Confidence",
    "Finding",
    "Frame",
    "Identity",
    "Moment",
    "Preceding",
    "Responsible",
    "Severity",
    "Strength",
]

#: Version of the JSON form of a finding (``Finding.to_json``); raised when a field changes meaning.
SCHEMA = 2


class Confidence(enum.Enum):
    """How sure a verdict is; the reasons are always spelled out beside it."""

    CONFIRMED = "confirmed"
    PROBABLE = "probable"
    UNDECIDABLE = "undecidable"


class Severity(enum.IntEnum):
    """Syslog priorities, so that journal, kmsg and metrics agree."""

    CRIT = 2
    ERR = 3
    WARNING = 4
    NOTICE = 5


class Strength(enum.Enum):
    """How much speaks against whom we name as responsible.

    SHOWN: its own code made the wrong call, seen on the stack.  SUSPECTED: its code is near, and
    nothing shows that it is to blame.  UNKNOWN: nobody is named.
    """

    SHOWN = "shown"
    SUSPECTED = "suspected"
    UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Frame:
    """One frame of a stack; ``symbol`` is "" where the address has no name.

    ``taints`` are the module's, as the kernel prints them: O out-of-tree, E unsigned, P proprietary
    ...
    """

    address: int
    symbol: str = ""
    offset: int = 0
    module: str = ""
    taints: str = ""

    def __str__(self) -> str:
        name = f"{self.symbol}+{self.offset:#x}" if self.symbol else f"{self.address:#x}"
        module = f" [{self.module}]" if self.module else ""
        return name + module + (f" ({self.taints})" if self.taints else "")


@dataclasses.dataclass(frozen=True)
class Actor:
    """Who did a step: the task that was current on the CPU, and when (CLOCK_MONOTONIC ns).

    ``context`` is "task", "softirq" (a softirq, an interrupt, or RCU's thread: the current task is
    a bystander) or "unknown".  ``stack`` holds the frames, innermost first; it may be empty.
    """

    ns: int
    cpu: int
    pid: int
    tgid: int
    comm: str
    context: str = "task"
    stack: tuple[Frame, ...] = ()
    process: Process | None = None


@dataclasses.dataclass(frozen=True)
class Identity:
    """Which inode it is. An address is not an inode: all of these must agree."""

    object_address: int
    dev_major: int
    dev_minor: int
    ino: int
    generation: int


@dataclasses.dataclass(frozen=True)
class Moment:
    """One line of a timeline (CLOCK_MONOTONIC ns)."""

    ns: int
    text: str


@dataclasses.dataclass(frozen=True)
class Preceding:
    """A finding that came before another one, and what the two have to do with each other.

    ``relation`` is "the same object", "the same directory" or "shortly before".  ``count`` is how
    often it happened, folded ones included.
    """

    id: str
    ns: int
    verdict: Verdict
    relation: str
    summary: str
    count: int = 1


@dataclasses.dataclass(frozen=True)
class Responsible:
    """Who is most likely to blame: a module or a piece of the kernel, never a bystander.

    ``who`` is "" with Strength.UNKNOWN.  ``because`` is the reasoning, never empty.
    """

    who: str
    strength: Strength
    because: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One finding: verdict, confidence with its reasons, identity, and who did what.

    ``id`` is unique per machine and sorts in the order of the findings (see ``later``).  ``ns`` is
    the kernel's CLOCK_MONOTONIC and ``realtime_us`` the wall clock of the event, in microseconds
    since the epoch.  ``first`` is who freed (or evicted, destroyed) the object first, ``second``
    who did it again.  ``name`` is the last component of the deleted file's path, empty where no
    unlink was seen, and ``path`` as much of the path as is known.  ``test`` marks the self-test's
    own.  ``folded`` counts repetitions of the same finding left out by the rate limit.
    ``timeline`` are the steps of this object, ``machine`` the machine's last seconds.  ``boot_id``
    is the kernel's name for the boot it is of.  ``what`` is "inode" or "dentry", ``filesystem`` the
    type of its filesystem; ``broken`` names the rules of the VFS that it contradicts, and
    ``related`` is the address of the other object in them.  ``preceded_by`` are the findings that
    came before and may have to do with it, oldest first.  ``disk`` is what was known of the device
    below its filesystem.  ``lacks`` says what the report cannot
    tell, and why.
    """

    id: str
    verdict: Verdict
    confidence: Confidence
    severity: Severity
    reasons: tuple[str, ...]
    identity: Identity
    ns: int
    realtime_us: int
    summary: str
    responsible: Responsible
    first: Actor | None = None
    second: Actor | None = None
    evicted_by: Actor | None = None
    destroyed_by: Actor | None = None
    unlinked_by: Actor | None = None
    name: str = ""
    path: str = ""
    device: str = ""
    mount: str = ""
    nlink: int | None = None
    object_bytes: int = 0
    reclaim: str = ""
    call_site: int = 0
    witness: str = ""
    test: bool = False
    folded: int = 0
    boot_id: str = ""
    timeline: tuple[Moment, ...] = ()
    machine: tuple[Moment, ...] = ()
    what: str = "inode"
    filesystem: str = "ext4"
    broken: tuple[str, ...] = ()
    related: int = 0
    directory_ino: int = 0
    preceded_by: tuple[Preceding, ...] = ()
    lacks: tuple[str, ...] = ()
    disk: str = ""
    host: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def headline(self) -> str:
        """Verdict, confidence and summary on one line."""
        test = "TEST: " if self.test else ""
        return f"{test}{self.verdict.value} ({self.confidence.value}): {self.summary}"

    def to_json(self) -> dict[str, Any]:
        """The documented JSON form (docs/finding.md); only plain types, stable keys.

        Addresses are text in hexadecimal: a JSON number keeps only 53 bits.
        """
        body: dict[str, Any] = jsonable(self)
        body["call_site"] = f"{self.call_site:#x}"
        body["related"] = f"{self.related:#x}"
        body["identity"]["object_address"] = f"{self.identity.object_address:#x}"
        for actor in filter(None, (body[name] for name in _ACTORS)):
            for frame in actor["stack"]:
                frame["address"] = f"{frame['address']:#x}"
        return {"schema": SCHEMA, **body}

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Finding:
        """The way back; raises ``KeyError``, ``TypeError`` or ``ValueError`` for another schema."""
        values = {"boot_id": "", **body}
        values.pop("acknowledged", None)  # what the store adds to it
        if values.pop("schema") != SCHEMA:
            raise ValueError(f"schema {body['schema']}, not {SCHEMA}")
        for name, kind in _ENUMS.items():
            values[name] = kind(values[name])
        accused = values["responsible"]
        values["responsible"] = Responsible(
            accused["who"], Strength(accused["strength"]), tuple(accused["because"])
        )
        values["call_site"] = int(values["call_site"], 16)
        values["related"] = int(values.get("related", "0"), 16)
        identity = values["identity"]
        address = int(identity["object_address"], 16)
        values["identity"] = Identity(**{**identity, "object_address": address})
        for name in _ACTORS:
            values[name] = _actor_from_json(values[name])
        for name in ("timeline", "machine"):
            values[name] = tuple(Moment(**moment) for moment in values[name])
        for name in ("reasons", "lacks", "broken"):
            values[name] = tuple(values.get(name, ()))
        values["preceded_by"] = tuple(
            Preceding(**{**one, "verdict": Verdict(one["verdict"])})
            for one in values.get("preceded_by", ())
        )
        return cls(**values)


_ENUMS: dict[str, type[enum.Enum]] = {
    "verdict": Verdict,
    "confidence": Confidence,
    "severity": Severity,
}
_ACTORS = ("first", "second", "evicted_by", "destroyed_by", "unlinked_by")


def _actor_from_json(body: dict[str, Any] | None) -> Actor | None:
    if body is None:
        return None
    stack = tuple(Frame(**{**f, "address": int(f["address"], 16)}) for f in body["stack"])
    process = None if body["process"] is None else Process(**body["process"])
    return Actor(**{**body, "stack": stack, "process": process})
