"""In a guest: DIRECTORY; the whole chain, from a dput() too many to an innocent inode freed twice.

Each of several directories has two children, open on one CPU each, and loses a reference that it
should have kept (causes.ko, dirs_put). All are deleted while they are open. Then both CPUs close
at once: the first child's end kills the directory, the second's kills it again, so that its
rcu_head is queued on both CPUs and their lists of callbacks share a tail. What each CPU closes
next are deleted files: innocent inodes, whose callbacks are queued behind it.
"""

import ctypes
import mmap
import os
import resource
import sys
import time

DIRECTORIES, INNOCENTS = 20, 30
top = sys.argv[1]
#: Directories that each CPU has arrived at.
arrived = mmap.mmap(-1, mmap.PAGESIZE)
counters = (ctypes.c_uint64 * 2).from_buffer(arrived)


def opened(cpu, number):
    """A child of the directory, and innocent files."""
    names = [f"{top}/dir{number}/{cpu}"]
    names += [f"{top}/innocent-{number}-{cpu}-{i}" for i in range(INNOCENTS)]
    return [(name, os.open(name, os.O_CREAT | os.O_RDWR)) for name in names]


def close_all(cpu, files):
    """Together with the other CPU, one directory after another."""
    os.sched_setaffinity(0, {cpu})
    for number, directory in enumerate(files, 1):
        counters[cpu] = number
        while counters[1 - cpu] < number:
            pass
        for _, file in directory:
            os.close(file)
        time.sleep(0.05)


def main():
    """Prints when both began to close, CLOCK_MONOTONIC ns."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    for number in range(1, DIRECTORIES + 1):
        os.mkdir(f"{top}/dir{number}")
    files = [[opened(cpu, n) for n in range(1, DIRECTORIES + 1)] for cpu in (0, 1)]
    print("opened", flush=True)
    sys.stdin.readline()  # the module has looked the directories up
    for directory in (directory for of_cpu in files for directory in of_cpu):
        for name, _ in directory:
            os.unlink(name)
    for number in range(1, DIRECTORIES + 1):
        os.rmdir(f"{top}/dir{number}")
    print("deleted", flush=True)
    sys.stdin.readline()  # the mistake has been made
    if os.fork() == 0:
        for directory in files[0]:
            for _, file in directory:
                os.close(file)  # the copies of the other process's: no last reference
        close_all(1, files[1])
        os._exit(0)
    for directory in files[1]:
        for _, file in directory:
            os.close(file)
    time.sleep(1)
    print("closing", time.monotonic_ns(), flush=True)
    close_all(0, files[0])
    os.wait()


main()
