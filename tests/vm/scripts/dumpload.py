"""In a guest: DIRECTORY SECONDS; every sort of reference to files and names, made and dropped."""

import array
import contextlib
import ctypes
import mmap
import os
import socket
import sys
import time

ROOT = sys.argv[1]
STOP = time.monotonic() + float(sys.argv[2])


def churn(number):
    """Create, link, rename, read, unlink; directories, links, deleted files held open."""
    top = f"{ROOT}/tree/{number}"
    os.makedirs(top, exist_ok=True)
    kept = []
    while time.monotonic() < STOP:
        os.chdir(top)
        for i in range(60):
            os.makedirs(f"d{i % 7}/e{i % 5}", exist_ok=True)
            with open(f"d{i % 7}/e{i % 5}/f{i}", "w") as file:
                file.write("x" * 100)
            os.link(f"d{i % 7}/e{i % 5}/f{i}", f"l{i}")
            os.symlink("nowhere", f"s{i}")
            kept.append(open(f"l{i}"))
            with contextlib.suppress(OSError):
                os.stat(f"missing{i}")
        for i in range(60):
            os.rename(f"l{i}", f"m{i}")
            os.unlink(f"m{i}")
            os.unlink(f"s{i}")
            os.unlink(f"d{i % 7}/e{i % 5}/f{i}")
        while len(kept) > 100:
            kept.pop(0).close()
        for name in os.listdir("."):
            with contextlib.suppress(OSError):
                os.removedirs(name)


def reader(_):
    """The system's own files, so that there are dentries by the ten thousand."""
    while time.monotonic() < STOP:
        for top in ("/usr", "/etc", "/var", "/sys", "/proc", ROOT):
            for where, _, files in os.walk(top):
                for name in files[:20]:
                    with contextlib.suppress(OSError):
                        os.stat(f"{where}/{name}")
            time.sleep(0.5)


def holder(_):
    """Mapped files, sockets with a name, files on their way through a socket, watched inodes."""
    os.makedirs(f"{ROOT}/held", exist_ok=True)
    os.chdir(f"{ROOT}/held")
    libc = ctypes.CDLL(None)
    watch = libc.inotify_init()
    kept = []
    for i in range(50):
        with open(f"mapped{i}", "w+b") as file:
            file.truncate(4096)
            kept.append(mmap.mmap(file.fileno(), 4096))
        libc.inotify_add_watch(watch, f"mapped{i}".encode(), 2)
        named = socket.socket(socket.AF_UNIX)
        named.bind(f"socket{i}")
        named.listen()
        kept.append(named)
        ours, theirs = socket.socketpair()
        with open(f"mapped{i}") as file:
            ours.sendmsg(
                [b"x"],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()]))],
            )
        kept += [ours, theirs]
    while time.monotonic() < STOP:
        time.sleep(1)


for number, work in enumerate((churn, churn, reader, holder)):
    if os.fork() == 0:
        work(number)
        os._exit(0)
