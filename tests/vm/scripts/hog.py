"""In a guest: take memory until kswapd works, let it go, and again; for so many seconds.

The first to go when it takes too much.
"""

import sys
import time

END = time.time() + float(sys.argv[1])
LEAST_KB = 25_000


def field(path, name):
    with open(path) as file:
        return sum(int(line.split()[1]) for line in file if line.startswith(name))


with open("/proc/self/oom_score_adj", "w") as score:
    score.write("1000")
while time.time() < END:
    before = field("/proc/vmstat", "pgscan_kswapd")
    hold = []
    leave_kb = 90_000
    while time.time() < END and field("/proc/vmstat", "pgscan_kswapd") == before:
        try:
            if field("/proc/meminfo", "MemAvailable:") > leave_kb:
                hold.append(bytearray(b"x" * (4 << 20)))
                continue
        except MemoryError:
            pass
        time.sleep(0.5)
        leave_kb = max(LEAST_KB, leave_kb - 3_000)
    time.sleep(8)
    del hold
