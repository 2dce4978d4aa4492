"""In a guest: what ebpfwatch costs a create+unlink storm, or what the kernel's own debugging does.

The guest runs with QEMU's -icount, where time is the number of instructions: the answer is the same
on a busy machine and in another boot, and says nothing of caches, pipelines and a trap's price.
"""

import statistics
import subprocess
import sys
import time

FILES, ROUNDS = 2000, 5
EVERYTHING = ("alloc", "unlink", "evict", "destroy", "rcu_free", "any_free", "reclaim")


def storm():
    """Nanoseconds a file."""
    began = time.monotonic_ns()
    subprocess.run(["./storm", "/mnt/vdb", str(FILES)], check=True)
    return (time.monotonic_ns() - began) / FILES


def tell(name, ratios):
    """One line for tests/bench/guests.py."""
    print(f"{name}|{statistics.median(ratios):.4f}|{min(ratios):.4f}..{max(ratios):.4f}")


def watched(session, roles):
    """The ratio of storms with these roles attached to storms with nothing, in turn."""
    ratios = []
    for _ in range(ROUNDS):
        without = storm()
        for role in roles:
            session.links.attach(role)
        ratios.append(storm() / without)
        session.links.detach()
    return ratios


def main():
    """``alone``: only the storm, on a kernel that was booted with something of its own."""
    storm()
    print(f"us|{statistics.median(storm() for _ in range(ROUNDS)) / 1000:.2f}|")
    if sys.argv[1:] == ["alone"]:
        return
    from ebpfwatch.kernel.pending import start_loader
    from ebpfwatch.kernel.protocol import LoadRequest
    from ebpfwatch.kernel.session import load

    request = LoadRequest(
        "ebpfwatch.c",
        alloc="auto",
        any_free="always",
        table_slots=32768,
        note_slots=4096,
        ring_bytes=262144,
        mounts=("/mnt/vdb",),
        attach=False,
        verbose=True,
    )
    session = load(start_loader(request))
    for hook in session.loaded.hooks:
        print(f"hook {hook.role}: {hook.name or 'absent'}", file=sys.stderr)
    tell("ebpfwatch", watched(session, EVERYTHING))
    tell("ebpfwatch, any_free: false", watched(session, EVERYTHING[:-2]))
    session.close()


main()
