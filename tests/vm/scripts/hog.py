"""In a guest: take memory until 90 MB are available, let go, and again; for so many seconds."""

import sys
import time

END = time.time() + float(sys.argv[1])
while time.time() < END:
    hold = []
    try:
        while True:
            with open("/proc/meminfo") as file:
                if int(file.read().split("MemAvailable:")[1].split()[0]) < 90000:
                    break
            hold.append(bytearray(b"x" * (8 << 20)))
    except MemoryError:
        pass
    time.sleep(8)
    del hold
