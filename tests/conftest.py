"""For all tests: what a test needs of the machine, and how much Hypothesis tries.

``@pytest.mark.needs("git", "root")`` names what a machine may lack; where it is missing the test is
skipped, and the reason says how to get it. ``@pytest.mark.slow`` is for more than a second of CPU:
`make quick` leaves those out.

Hypothesis has no deadline of its own: how long one example takes says nothing on a machine that has
other things to do; what must be fast is measured side by side in tests/bench.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("ebpfwatch", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=20)
settings.load_profile("ebpfwatch")

ROOT = Path(__file__).parents[1]


def _program(*names: str) -> Callable[[], bool]:
    return lambda: all(shutil.which(name) for name in names)


def _module(name: str) -> Callable[[], bool]:
    return lambda: importlib.util.find_spec(name) is not None


def _git_clone() -> bool:
    if not shutil.which("git"):
        return False
    words = ["git", "-C", str(ROOT), "rev-parse", "--git-dir"]
    return subprocess.run(words, capture_output=True).returncode == 0


#: What a test may ask for: is it here, and what to do if it is not.
NEEDS: dict[str, tuple[Callable[[], bool], str]] = {
    "root": (lambda: os.geteuid() == 0, "needs root: run it with sudo"),
    "git": (_git_clone, "needs git and a clone, not an unpacked archive: apt-get install git"),
    "bcc": (_module("bcc"), "no BCC: apt-get install python3-bpfcc"),
    "bcrypt": (_module("bcrypt"), "no bcrypt: apt-get install python3-bcrypt"),
    "seccomp": (_module("seccomp"), "no libseccomp binding: apt-get install python3-seccomp"),
    "capstone": (_module("capstone"), "no Capstone: apt-get install python3-capstone"),
    "systemd": (_program("systemd-analyze"), "no systemd-analyze: apt-get install systemd"),
    "cc": (_program("cc", "gcc"), "no C compiler: apt-get install gcc libc6-dev"),
    "binutils": (_program("nm", "addr2line"), "no binutils: apt-get install binutils"),
    "promtool": (_program("promtool"), "no promtool: apt-get install prometheus"),
    "make": (_program("make"), "no make: apt-get install make"),
    "help2man": (_program("help2man"), "no help2man: apt-get install help2man"),
    "strace": (_program("strace"), "no strace: apt-get install strace"),
    "zsh": (_program("zsh"), "no zsh: apt-get install zsh"),
    "fish": (_program("fish"), "no fish: apt-get install fish"),
    "gpg": (_program("gpg", "gpgconf"), "no gpg: apt-get install gnupg"),
    "rpm": (_program("rpm", "rpmbuild"), "no rpmbuild: apt-get install rpm"),
    "dpkg": (_program("dpkg-query"), "no dpkg: this is no Debian"),
}

_left_out: list[str] = []


@pytest.fixture(scope="session", autouse=True)
def no_terminal() -> None:
    """What is printed must not depend on the shell's COLUMNS, which pytest-xdist sets, too."""
    os.environ.pop("COLUMNS", None)


@pytest.hookimpl(trylast=True)  # after those of the folders, which mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run."""
    missing = {name: reason for name, (here, reason) in NEEDS.items() if not here()}
    for item in items:
        for name in (n for mark in item.iter_markers("needs") for n in mark.args):
            if name not in NEEDS:
                raise pytest.UsageError(f"{item.nodeid}: nobody knows what needs({name!r}) is")
            if name in missing:
                item.add_marker(pytest.mark.skip(reason=missing[name]))


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Remember them, for the summary."""
    _left_out.extend(item.nodeid for item in items)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What -m or -k left out is told by name."""
    if _left_out:
        functions = sorted({node.partition("[")[0].rpartition("::")[2] for node in _left_out})
        terminalreporter.write_line(f"{len(_left_out)} tests left out: {', '.join(functions)}")
