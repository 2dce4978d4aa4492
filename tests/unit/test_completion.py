"""Completion in real shells on a terminal of their own: keys are typed, and what then runs is read.

In each shell ``ebpfwatch`` is a function that writes its words into a file, so that a test sees
what the completed line really means, not what the shell has drawn.
"""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpfwatch.commands import COMMANDS
from ebpfwatch.commands.completion import commands

ROOT = Path(__file__).parents[2]
SHELLS = [
    "bash",
    pytest.param("zsh", marks=pytest.mark.needs("zsh")),
    pytest.param("fish", marks=pytest.mark.needs("fish")),
]
#: What starts each without the user's own settings.
START = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
#: Then: load the completion, and make the command one that writes its words.
LOAD = {
    "bash": "source ../completion; ebpfwatch() { (printf '<%s>' \"$@\"; echo) >>../ran; }",
    "zsh": "fpath=($PWD/../functions $fpath); autoload -Uz compinit; compinit -D -u;"
    " ebpfwatch() { (printf '<%s>' \"$@\"; echo) >>../ran; }",
    "fish": "source ../completion; function ebpfwatch;"
    " begin; printf '<%s>' $argv; echo; end >>../ran; end",
}


class Terminal:
    """A shell on a terminal, in a directory with one log."""

    def __init__(self, shell: str, directory: Path) -> None:
        (directory / "completion").write_text(written(shell))
        (directory / "functions").mkdir()  # where zsh finds those of packages, by their names
        (directory / "functions/_ebpfwatch").write_text(written("zsh"))
        self.ran = directory / "ran"
        self.ran.touch()
        work = directory / "work"
        (work / "a directory").mkdir(parents=True)
        (work / "kern.log").touch()
        self.master, slave = pty.openpty()
        environment = {"PATH": os.environ["PATH"], "TERM": "xterm", "LANG": "C.UTF-8"}
        for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"):
            environment[name] = str(directory)
        self.shell = subprocess.Popen(
            ["setsid", "--ctty", *START[shell]],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=work,
            env=environment,
        )
        os.close(slave)
        assert self.runs(LOAD[shell] + "\nebpfwatch loaded") == "<loaded>"

    def type(self, keys: str) -> None:
        """As from a keyboard."""
        os.write(self.master, keys.encode())

    def shows(self, seconds: float) -> str:
        """What the terminal shows within this time; ends early when nothing comes."""
        if not select.select([self.master], [], [], seconds)[0]:
            return ""
        return os.read(self.master, 65536).decode(errors="replace")

    def runs(self, keys: str) -> str:
        """The words of the command that these keys make, as ``<word><word>``."""
        before, shown = len(self.ran.read_text()), ""
        self.type(f"{keys}\n")
        ends = time.monotonic() + 60
        while not (ran := self.ran.read_text()[before:]).endswith("\n"):
            shown += self.shows(0.05)
            assert time.monotonic() < ends, f"nothing ran after {keys!r}: {shown!r}"
        return ran.rstrip()

    def close(self) -> None:
        """Gone before the next test."""
        self.shell.kill()
        self.shell.wait()
        os.close(self.master)


def written(shell: str) -> str:
    """The script, as a user gets it."""
    words = [sys.executable, "-m", "ebpfwatch", "completion", shell]
    return subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.fixture(params=SHELLS)
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    """One of each shell."""
    terminal = Terminal(request.param, tmp_path)
    yield terminal
    terminal.close()


@pytest.mark.slow
def test_keys_in_a_real_shell(terminal: Terminal) -> None:
    """A command by its beginning; files; directories alone; an option; the value of an option."""
    assert terminal.runs("ebpfwatch rep\t") == "<report>"
    assert terminal.runs("ebpfwatch triage \tkern\t") == "<triage><kern.log>"
    assert terminal.runs("ebpfwatch triage k\t") == "<triage><kern.log>"
    assert terminal.runs("ebpfwatch cache \t").replace("/", "") == "<cache><a directory>"
    assert terminal.runs("ebpfwatch suspects --mod\t\t").replace("/", "") == (
        "<suspects><--modules><a directory>"
    )
    assert terminal.runs("ebpfwatch report --verdict double_f\t") == (
        "<report><--verdict><double_free>"
    )
    assert terminal.runs("ebpfwatch print-probes le\t") == "<print-probes><learn.c>"
    assert terminal.runs("ebpfwatch report --no-p\t kern\t") == "<report><--no-pager><kern>"


@pytest.mark.slow
def test_all_commands_are_offered_apart(terminal: Terminal) -> None:
    """Each is a word of its own in the list that two tabs show."""
    terminal.type("ebpfwatch \t\t")
    shown, ends = "", time.monotonic() + 60
    while missing := set(COMMANDS) - set(re.findall(r"[a-z-]+", shown)):
        shown += terminal.shows(0.05)
        assert time.monotonic() < ends, (missing, shown)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_option_is_in_each_script(shell: str) -> None:
    """A command that is added needs nothing here."""
    script = written(shell)
    for command in commands():
        for option in command.options:
            for name in option.names:
                word = name if shell != "fish" else f"-{'l' if name[1] == '-' else 's'} "
                assert f"{word}{name.lstrip('-') if shell == 'fish' else ''}" in script, name


def test_a_value_that_is_a_path_says_so() -> None:
    """By its metavar: FILE, DIR or VMCORE; no name that only the code knows is a metavar."""
    known = [*(o for c in commands() for o in (*c.options, *c.positionals))]
    for argument in known:
        told = argument.metavar
        if told and not argument.choices:
            assert told == told.upper() or argument.names, argument
        if "file" in told.lower() or "dir" in told.lower():
            assert argument.paths, argument
