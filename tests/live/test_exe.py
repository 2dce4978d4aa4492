"""`evidence.exe`: the executable of another user's process, with CAP_SYS_PTRACE and without."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ebpfwatch.sinks import store
from ebpfwatch.system.lock import running_daemon
from ebpfwatch.system.privileges import CAPABILITIES
from ebpfwatch.text.records import to_json
from tests.live.conftest import ROOT, DaemonProcess
from tests.live.harness import until, watching

#: Plays the self-test's history as its own, and lives on until told: a verdict asks who it is.
CRIMINAL = """
import json, sys
from ebpfwatch.commands.selftest import double_free, open_playback
from ebpfwatch.system.lock import Running
double_free(open_playback(Running(**json.loads(sys.stdin.readline()))))
print("done", flush=True)
sys.stdin.readline()
"""
NOBODY = 65534


@contextlib.contextmanager
def crime_of_nobody(daemon: DaemonProcess) -> Iterator[int]:
    """A double free by a process of another user, who has what running the programs takes."""
    powers = ",".join(f"+{name}" for name in ("sys_admin", "bpf", "perfmon", "dac_read_search"))
    words = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    words += [f"--inh-caps={powers}", f"--ambient-caps={powers}", sys.executable, "-c", CRIMINAL]
    with subprocess.Popen(
        words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(to_json(running_daemon(daemon.run_directory))) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"
        assert f"Uid:\t{NOBODY}\t" in Path(f"/proc/{process.pid}/status").read_text()
        yield process.pid
        process.stdin.close()


def told_exe(daemon: DaemonProcess) -> str:
    """The executable that a finding has of who did it."""
    with crime_of_nobody(daemon) as pid:
        (body,) = until(lambda: list(store.read_all(daemon.state)), daemon.log.read_text)
        assert body["unlinked_by"]["pid"] == pid
        assert body["unlinked_by"]["process"]["ppid"] == os.getpid()
        return str(body["unlinked_by"]["process"]["exe"])


def capabilities(daemon: DaemonProcess) -> int:
    """What the daemon still has."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    found = re.search(r"CapEff:\s+([0-9a-f]+)", status)
    assert found is not None
    return int(found.group(1), 16)


def test_with_the_capability_it_is_told(tmp_path: Path, ext4: Path) -> None:
    """Kept because configured and there; nothing is said to be lacking."""
    with watching(tmp_path, exe="true") as daemon:
        assert capabilities(daemon) >> CAPABILITIES["sys_ptrace"] & 1
        assert told_exe(daemon) == os.path.realpath(sys.executable)
        assert "CAP_SYS_PTRACE" not in daemon.log.read_text()


def test_without_the_capability_it_is_said_to_be_lacking(tmp_path: Path, ext4: Path) -> None:
    """As in the unit without the drop-in: one warning at start, and no executable."""
    wrapper = ("setpriv", "--bounding-set=-sys_ptrace")
    with watching(tmp_path, wrapper, exe="true") as daemon:
        assert not capabilities(daemon) >> CAPABILITIES["sys_ptrace"] & 1
        lines = [li for li in daemon.log.read_text().splitlines() if "CAP_SYS_PTRACE" in li]
        assert len(lines) == 1 and "evidence-exe.conf" in lines[0]
        assert told_exe(daemon) == ""


def test_not_asked_for_it_is_neither_kept_nor_missed(tmp_path: Path, ext4: Path) -> None:
    """The default: no capability, no executable, no word."""
    with watching(tmp_path) as daemon:
        assert not capabilities(daemon) >> CAPABILITIES["sys_ptrace"] & 1
        assert told_exe(daemon) == ""
        assert "CAP_SYS_PTRACE" not in daemon.log.read_text()
