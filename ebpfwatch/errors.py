"""The one error type a user ever sees, and the exit codes.

An error says what is wrong, where, and what to do about it.  Exit codes are those of
``sysexits.h``, so that systemd, cron and shell scripts can tell "fix the config" from
"try again later".
"""

from __future__ import annotations

import dataclasses
import enum

__all__ = ["EbpfwatchError", "Exit", "Failure"]


class Exit(enum.IntEnum):
    """Exit codes (sysexits.h); the README has the same table."""

    OK = 0
    FAILED = 1  #: the command ran and the answer is "no" (check found a hook missing, ...)
    USAGE = 64  #: the command line is wrong
    UNAVAILABLE = 69  #: this kernel or machine lacks what the daemon needs
    SOFTWARE = 70  #: a defect of ebpfwatch
    OSERR = 71  #: the operating system refused something it should grant
    CANTCREAT = 73  #: the state directory cannot be written
    TEMPFAIL = 75  #: somebody else holds the lock; try later
    NOPERM = 77  #: not root, or a capability is missing
    CONFIG = 78  #: the configuration is wrong


class EbpfwatchError(Exception):
    """An error for a person: ``message`` says what and where, ``hint`` what to do."""

    def __init__(self, message: str, hint: str = "", exit_code: Exit = Exit.SOFTWARE) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


@dataclasses.dataclass(frozen=True)
class Failure:
    """An ``EbpfwatchError`` as data, to cross from one process to another; no message: no error."""

    message: str = ""
    hint: str = ""
    exit_code: Exit = Exit.OK

    @classmethod
    def of(cls, error: EbpfwatchError) -> Failure:
        """This error."""
        return cls(error.message, error.hint, error.exit_code)

    @property
    def error(self) -> EbpfwatchError | None:
        """The error again; None if there was none."""
        return EbpfwatchError(self.message, self.hint, self.exit_code) if self.message else None
