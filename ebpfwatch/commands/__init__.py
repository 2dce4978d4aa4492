"""The command line: one module a command, each with ``add_parser`` and ``run``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Container, Sequence

from ebpfwatch import __version__
from ebpfwatch.errors import EbpfwatchError, Exit, say

__all__ = ["COMMANDS", "main", "parser"]

#: name: one line of help. The module of the same name (with _ for -) is imported only when needed.
COMMANDS = {
    "run": "watch this machine until stopped",
    "check": "a doctor: real programs tried, crash survival, memory, storage, modules, remedies",
    "selftest": "play a double free on a made-up object through the running daemon, to every sink",
    "unlinks": "show every unlink as it happens: who, which path, which inode, the result",
    "postmortem": "read verdicts, dying inodes and the last transitions out of a kernel dump",
    "report": "show findings, newest first",
    "triage": "read the log of a machine that is dead: is it this bug, why, what to do next",
    "cache": "which files and mounts hold the page cache, and how many inodes are in memory",
    "print-probes": "print the C as it would be compiled",
    "check-config": "read a configuration file and say what is wrong with it",
}

_EPILOG = """\
exit codes: 0 fine, 1 the answer is no, 64 usage, 69 not available here,
70 a defect of ebpfwatch, 71 the system refused, 73 cannot write, 75 already running,
77 no permission, 78 bad configuration
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        say(f"{message}; see `{self.prog} --help`", "err")
        raise SystemExit(int(Exit.USAGE))


def parser(wanted: Container[str] = COMMANDS) -> argparse.ArgumentParser:
    """The command line; only ``wanted`` commands know their options: the daemon must stay small.

    The man page and the shell completion of the package are made from it.
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
        sub = subparsers.add_parser(name, help=text, description=text.capitalize() + ".")
        if name in wanted:
            module = importlib.import_module(f"ebpfwatch.commands.{name.replace('-', '_')}")
            module.configure(sub)
            sub.set_defaults(run=module.run)
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Never shows a traceback for an expected error."""
    words = list(sys.argv[1:] if argv is None else argv)
    command_line = parser([word for word in words if word in COMMANDS][:1])
    arguments = command_line.parse_args(words)
    if not arguments.command:
        command_line.print_help()
        return int(Exit.USAGE)
    try:
        return int(arguments.run(arguments))
    except EbpfwatchError as error:
        say(str(error), "err")
        return int(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()  # `| head` closed our stdout; that is no error
        return int(Exit.OK)
    except KeyboardInterrupt:
        return 130
