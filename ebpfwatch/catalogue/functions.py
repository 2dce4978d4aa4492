"""The kernel's function names that a stack is read by, one table for all who read one.

Names are those of Linux 4.19 to 6.18.  Stacks of live kernels and of dead machines' logs are read
by the same rows.
"""

from __future__ import annotations

import re

__all__ = [
    "EXT4_MODULES",
    "INODE_FREERS",
    "RCU_CALLBACKS",
    "RELEASE",
    "SOFTIRQ_ENTRY",
    "TRACERS",
]

#: Modules that are part of every ext4 inode's ordinary death.
EXT4_MODULES = frozenset({"ext4", "jbd2", "mbcache"})

#: RCU callbacks that free an inode; nothing but RCU calls them (fs/inode.c: i_callback since 5.2;
#: fs/ext4/super.c: ext4_i_callback before it).
RCU_CALLBACKS = frozenset({"ext4_free_in_core_inode", "ext4_i_callback", "i_callback"})

#: Functions that may free an ext4 inode. On some kernels the callback tail-calls kmem_cache_free,
#: so the call site is in RCU itself.
INODE_FREERS = RCU_CALLBACKS | {
    "alloc_inode",
    "destroy_inode",
    # Where alloc_inode() is part of its callers (fs/inode.c):
    "iget_locked",
    "iget5_locked",
    "new_inode",
    "new_inode_pseudo",
    "rcu_do_batch",
    "rcu_process_callbacks",
}

#: How an inode is let go, from vfs_unlink() and iput() down to the slab: who calls into this makes
#: the call itself.
RELEASE = re.compile(
    r"(__)?ext4_\w+|i_callback|destroy_inode|evict|iput(_final)?|dispose_list|kmem_cache_free\w*"
    r"|__kmem_cache_free|kfree|call_rcu\w*|__call_rcu\w*|clear_inode|truncate_inode_pages\w*|vfs_unlink"
)

#: What a tracer puts in a return address's place, so that it sees the return: function_graph,
#: kretprobes and rethook, fexit and other BPF trampolines, ftrace's own. The caller is behind it.
TRACERS = re.compile(
    r"return_to_handler|(__)?kretprobe_trampoline|arch_rethook_trampoline|bpf_trampoline_\w+"
    r"|ftrace_(graph_)?(caller|call|regs_caller|regs_call|trampoline|stub)\w*"
)

#: From here outwards a stack is the kernel's entry into a softirq or an interrupt, and then what
#: was interrupted.  RCU's own threads have rcu_do_batch outermost, so the cut costs nothing there.
SOFTIRQ_ENTRY = re.compile(
    r"__do_softirq|do_softirq|handle_softirqs|__softirqentry_text_start|rcu_do_batch"
    r"|rcu_process_callbacks|rcu_core(_si)?|__irq_exit_rcu|irq_exit(_rcu)?|run_ksoftirqd"
    r"|el1h?(_64)?_irq\w*|gic_handle_irq|(__)?handle_domain_irq|generic_handle_\w+"
    r"|asm_(sysvec|common_interrupt)\w*|common_interrupt|sysvec_\w+|do_IRQ"
)
