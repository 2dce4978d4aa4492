"""In a guest: take memory until 90 MB are available, hold it until kswapd works, and again; for so
many seconds.
"""

import sys
import time

END = time.time() + float(sys.argv[1])


def field(path, name):
    with open(path) as file:
        return sum(int(line.split()[1]) for line in file if line.startswith(name))


while time.time() < END:
    hold = []
    try:
        while field("/proc/meminfo", "MemAvailable:") > 90000:
            hold.append(bytearray(b"x" * (8 << 20)))
    except MemoryError:
        pass
    before = field("/proc/vmstat", "pgscan_kswapd")
    time.sleep(8)
    while time.time() < END and field("/proc/vmstat", "pgscan_kswapd") == before:
        time.sleep(1)
    del hold
