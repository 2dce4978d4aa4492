"""In a guest: MINUTES DIRECTORY; files, pipes and sockets made and dropped at different priorities.

Where the kernel preempts, tasks of different priority interrupt each other in the middle of the
hooked functions.
"""

import os
import socket
import sys
import time


def files(directory, name):
    """Create and unlink: an inode's whole life."""
    for i in range(100):
        os.close(os.open(f"{directory}/{name}-{i}", os.O_CREAT | os.O_WRONLY))
    for i in range(100):
        os.unlink(f"{directory}/{name}-{i}")
    return 100


def pipes(directory, name):
    """Inodes of another filesystem, through the same hooks of the VFS."""
    for _ in range(100):
        for end in os.pipe():
            os.close(end)
    return 100


def sockets(directory, name):
    """The same of a third."""
    for _ in range(100):
        for end in socket.socketpair():
            end.close()
    return 200


#: What, and how nice.
LOAD = [
    *((files, nice) for nice in (0, 0, 5, 10, 19, -10)),
    *((pipes, nice) for nice in (0, 10, -5)),
    *((sockets, nice) for nice in (0, 5)),
]


def main():
    """Print how many of each were made and dropped."""
    stop = time.monotonic() + float(sys.argv[1]) * 60
    children = []
    for number, (work, nice) in enumerate(LOAD):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.nice(nice)
            done = 0
            while time.monotonic() < stop:
                done += work(sys.argv[2], f"load-{number}")
            os.write(write, str(done).encode())
            os._exit(0)
        os.close(write)
        children.append((work.__name__, pid, read))
    made = {}
    for name, pid, read in children:
        if os.waitpid(pid, 0)[1]:
            sys.exit(f"{name}: the child failed")
        made[name] = made.get(name, 0) + int(os.read(read, 64))
    print(", ".join(f"{count} {name}" for name, count in made.items()))


main()
