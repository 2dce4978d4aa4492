"""What came of loading the real programs without attaching them: the record that the loader child
(``verify``) sends and `ebpfwatch check` judges.
"""

from __future__ import annotations

import dataclasses

from ebpfwatch.errors import EbpfwatchError, Failure

__all__ = ["LEARNER", "SELFTEST", "Program", "DryRun"]

#: Programs that fill no role of the ladder; without either the daemon does not start.
LEARNER = "learner"
SELFTEST = "selftest"


@dataclasses.dataclass(frozen=True)
class Program:
    """One program; ``refusal`` is the verifier's last word, "" if it was loaded."""

    role: str
    function: str
    refusal: str


@dataclasses.dataclass(frozen=True)
class DryRun:
    """All of them.

    ``instead``: the text of hooks.rungs with which everything loads (it was tried), "" if nothing
    is refused or nothing helps.  ``failure``: why nothing could be loaded, not even tried.
    """

    programs: tuple[Program, ...] = ()
    instead: str = ""
    failure: Failure = Failure()

    @property
    def error(self) -> EbpfwatchError | None:
        """``failure`` as an error."""
        return self.failure.error

    @property
    def refused(self) -> tuple[Program, ...]:
        """Those that the verifier did not take."""
        return tuple(program for program in self.programs if program.refusal)

    def of(self, role: str) -> tuple[Program, ...]:
        """A role's own programs."""
        return tuple(program for program in self.programs if program.role == role)
