"""When a mistake was made, when the daemon spoke of it, and when the kernel did, on one clock."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

from ebpfwatch.catalogue.verdicts import numbered
from tests.vm.guest import Outcome
from tests.vm.places import journaled

__all__ = ["COMPLAINT", "Moments", "everywhere", "moments"]

#: What the kernel says when it notices: its first word.
COMPLAINT = (
    r"kernel BUG at \S+|Unable to handle [^\n\r]*|WARNING: CPU: \d+ PID: \d+ at \S+"
    r"|list_\w+ corruption|BUG: KFENCE[^\n\r]*|BUG ext4_inode_cache[^\n\r]*"
    r"|BUG: Bad page[^\n\r]*|Internal error[^\n\r]*|soft lockup[^\n\r]*"
)

#: causes.ko's line: the printk clock, and CLOCK_MONOTONIC at the same moment.
_CAUSE = re.compile(
    r"\[ *(?P<log>\d+\.\d+)\][^\n]*?cause: \w+ object=\S+ ino=(?P<ino>\d+) at=(?P<ns>\d+)"
)
_WORD = re.compile(r"\[ *(\d+\.\d+)\][^\n]*?(?:" + COMPLAINT + ")")
#: The verdicts of hooks that are attached only for a while (put, close).
_ARMED = ("put_without_reference", "closed_after_death")
_TRACED = re.compile(r"[ .](\d+)(us |\.\d+): [^\n]*?ebpfwatch verdict=(\d+) ino=(\d+)")


@dataclasses.dataclass(frozen=True)
class Moments:
    """CLOCK_MONOTONIC, ns; None for what never came.

    ``verdict`` is the first of those that were asked for, ``ino`` its inode.  ``default_ns`` is
    that of the first that no armed hook told: what the default configuration tells, where nothing
    has happened before.  ``victim`` is the inode that the module itself names, 0 if it names none.
    """

    mistake_ns: int | None = None
    victim: int = 0
    verdict: str = ""
    ino: int = 0
    verdict_ns: int | None = None
    word_ns: int | None = None
    default_ns: int | None = None

    @property
    def told_ms(self) -> float | None:
        """From the mistake to the verdict."""
        return _between(self.mistake_ns, self.verdict_ns)

    @property
    def word_ms(self) -> float | None:
        """From the verdict to the kernel's first word; negative if the kernel was first."""
        return _between(self.verdict_ns, self.word_ns)

    @property
    def default_ms(self) -> float | None:
        """From the mistake to the first verdict of a hook that is not armed; None where there is
        none before the kernel's first word.
        """
        late = _between(self.default_ns, self.word_ns)
        return None if late is not None and late < 0 else _between(self.mistake_ns, self.default_ns)


def _between(first: int | None, second: int | None) -> float | None:
    return None if first is None or second is None else (second - first) / 1e6


def everywhere(outcome: Outcome) -> list[dict[str, Any]]:
    """The findings on disk and in the journal; one that is in both comes twice."""
    files = sorted((outcome.results / "state/findings").glob("*.json"))
    return [json.loads(file.read_text()) for file in files] + journaled(outcome.results)


def moments(outcome: Outcome, verdicts: tuple[str, ...]) -> Moments:
    """The kernel's log and its trace buffer have another clock; the module's line has both."""
    cause = _CAUSE.search(outcome.console)
    if cause is None:
        return Moments()
    mistake, victim = int(cause["ns"]), int(cause["ino"])
    offset = mistake - round(float(cause["log"]) * 1e9)
    word = _WORD.search(outcome.console, cause.end())
    told = [
        (int(body["ns"]), body["verdict"], int(body["identity"]["ino"]))
        for body in everywhere(outcome)
    ]
    told += [(ns + offset, verdict, ino) for ns, verdict, ino in _traced(outcome.console)]
    wanted = sorted(one for one in told if one[1] in verdicts and one[0] >= mistake)
    ns, verdict, ino = wanted[0] if wanted else (None, "", 0)
    unarmed = [one for one in wanted if one[1] not in _ARMED]
    default_ns = unarmed[0][0] if unarmed else None
    word_ns = round(float(word.group(1)) * 1e9) + offset if word else None
    return Moments(mistake, victim, verdict, ino, ns, word_ns, default_ns)


def _traced(console: str) -> Iterator[tuple[int, str, int]]:
    """The verdicts in the dumped trace buffer: "48645135us : ..." or "48.645135: ..."."""
    for line in console.splitlines():
        found = _TRACED.search(line)
        if not found:
            continue
        digits, rest, verdict, ino = found.groups()
        ns = int(digits) * 1000 if rest == "us " else round(float(digits + rest) * 1e9)
        try:
            yield ns, numbered(int(verdict)).value, int(ino)
        except ValueError:  # a verdict of another version
            continue
