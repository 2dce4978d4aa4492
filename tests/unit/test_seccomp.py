"""The filter of system calls: what is refused, and what goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ebpfwatch.system.seccomp import REFUSED, confine

ROOT = Path(__file__).parents[2]

SCRIPT = """
import ctypes, json, os, subprocess, sys, threading
from ebpfwatch.system.seccomp import confine
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)
why = confine(sys.argv[1] == "starts")
def errno_of(call, *words):
    ctypes.set_errno(0)
    return 0 if getattr(libc, call)(*words) >= 0 else ctypes.get_errno()
seen = {}
def look():
    seen["mount"] = errno_of("mount", b"none", b"/nowhere", b"tmpfs", 0, None)
    seen["unshare"] = errno_of("unshare", 0)
    seen["ptrace"] = errno_of("ptrace", 0, 0, 0, 0)
    seen["setuid"] = errno_of("setuid", os.getuid())
    seen["capget"] = errno_of("capget", ctypes.create_string_buffer(8), None)
    try:
        subprocess.run(["/bin/true"], check=True)
        seen["exec"] = 0
    except OSError as error:
        seen["exec"] = error.errno
thread = threading.Thread(target=look)
thread.start()
thread.join()
status = open("/proc/thread-self/status").read()
print(json.dumps({"why": why, "again": confine(False), "mode": "Seccomp:\t2" in status, **seen}))
"""


def confined(word: str) -> dict[str, object]:
    """What a process of its own finds once it is confined."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, word], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.needs("seccomp")
@pytest.mark.parametrize(("word", "exec_error"), [("starts", 0), ("", 1)])
def test_what_is_refused_fails_with_eperm(word: str, exec_error: int) -> None:
    """In later threads, too; a program is started only where the configuration has one."""
    found = confined(word)
    assert found["why"] == found["again"] == "" and found["mode"]
    assert [found[name] for name in ("mount", "unshare", "ptrace", "setuid")] == [1] * 4
    assert found["exec"] == exec_error


@pytest.mark.needs("seccomp")
def test_every_name_is_a_system_call() -> None:
    """A name that libseccomp does not know would refuse nothing; those of one architecture are."""
    import seccomp

    unknown = [name for name in REFUSED if seccomp.resolve_syscall(seccomp.Arch(), name) == -1]
    assert unknown == []


def test_without_the_binding_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the package that helps; and under a filter of systemd's it adds none."""
    monkeypatch.setitem(sys.modules, "seccomp", None)
    (tmp_path / "status").write_text("Name:\tx\nSeccomp:\t0\n")
    assert "apt-get install python3-seccomp" in confine(True, tmp_path / "status")
    (tmp_path / "status").write_text("Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n")
    assert confine(True, tmp_path / "status") == ""


def test_the_unit_refuses_them_too() -> None:
    """Its own filter: @system-service without the groups that these are in."""
    unit = (ROOT / "deploy/ebpfwatch.service").read_text()
    for group in ("@mount", "@module", "@debug", "@keyring", "@clock", "@reboot", "@setuid"):
        assert group in unit
