"""What a hostile user runs: programs of the standard library alone, started by that user.

They are handed over as text, because the user may not be able to read this repository.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "CROWD",
    "FILLER",
    "FLOOD",
    "GUESSER",
    "NAME",
    "RACES",
    "SCRAPER",
    "THIEF",
    "crash_as",
    "resident",
    "run_as",
    "user",
]

NAME = "ebpfwatch-hostile"
_PYTHON = "/usr/bin/python3"

#: HOST PORT COUNT: connections that say nothing, that send a byte a second, that ask and do not
#: read, a third each; a closed one is replaced at once.
CROWD = """
import select, socket, sys, time
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
poll, open_ = select.poll(), {}
def connect(kind):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    s.settimeout(5)
    try:
        s.connect((host, port))
        s.send({0: b"", 1: b"G", 2: b"GET / HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n"}[kind])
    except OSError:
        s.close()
        return
    open_[s.fileno()] = s, kind
    poll.register(s, select.POLLHUP | select.POLLERR | (0 if kind == 2 else select.POLLIN))
for n in range(count):
    connect(n % 3)
print("there", flush=True)
tick = time.monotonic()
while True:
    for fd, _ in poll.poll(200):
        poll.unregister(fd)
        s, kind = open_.pop(fd)
        s.close()
        connect(kind)
    while len(open_) < count:
        n = len(open_)
        connect(n % 3)
        if len(open_) == n:
            break
    if time.monotonic() - tick > 1:
        tick = time.monotonic()
        for s, kind in list(open_.values()):
            try:
                kind == 1 and s.send(b"G")
            except OSError:
                pass
"""

#: HOST PORT: wrong passwords without a pause, eight at a time.
GUESSER = """
import base64, socket, sys, threading
host, port = sys.argv[1], int(sys.argv[2])
def guess(thread):
    number = 0
    while True:
        number += 1
        word = base64.b64encode(b"prometheus:guess %d %d" % (thread, number)).decode()
        try:
            with socket.create_connection((host, port), 30) as s:
                head = f"GET /metrics HTTP/1.0\\r\\nAuthorization: Basic {word}\\r\\n\\r\\n"
                s.sendall(head.encode())
                while s.recv(65536):
                    pass
        except OSError:
            pass
for thread in range(8):
    threading.Thread(target=guess, args=(thread,), daemon=True).start()
print("there", flush=True)
threading.Event().wait()
"""

#: HOST PORT: whole scrapes without a pause.
SCRAPER = """
import socket, sys
host, port = sys.argv[1], int(sys.argv[2])
print("there", flush=True)
while True:
    try:
        with socket.create_connection((host, port), 10) as s:
            s.sendall(b"GET /metrics HTTP/1.0\\r\\n\\r\\n")
            while s.recv(65536):
                pass
    except OSError:
        pass
"""

#: DIRECTORY: every block that there is, and every one that becomes free.
FILLER = """
import os, sys, time
fd = os.open(f"{sys.argv[1]}/full", os.O_CREAT | os.O_WRONLY)
size, told = 1 << 20, False
while True:
    try:
        os.write(fd, b"x" * size)
    except OSError:
        if size > 1:
            size //= 2
            continue
        os.fsync(fd)
        if not told:
            print("there", flush=True)
            told = True
        time.sleep(0.01)
        size = 4096
"""

#: DIRECTORY SECONDS: files made, linked, renamed and unlinked by four tasks at once.
RACES = """
import os, sys, time
place, end = sys.argv[1], time.monotonic() + float(sys.argv[2])
os.close(os.open(f"{place}/there", os.O_CREAT | os.O_WRONLY))
os.unlink(f"{place}/there")
print("there", flush=True)
for _ in range(3):
    if os.fork() == 0:
        break
number = 0
while time.monotonic() < end:
    number += 1
    a, b, c = (f"{place}/{name}{number % 8}" for name in "abc")
    for what in (lambda: os.close(os.open(a, os.O_CREAT | os.O_WRONLY)), lambda: os.link(a, b),
                 lambda: os.rename(b, c), lambda: os.unlink(a), lambda: os.unlink(c),
                 lambda: os.close(os.open(place, os.O_TMPFILE | os.O_WRONLY))):
        try:
            what()
        except OSError:
            pass
"""

#: DIRECTORY: renames whatever appears in a directory of his own, as fast as he can.
THIEF = """
import os, sys
place, got = sys.argv[1], 0
os.listdir(place)
print("there", flush=True)
while True:
    for name in os.listdir(place):
        if "canary" in name:
            try:
                os.rename(f"{place}/{name}", f"{place}/stolen-{got}")
                got += 1
            except OSError:
                pass
"""

#: In a user namespace of his own: a line of the kernel's log for each mount option that is none.
FLOOD = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
uid = os.getuid()
if libc.unshare(0x10000000 | 0x20000) != 0:  # CLONE_NEWUSER | CLONE_NEWNS
    print("not allowed", flush=True)
    raise SystemExit
with open("/proc/self/uid_map", "w") as file:
    file.write(f"0 {uid} 1")
print("there", flush=True)
while True:
    libc.mount(b"x", b"/", b"tmpfs", 0, b"uuuu")
"""

_CRASH = """
import ctypes, sys
ctypes.CDLL(None).prctl(15, ctypes.c_char_p(sys.argv[1].encode()), 0, 0, 0)
ctypes.string_at(8)
"""


@contextlib.contextmanager
def user() -> Iterator[str]:
    """A user of no rights, made for this and gone afterwards."""
    subprocess.run(
        ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", NAME],
        check=True,
    )
    try:
        yield NAME
    finally:
        subprocess.run(["userdel", NAME], check=True, capture_output=True)


@contextlib.contextmanager
def run_as(name: str, program: str, *words: object) -> Iterator[subprocess.Popen[bytes]]:
    """The program at work, by that user; killed with its children at the end."""
    process = subprocess.Popen(
        [_PYTHON, "-c", program, *map(str, words)],
        user=name,
        group=name,
        extra_groups=[],
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == b"there\n"
        yield process
    finally:
        subprocess.run(["kill", "-KILL", "--", f"-{process.pid}"], capture_output=True)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def crash_as(name: str, task: str) -> None:
    """A task of that name crashes: the kernel's line about it begins with the name."""
    subprocess.run(
        [_PYTHON, "-c", _CRASH, task], user=name, group=name, extra_groups=[], cwd="/", check=False
    )


def resident(pid: int) -> int:
    """Resident bytes of a process."""
    statm = Path(f"/proc/{pid}/statm").read_text()
    return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")
