"""The command line: one module a command, each with ``configure`` and ``run``."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import re
import sys
import traceback
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

from ebpfwatch import __version__
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.system.imports import not_installed
from ebpfwatch.system.log import defect, put, say

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

__all__ = ["COMMANDS", "main", "parser", "positive", "seconds"]

#: name: one line of help. The module of the same name (with _ for -) is imported only when needed.
COMMANDS = {
    "run": "watch this machine until stopped",
    "build": "compile the programs for this kernel now, so that a start needs no compiler",
    "status": "is it watching, was anything found: one screen, and an exit code for monitoring",
    "check": "examine this machine: hooks, evidence of a crash, memory, storage, modules, remedies",
    "selftest": "simulate a double free in the running daemon: is it reported everywhere?",
    "unlinks": "show every unlink as it happens: who, which path, which inode, the result",
    "postmortem": "read verdicts, dying inodes and the last transitions out of a kernel dump",
    "audit": "count every reference to files and names in a dump, or in the running kernel",
    "report": "show findings, newest first",
    "suspects": "the modules from outside the kernel: what points to each, what it can do at all",
    "balance": "does a module give back the references to files that it takes: call by call",
    "triage": "read the log of a machine that is dead: is it this bug, why, what to do next",
    "cache": "which files and mounts hold the page cache, and how many inodes are in memory",
    "print-probes": "print the C source of the programs as it would be compiled",
    "check-config": "read a configuration file and say what is wrong with it",
    "completion": "print what bash, zsh or fish needs to complete this command line",
}

_EPILOG = """\
exit codes: 0 fine, 1 the answer is no, 64 usage, 69 not available here,
70 a defect of ebpfwatch, 71 the system refused, 73 cannot write, 75 already running,
77 no permission, 78 bad configuration
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        put("stderr", self.format_usage().rstrip())
        wrong = re.match(r"argument COMMAND: invalid choice: '(.*?)'", message)
        if wrong is not None:
            import difflib  # only for a mistake

            near = difflib.get_close_matches(wrong[1], COMMANDS, 1)
            message = f"there is no command {wrong[1]}" + (f"; is it {near[0]}?" if near else "")
        say(f"{message}; see `{self.prog} --help`", "err")
        raise SystemExit(int(Exit.USAGE))

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        """As argparse of Python 3.11.2 does; 3.11.7's drops the OSError of a full disk."""
        print(message, end="", file=file or sys.stderr)


def parser(wanted: Container[str] = COMMANDS) -> argparse.ArgumentParser:
    """The command line; only ``wanted`` commands know their options: the daemon must stay small.

    The man page and the shell completion are made from it.
    """
    whole = _Parser(
        prog="ebpfwatch",
        description="Watches the life of ext4 inodes inside the kernel and reports double frees.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"ebpfwatch {__version__}")
    subparsers = whole.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for name, text in COMMANDS.items():
        sub = subparsers.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}{'' if text.endswith('?') else '.'}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in wanted:
            module = importlib.import_module(f"ebpfwatch.commands.{name.replace('-', '_')}")
            sub.epilog = getattr(module, "EXAMPLES", None)
            module.configure(sub)
            sub.set_defaults(run=module.run, parser=sub)
    return whole


def positive(text: str) -> int:
    """A type for argparse: a whole number from 1 to 999,999,999."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:20]) < 10**9:
        raise argparse.ArgumentTypeError("must be a whole number, at least 1 and below 10^9")
    return int(text)


def seconds(text: str) -> float:
    """A type for argparse: a time in seconds, up to a day."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86400:  # no NaN either: nothing is ever later than that
        raise argparse.ArgumentTypeError("must be a number, more than 0 and at most 86400")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Never shows a traceback for an expected error."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(words)
        _flush()
        return code
    except EbpfwatchError as error:
        say(str(error), "err")
        return int(error.exit_code)
    except BrokenPipeError:
        _give_up_stdout()
        return 141  # as if SIGPIPE had ended us: whoever reads codes must not take it for an answer
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            return _defect(words, error)
        _give_up_stdout()
        say(f"the output could not be written: {error.strerror}", "err")
        return int(Exit.CANTCREAT)
    except ImportError as error:
        absent = not_installed(error)
        if absent is None:
            return _defect(words, error)
        say(str(absent), "err")
        return int(absent.exit_code)
    except Exception as error:
        return _defect(words, error)


#: What a write to standard output fails with; commands tell of their own files themselves.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _run(words: list[str]) -> int:
    command_line = parser([word for word in words if word in COMMANDS][:1])
    try:
        arguments, unknown = command_line.parse_known_args(words)
        if unknown:
            # Of the command that was given it, with that one's usage.
            asked = getattr(arguments, "parser", command_line)
            asked.error(f"unrecognized arguments: {' '.join(unknown)}")
    finally:
        _flush()  # --help ends here
    if not arguments.command:
        command_line.print_help()
        return int(Exit.USAGE)
    return int(arguments.run(arguments))


def _flush() -> None:
    """While a full disk can still be told of."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _give_up_stdout() -> None:
    """What is still buffered goes nowhere: Python would fail with it once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _defect(words: list[str], error: Exception) -> int:
    """Exit 70, not Python's 1, which is an answer here; the daemon alone dies of it, to be started
    again.
    """
    if "run" in words[:1]:
        raise error
    traceback.print_exc()
    say(f"a defect of ebpfwatch: {defect(error)}; please report it with the lines above", "err")
    return int(Exit.SOFTWARE)
