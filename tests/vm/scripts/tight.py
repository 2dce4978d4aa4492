"""In a guest with 1 GB: starts of the daemon while 100 MB are available, with and without what an
earlier start has compiled; how long, how much memory, and whom the kernel killed meanwhile.

A process holds the rest of the memory, as what fills such a machine does, and is killed like it.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

AVAILABLE_KB = 100_000
PROGRAMS = Path("/state/state/programs")
PATIENCE = 1500.0
WORDS = [sys.executable, "-m", "ebpfwatch", "run", "--config", "/tmp/config.yaml"]


def available():
    """Kilobytes, as the kernel reckons."""
    text = Path("/proc/meminfo").read_text()
    return int(re.search(r"^MemAvailable:\s+(\d+)", text, re.MULTILINE).group(1))


def killed():
    """The names of those that the kernel ended for want of memory."""
    log = subprocess.run(["dmesg"], capture_output=True, text=True).stdout
    return re.findall(r"[Kk]illed? process \d+[, ]+\(?([\w.:/-]+)", log)


def hold():
    """Take memory until so much is left, say so, and keep it."""
    held = []
    while available() > AVAILABLE_KB:
        held.append(bytearray(b"x" * (1 << 20)))
    print("held", flush=True)
    time.sleep(1e6)


def started(name):
    """A start that is watched until it is ready or has ended."""
    from starting import Watched

    environment = {**os.environ, "PYTHONPATH": "/payload"}
    daemon = Watched(WORDS, Path(f"/tmp/log-{name}"), environment, "/payload")
    try:
        return daemon.start(PATIENCE)
    finally:
        daemon.stop()


def restarted(name):
    """The same while the memory is held; one line of figures."""
    before = len(killed())
    with subprocess.Popen([sys.executable, __file__, "hold"], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        room = available() / 1024
        start = started(name)
        victims = killed()[before:]
        holder.kill()
    ready = f"ready in {start.seconds:.1f} s" if start.seconds < PATIENCE else "not ready"
    whom = f"killed {', '.join(victims)}" if victims else "killed nobody"
    print(
        f"{name}|{ready}|{start.peak_mb:.1f} MB|{room:.0f} MiB available before|{whom}", flush=True
    )


def main():
    """What is kept comes from a first start, with all the memory there is."""
    if sys.argv[1:] == ["hold"]:
        hold()
    assert started("first").seconds < PATIENCE, "the first start was not ready"
    restarted("kept")
    shutil.rmtree(PROGRAMS)
    restarted("compiling")


main()
