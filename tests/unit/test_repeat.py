"""`make stable`: what a run's output says, and that a red one is red."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.trust.repeat import Run, judged

ROOT = Path(__file__).parents[2]

OUTPUT = """\
SKIPPED [1] tests/unit/test_host_state.py:250: 4.19 has no pressure/memory
1466 passed, 1 skipped in 92.87s (0:01:32)
FAILED tests/live/test_check.py::test_beside_a_daemon - AssertionError: x
ERROR tests/live/test_exe.py::test_it
====== 1 failed, 98 passed, 2 skipped in 301.22s (0:05:01) ======
make[1]: *** [Makefile:97: live] Error 1
"""


def test_what_failed_is_named() -> None:
    """Tests by their names; where none failed, the target of make that did."""
    run = judged(3, 2, 2, 400.4, OUTPUT)
    failed = ("tests/live/test_check.py::test_beside_a_daemon", "tests/live/test_exe.py::test_it")
    assert run == Run(3, 2, 2, 400.4, 1564, failed)
    assert run.row().startswith("| 3 | 2 | 400 s | 1564 | exit 2: tests/live/test_check.py::")
    assert judged(1, 0, 2, 1.0, OUTPUT.splitlines()[-1]).failed == ("make live",)


@pytest.mark.slow
@pytest.mark.needs("git")
@pytest.mark.parametrize(("command", "code"), [("test -e Makefile", 0), ("exit 3", 1)])
def test_each_run_has_a_clone_of_its_own(tmp_path: Path, command: str, code: int) -> None:
    """What one run leaves behind is not there in the next; one red run is exit 1."""
    words = [sys.executable, "-m", "tests.trust.repeat", "--runs", "2", "--hogs", "1"]
    words += ["--command", f"test ! -e left && touch left && {command}"]
    words += ["--logs", str(tmp_path / "logs"), "--directory", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    assert f"{0 if code else 2} of 2 were green" in done.stdout
