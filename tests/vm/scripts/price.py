"""In a guest: what an empty program costs a create+unlink, by the rung it stands on.

The guest runs with QEMU's -icount, where time is the number of instructions: the answer is the same
on a busy machine, and says nothing about pipelines, caches and traps that real silicon has.
"""

import os
import statistics
import time

from ebpfwatch.catalogue.ladder import Attachment
from ebpfwatch.kernel.attach import attach
from ebpfwatch.loader.bpf import EXIT, PROGRAM_TYPES, Function, instruction, load_program
from ebpfwatch.loader.btf import Btf
from ebpfwatch.loader.prober import _FENTRY_ARGUMENT
from ebpfwatch.loader.running import version_code

FILES, ROUNDS = 1000, 5

#: bpf_get_func_ip, and bpf_get_stack of six frames: how a fentry program learns who called.
CALLER = (
    instruction(0xBF, dst=6, src=1)  # r6 = r1
    + instruction(0x85, imm=173)
    + instruction(0xBF, dst=1, src=6)
    + instruction(0xBF, dst=2, src=10)
    + instruction(0x07, dst=2, imm=-48)  # r2 = fp - 48
    + instruction(0xB7, dst=3, imm=48)
    + instruction(0xB7, dst=4)
    + instruction(0x85, imm=67)
    + EXIT
)

PLACES = (
    ("alloc", "fentry", "inode_init_always_gfp", _FENTRY_ARGUMENT),
    ("alloc", "kprobe", "inode_init_always_gfp", EXIT),
    ("alloc", "raw_tracepoint", "kmem_cache_alloc", EXIT),
    ("destroy", "fentry", "ext4_destroy_inode", CALLER),
    ("destroy", "kprobe", "ext4_destroy_inode", EXIT),
    ("rcu_free", "fentry", "ext4_free_in_core_inode", CALLER),
    ("rcu_free", "kprobe", "ext4_free_in_core_inode", EXIT),
    ("any_free", "raw_tracepoint", "kmem_cache_free", EXIT),
    ("any_free", "kprobe", "kmem_cache_free", EXIT),
    ("evict", "raw_tracepoint", "ext4_evict_inode", EXIT),
    ("evict", "kprobe", "ext4_evict_inode", EXIT),
)


def storm():
    """Nanoseconds a file, its RCU callbacks included as far as they fall into the storm."""
    began = time.monotonic_ns()
    for number in range(FILES):
        os.close(os.open(f"/mnt/vdb/p{number}", os.O_CREAT | os.O_WRONLY))
        os.unlink(f"/mnt/vdb/p{number}")
    return (time.monotonic_ns() - began) / FILES


def load(kind, target, code):
    """A program's fd; raises OSError."""
    function = Function(Btf().function(target)) if kind == "fentry" else None
    return load_program(PROGRAM_TYPES[kind], code, version_code(), function=function)


storm()
for role, kind, target, code in PLACES:
    program = load(kind, target, code)
    ratios = []
    for _ in range(ROUNDS):
        without = storm()
        link = attach(kind, program, Attachment(target, "price"), target)
        ratios.append(storm() / without)
        os.close(link)
    os.close(program)
    spread = f"{min(ratios):.4f}..{max(ratios):.4f}"
    print(f"{role}|{kind} {target}|{statistics.median(ratios):.4f}|{spread}")
