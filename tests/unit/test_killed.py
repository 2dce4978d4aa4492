"""A writer that is killed at any moment leaves whole files only."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ebpfwatch.sinks import store
from ebpfwatch.system import durable
from ebpfwatch.verdicts.finding import Finding

ROOT = Path(__file__).parents[2]

_WRITER = """\
import dataclasses, itertools, sys
from pathlib import Path
from ebpfwatch.sinks.store import Store
from tests.unit.test_verdicts import judged
kept = Store(Path(sys.argv[1]), keep=20)
print("ready", flush=True)
for number in itertools.count():
    kept.write(dataclasses.replace(judged(), id=f"{sys.argv[2]}-{number:06d}", name="x" * 5000))
"""


@pytest.mark.slow
def test_kill_9_leaves_no_half_file(tmp_path: Path) -> None:
    """Six times at a random moment: every file is a whole finding, and there are at most as
    many as are kept and one that was about to go; what was being written goes at the next start.
    """
    rng = random.Random(5)
    for number in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, tmp_path, f"{number:02d}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0, 0.15))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        names = os.listdir(tmp_path / "findings")
        whole = [name for name in names if not name.startswith(durable.PREFIX)]
        assert len(whole) <= 21 and len(names) - len(whole) <= 1
        for name in whole:
            Finding.from_json(json.loads((tmp_path / "findings" / name).read_text()))
    assert len(whole) > 5
    store.Store(tmp_path, keep=20)
    assert not list((tmp_path / "findings").glob(f"{durable.PREFIX}*"))
