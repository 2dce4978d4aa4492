"""A system that cannot run the daemon is told so in one line, before anything is installed."""

from __future__ import annotations

import ast
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy/supported.sh"


def asked(
    tmp_path: Path, os_release: str, python: str = "", path: str = ""
) -> subprocess.CompletedProcess[str]:
    """What the script says of such a system."""
    file = tmp_path / "os-release"
    file.write_text(os_release)
    environment = {**os.environ, "PYTHON": python or "/usr/bin/python3"}
    if path:
        environment["PATH"] = path
    words = ["/bin/sh", str(SCRIPT), str(file)]
    return subprocess.run(words, env=environment, capture_output=True, text=True)


def fake_python(tmp_path: Path, status: int) -> str:
    """A Python that is too old (1), or not (0)."""
    file = tmp_path / "python3"
    file.write_text(f"#!/bin/sh\nexit {status}\n")
    file.chmod(0o755)
    return str(file)


@pytest.mark.skipif(not Path("/usr/bin/apt-get").exists(), reason="no apt-get: not Debian")
@pytest.mark.parametrize("version", ["12", "13"])
def test_debian_12_and_13_are_taken(tmp_path: Path, version: str) -> None:
    """Without a word."""
    python = fake_python(tmp_path, 0)
    done = asked(tmp_path, f'ID=debian\nVERSION_ID="{version}"\n', python)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("os_release", "status", "why"),
    [
        ('ID=debian\nVERSION_ID="11"\n', 0, "Debian 11 is too old"),
        ("ID=debian\nVERSION_ID=10\n", 0, "Debian 10 is too old"),
        ("ID=uos\nVERSION_ID=20\n", 1, "is older than 3.9"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    tmp_path: Path, os_release: str, status: int, why: str
) -> None:
    """Exit 69, and where to go instead."""
    done = asked(tmp_path, os_release, fake_python(tmp_path, status))
    assert done.returncode == 69 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert why in line and "image" in line and "make triage" in line


def test_a_system_without_apt_is_refused(tmp_path: Path) -> None:
    """Nothing could be installed there."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sed", "tr"):
        (tools / name).symlink_to(f"/usr/bin/{name}" if name == "tr" else "/bin/sed")
    done = asked(tmp_path, "ID=openEuler\nVERSION_ID=22.03\n", path=str(tools))
    assert done.returncode == 69 and "no apt-get" in done.stderr


def test_the_entry_can_be_read_by_an_old_python() -> None:
    """Python 3.7 must get as far as the line that refuses it."""
    ast.parse((ROOT / "ebpfwatch/__main__.py").read_text(), feature_version=(3, 7))
    ast.parse((ROOT / "ebpfwatch/__init__.py").read_text(), feature_version=(3, 7))
