"""What unprivileged users choose (names of files, of tasks, of mount points) on every way out.

Real files, a real mount, a real task name; through the loaded programs and the real daemon to log,
journal line, files, metrics, page, `report` and `unlinks`.
"""

from __future__ import annotations

import ctypes
import html.parser
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpfwatch.commands.selftest import double_free, open_playback
from ebpfwatch.events.wire import text
from ebpfwatch.system.lock import running_daemon
from ebpfwatch.text.printable import printable
from tests.live.conftest import ROOT, DaemonProcess, command
from tests.live.harness import PATIENCE, loop_ext4, selftest, until, watching

NAMES = (
    b"\x1b[2J\x1b]0;owned\x07\x1b[31mred",
    b"two\nlines\r\n<2>ebpfwatch: forged",
    b"</td><script>alert(1)</script>",
    b'\' onmouseover=alert(1) "x="',
    "\u202egpj.exe\u2066\u200b".encode(),
    "\u2028\u2029\x85\u061c".encode(),
    b"\xff\xfe\xc3( broken UTF-8 \xed\xa0\x80",
    b'{"verdict": "none"}, \\u001b[0m $(reboot) `id`',
    b"%s%n%x \\x1b[0m",
    b"A" * 255,
)
COMM = b"\x1b[1m\n<b>x\xff"
_PR_SET_NAME = 15


def unsafe(shown: str) -> list[str]:
    """Lines that could do more than be read."""
    return [line for line in shown.split("\n") if line != printable(line)]


class Tags(html.parser.HTMLParser):
    """What elements and handlers a page has."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.seen.update(name for name, _ in attrs if name.startswith("on"))


@pytest.fixture
def named() -> Iterator[None]:
    """This task under a hostile name: it is who unlinks and frees."""
    libc = ctypes.CDLL(None)
    before = Path("/proc/self/comm").read_bytes().strip()
    libc.prctl(_PR_SET_NAME, ctypes.c_char_p(COMM), 0, 0, 0)
    yield
    libc.prctl(_PR_SET_NAME, ctypes.c_char_p(before), 0, 0, 0)


def test_hostile_names_reach_every_sink_as_text(daemon: DaemonProcess, named: None) -> None:
    """Ten findings by a hostile task about hostile names: whole in the data, escaped for people."""
    bed = open_playback(running_daemon(daemon.run_directory))
    for number, name in enumerate(NAMES):
        bed.inode.ino, bed.inode.name = 1000 + number, name[:63]
        double_free(bed)
    daemon.wait_findings(len(NAMES))
    findings = daemon.state / "findings"
    # Counted is not yet written: the disk has a thread of its own.
    until(lambda: len(list(findings.glob("*.json"))) >= len(NAMES), daemon.log.read_text)
    bodies = [json.loads(file.read_bytes()) for file in findings.glob("*.json")]
    bodies.sort(key=lambda body: int(body["ns"]))
    assert [body["name"] for body in bodies] == [text(name[:63]) for name in NAMES]
    assert {body["second"]["comm"] for body in bodies} == {text(COMM)}
    for file in findings.glob("*.json"):
        assert file.stat().st_mode & 0o077 == 0
        assert file.read_text(encoding="ascii").count("\n") == 1
    lines = daemon.out.read_text(encoding="ascii").splitlines()
    assert len(lines) in (0, len(NAMES)) and all(json.loads(line) for line in lines)
    assert unsafe(daemon.log.read_text()) == []
    for words in (["report"], ["report", "--json"]):
        done = command(*words, "--tests", "--state-directory", daemon.state)
        assert done.returncode == 0 and unsafe(done.stdout) == []
        assert done.stderr == ""
    with urllib.request.urlopen(f"{daemon.url}/") as answer:
        page = answer.read().decode()
    assert not Tags(page).seen & {"script", "b", "onmouseover", "img", "iframe"}
    assert unsafe(page) == []
    assert_exposition(daemon)


def assert_exposition(daemon: DaemonProcess) -> str:
    """/metrics as Prometheus reads it: promtool is content, and every line is one of the format."""
    with urllib.request.urlopen(f"{daemon.url}/metrics") as answer:
        exposed = str(answer.read(), "utf-8")
    form = re.compile(r'# (HELP|TYPE) .*|\w+(\{(\w+="([^"\\]|\\.)*",?)*\})? \S+')
    assert [line for line in exposed.splitlines() if not form.fullmatch(line)] == []
    assert "owned" not in exposed and "alert(" not in exposed
    return exposed


def test_a_hostile_mount_point_costs_no_scrape(tmp_path: Path) -> None:
    """A mount point with quotes, an escape sequence, a newline and broken UTF-8 in its name."""
    with loop_ext4(tmp_path, 32 << 20) as plain_mount:
        hostile = os.fsencode(tmp_path) + b'/m"\n\x1b[31m\xff\\<i>'
        os.mkdir(hostile)
        subprocess.run(["umount", plain_mount], check=True)
        subprocess.run([b"mount", b"-o", b"loop", tmp_path / "image", hostile], check=True)
        try:
            with watching(tmp_path) as daemon:
                daemon.wait_proven()
                exposed = assert_exposition(daemon)
                assert "canary" in exposed and "<i>" in exposed
                with urllib.request.urlopen(f"{daemon.url}/") as answer:
                    assert "i" not in Tags(answer.read().decode()).seen
                assert unsafe(daemon.log.read_text()) == []
                assert selftest(daemon).returncode == 0
                done = command("check")
                assert "Traceback" not in done.stderr and unsafe(done.stdout) == []
        finally:
            subprocess.run([b"umount", hostile], check=True)
            subprocess.run(["mount", "-o", "loop", tmp_path / "image", plain_mount], check=True)


def test_unlinks_shows_hostile_files_as_text(ext4: Path, named: None) -> None:
    """Real files of real names: one line each, nothing in it that moves a cursor."""
    directory = ext4 / "hostile"
    directory.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "ebpfwatch", "unlinks", "--pid", str(os.getpid()), "--seconds", "6"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    head = process.stdout.readline()
    for name in NAMES:
        path = os.path.join(os.fsencode(directory), name.replace(b"/", b"|"))
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        os.unlink(path)
    shown, errors = process.communicate(timeout=PATIENCE)
    directory.rmdir()
    lines = (head + shown).decode("utf-8").split("\n")
    assert unsafe("\n".join(lines)) == [] and b"Traceback" not in errors
    assert len([line for line in lines if "/hostile/" in line]) == len(NAMES)
