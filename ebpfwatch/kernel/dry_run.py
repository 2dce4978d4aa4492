"""What came of loading the real programs without attaching them: the record that the loader child
(``verify``) sends and `ebpfwatch check` judges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ebpfwatch.errors import EbpfwatchError, Exit

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

    ``left_out``: the rung that would hold, by role, where the configuration wants none.
    ``instead``: the text of hooks.rungs with which everything loads (it was tried), "" if nothing
    is refused or nothing helps.  ``error``: why nothing could be loaded, not even tried.
    """

    programs: tuple[Program, ...] = ()
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    instead: str = ""
    error: EbpfwatchError | None = None

    @property
    def refused(self) -> tuple[Program, ...]:
        """Those that the verifier did not take."""
        return tuple(program for program in self.programs if program.refusal)

    def of(self, role: str) -> tuple[Program, ...]:
        """A role's own programs."""
        return tuple(program for program in self.programs if program.role == role)

    def to_json(self) -> dict[str, Any]:
        """For the way from the child, and for ``check --json``."""
        error = self.error
        return {
            "programs": [vars(program) for program in self.programs],
            "left_out": dict(self.left_out),
            "instead": self.instead,
            "error": error and {"message": error.message, "hint": error.hint},
            "exit": int(error.exit_code) if error else 0,
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> DryRun:
        """As it was before ``to_json``."""
        error = said["error"]
        return cls(
            tuple(Program(**program) for program in said["programs"]),
            said["left_out"],
            said["instead"],
            error and EbpfwatchError(error["message"], error["hint"], Exit(said["exit"])),
        )
