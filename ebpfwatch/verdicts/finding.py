"""What leaves the program: a finding, its verdict, how sure we are and why."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

__all__ = ["SCHEMA", "Actor", "Confidence", "Finding", "Identity", "Severity", "Verdict"]

#: Version of the JSON form of a finding (``Finding.to_json``); raised when a field changes meaning.
SCHEMA = 1


class Verdict(enum.Enum):
    """What happened to the object; the names are those of the design's table."""

    DOUBLE_DESTROY = "double_destroy"
    DOUBLE_EVICT = "double_evict"
    DOUBLE_FREE = "double_free"
    FREE_WHILE_ALIVE = "free_while_alive"
    FOREIGN_FREE = "foreign_free"
    IDENTITY_CHANGED = "identity_changed"
    FREED_IN_RECLAIM = "freed_in_reclaim"
    CONCURRENT_UNLINK = "concurrent_unlink"


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


@dataclasses.dataclass(frozen=True)
class Actor:
    """Who did a step: the task that was current on the CPU, and when (CLOCK_MONOTONIC ns).

    ``context`` is "task", "softirq" (the current task is a bystander) or "unknown".
    ``stack`` holds the frames, innermost first, as "symbol+0x10 [module]" or bare addresses; it
    may be empty.
    """

    ns: int
    cpu: int
    pid: int
    tgid: int
    comm: str
    context: str = "task"
    stack: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Identity:
    """Which inode it is. An address is not an inode: all of these must agree."""

    object_address: int
    dev_major: int
    dev_minor: int
    ino: int
    generation: int


@dataclasses.dataclass(frozen=True)
class Finding:
    """One finding: verdict, confidence with its reasons, identity, and who did what.

    ``id`` is unique per machine and sorts by time.  ``realtime_us`` is the wall clock of the
    kernel event in microseconds since the epoch.  ``first`` is who freed (or evicted,
    destroyed) the object first, ``second`` who did it again; ``name`` is the last component of the
    deleted file's path, empty where no unlink was seen.  ``test`` marks the self-test's own.
    ``folded`` counts repetitions of the same finding left out by the rate limit.
    """

    id: str
    verdict: Verdict
    confidence: Confidence
    severity: Severity
    reasons: tuple[str, ...]
    identity: Identity
    realtime_us: int
    summary: str
    first: Actor | None = None
    second: Actor | None = None
    evicted_by: Actor | None = None
    unlinked_by: Actor | None = None
    name: str = ""
    nlink: int | None = None
    reclaim: str = ""
    call_site: int = 0
    witness: str = ""
    test: bool = False
    folded: int = 0
    context: tuple[str, ...] = ()
    host: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The documented JSON form (docs/finding.md); only plain types, stable keys."""
        body = dataclasses.asdict(self)
        body["verdict"] = self.verdict.value
        body["confidence"] = self.confidence.value
        body["severity"] = int(self.severity)
        return {"schema": SCHEMA, **body}

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Finding:
        """The way back; raises ``KeyError``, ``TypeError`` or ``ValueError`` for another schema."""
        values = dict(body)
        if values.pop("schema") != SCHEMA:
            raise ValueError(f"schema {body['schema']}, not {SCHEMA}")
        values["verdict"] = Verdict(values["verdict"])
        values["confidence"] = Confidence(values["confidence"])
        values["severity"] = Severity(values["severity"])
        values["identity"] = Identity(**values["identity"])
        for name in ("first", "second", "evicted_by", "unlinked_by"):
            actor = values[name]
            if actor is not None:
                values[name] = Actor(**{**actor, "stack": tuple(actor["stack"])})
        for name in ("reasons", "context"):
            values[name] = tuple(values[name])
        return cls(**values)
