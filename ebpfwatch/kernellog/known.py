"""The kernel's messages that are known here, as one table for the live watcher and for triage.

Patterns are anchored at the start of a message.  Kernel lines may carry names that a user chose (a
task's, a USB device's), but those never stand at the start with a whole sentence behind them: a
comm has 15 bytes.
"""

from __future__ import annotations

import dataclasses
import enum
import re

__all__ = ["KNOWN", "KINDS", "KnownMessage", "Relation", "recognise"]


class Relation(enum.Enum):
    """What a message has to do with an ext4 inode that is freed twice."""

    PRECURSOR = "precursor"  #: the life of an inode or a dentry is damaged, seen from another side
    DAMAGE = "damage"  #: what any memory corruption leaves behind, a second free too
    PRESSURE = "pressure"  #: memory is short
    FILESYSTEM = "filesystem"
    OTHER = "other"


@dataclasses.dataclass(frozen=True)
class KnownMessage:
    """One thing the kernel may say.

    ``kind`` is the metric label; several rows may share it.  ``says`` is its meaning in one
    sentence, ``source`` the kernel code that prints it.  ``opens``: a report with registers or a
    stack follows.
    """

    kind: str
    pattern: str
    relation: Relation
    says: str
    source: str
    opens: bool = True


_P, _D, _R, _F, _O = (
    Relation.PRECURSOR,
    Relation.DAMAGE,
    Relation.PRESSURE,
    Relation.FILESYSTEM,
    Relation.OTHER,
)
# "WARNING: CPU: 2 PID: 67 at fs/dcache.c:338 f+0x24/0xa8" and, since Linux 6.18,
# "WARNING: fs/dcache.c:338 at f+0x24/0xa8, CPU#2: kswapd0/67".
_WARNING = r"WARNING: (?:CPU: \d+ PID: \d+ at \S+ |(?:\[.{0,200}\] )?\S+:\d+ at )"
_SLUB = r"BUG \S+ \([^)]*\): "

#: Order matters: the first row that matches names the message.
KNOWN = (
    KnownMessage(
        "dentry_alias",
        # The check may be inlined into its callers; other warnings of fs/dcache.c are in others.
        _WARNING + r"(?:dentry_free|__dentry_kill|shrink_kill)\b",
        _P,
        "a dentry was freed while still on its inode's list of aliases: dentry and inode no longer"
        " agree on who is alive",
        "fs/dcache.c: dentry_free(), WARN_ON(!hlist_unhashed(&dentry->d_u.d_alias))",
    ),
    KnownMessage(
        "dentry_in_use",
        r"BUG: Dentry \S+\{i=",
        _P,
        "a dentry is still in use when its filesystem goes: its count was wrong",
        "fs/dcache.c: umount_check()",
        opens=False,
    ),
    KnownMessage(
        "inode_state",
        r"kernel BUG at \S*fs/inode\.c:\d+",
        _P,
        "an inode was used or evicted in a state that forbids it, such as I_CLEAR: it was dead",
        "fs/inode.c: iput() and clear_inode(), BUG_ON(inode->i_state & I_CLEAR) and friends",
    ),
    KnownMessage(
        "inode_state",
        r"EXT4-fs \([^)]*\): Inode \d+ \(\S+\): (?:orphan list check failed|i_reserved_data)",
        _P,
        "ext4 destroyed an inode that was not finished",
        "fs/ext4/super.c: ext4_destroy_inode()",
        opens=False,
    ),
    KnownMessage(
        "already_free",
        _SLUB + r"(?:Object already free|Invalid object pointer|Object is on free-list)",
        _P,
        "the slab's own check saw an object freed that was free already",
        "mm/slub.c: free_consistency_checks()",
    ),
    KnownMessage(
        "wrong_cache",
        r"(?:cache_from_obj: |virt_to_cache: |kmem_cache_free: )?(?:Wrong slab cache\. |Object is"
        r" not a Slab page)",
        _P,
        "an object was freed into a cache that it does not belong to (any more)",
        "mm/slab.h, mm/slub.c: cache_from_obj()",
    ),
    KnownMessage(
        "slab_corruption",
        _SLUB + r"(?!Objects remaining)",
        _D,
        "a slab object was written after its free, or beyond its end",
        "mm/slub.c: check_object(), on_freelist(), check_slab()",
    ),
    KnownMessage(
        "slab_corruption",
        r"kernel BUG at \S*mm/slub\.c:\d+",
        _D,
        "the slab's free list contradicts itself; with a hardened free list this is how an object"
        " freed twice in a row is caught",
        "mm/slub.c: set_freepointer(), BUG_ON(object == fp)",
    ),
    KnownMessage(
        "list_corruption",
        r"list_(?:add|del)(?: corruption|\b.{0,40} corruption| double add)",
        _D,
        "a linked list was found broken: memory in use was handed out, or freed, under its owner",
        "lib/list_debug.c",
    ),
    KnownMessage(
        "bad_page",
        r"BUG: Bad (?:page state in process|page map in process|rss-counter state)",
        _D,
        "a page was freed or handed out while something still uses it",
        "mm/page_alloc.c: bad_page(); mm/memory.c: print_bad_pte()",
    ),
    KnownMessage(
        "kasan",
        r"BUG: KASAN: \S",
        _D,
        "the sanitizer saw an access to freed memory, or a second free, at the moment it happened",
        "mm/kasan/report.c",
    ),
    KnownMessage(
        "kfence",
        r"BUG: KFENCE: \S",
        _D,
        "a sampled object was used after its free or freed again, seen at the moment it happened",
        "mm/kfence/report.c",
    ),
    KnownMessage(
        "refcount",
        r"refcount_t: (?:underflow|addition on 0|saturated|decrement hit 0)",
        _D,
        "a reference count went wrong: somebody dropped what was not theirs",
        "lib/refcount.c: refcount_warn_saturate()",
    ),
    KnownMessage(
        "ext4_error",
        r"EXT4-fs (?:error|panic) ?\(device|EXT4-fs \([^)]*\): (?:Remounting filesystem read-only"
        r"|previous I/O error|Inode \d+ .* failed)|JBD2: .*(?:error|abort)|Aborting journal",
        _F,
        "ext4 found its disk structures wrong, or its journal aborted",
        "fs/ext4/super.c: __ext4_error()",
        opens=False,
    ),
    KnownMessage(
        "page_allocation_failure",
        r"\S.{0,40}: page allocation failure: order:\d+",
        _R,
        "the kernel could not get memory at once",
        "mm/page_alloc.c: warn_alloc()",
    ),
    KnownMessage(
        "oom",
        r"\S.{0,40} invoked oom-killer: |(?:Memory cgroup out of memory|Out of memory)\b",
        _R,
        "memory ran out and a process was killed",
        "mm/oom_kill.c",
    ),
    KnownMessage(
        "soft_lockup",
        r"(?:watchdog: )?(?:NMI watchdog: )?(?:BUG: soft lockup|Watchdog detected hard LOCKUP)",
        _O,
        "a CPU was busy in the kernel for too long",
        "kernel/watchdog.c",
    ),
    KnownMessage(
        "hung_task",
        r"INFO: task .{1,80} blocked for more than \d+ seconds",
        _O,
        "a task waits and waits, usually for a disk or a lock",
        "kernel/hung_task.c",
    ),
    KnownMessage(
        "rcu_stall",
        r"(?:rcu: )?INFO: rcu\S* (?:self-)?detected (?:stalls?|expedited stalls)",
        _O,
        "a CPU held up RCU; until it goes on no inode is freed",
        "kernel/rcu/tree_stall.h",
    ),
    KnownMessage(
        "hardware",
        r"mce: \[Hardware Error\]|\[Hardware Error\]|\{\d+\}\[Hardware Error\]|EDAC \S+: \d+ [CU]E"
        r"|SError Interrupt on CPU|Machine check events logged"
        r"|mce: .*(?:Machine Check|Uncorrected)",
        _O,
        "the hardware reports a fault of its own",
        "arch/x86/kernel/cpu/mce, drivers/edac, drivers/acpi/apei/ghes.c",
        opens=False,
    ),
    KnownMessage(
        "io_error",
        r"(?:blk_update_request: )?(?:critical \w+ error|I/O error), dev |Buffer I/O error on dev"
        r"|nvme \S+ ?: (?:I/O .{0,40}timeout|controller is down)|ata\d\S*: (?:failed command"
        r"|exception Emask)|sd \S+ \[\w+\] .*(?:FAILED Result|Medium Error)",
        _O,
        "a disk does not answer, or answers with errors",
        "block/blk-core.c, drivers/nvme/host/pci.c, drivers/ata, drivers/scsi/sd.c",
        opens=False,
    ),
    KnownMessage(
        "oops",
        r"Unable to handle kernel|BUG: unable to handle |BUG: kernel NULL pointer dereference"
        r"|(?:Oops: )?general protection fault\b.{0,80}: \d{4} \[#\d+\]",
        _O,
        "the kernel touched memory that is not there",
        "arch/arm64/mm/fault.c: die_kernel_fault(); arch/x86/mm/fault.c: show_fault_oops()",
    ),
    KnownMessage(
        "kernel_bug",
        r"kernel BUG at \S+:\d+",
        _O,
        "the kernel found a state that must not be",
        "lib/bug.c: report_bug()",
    ),
    KnownMessage(
        "warning",
        r"WARNING: (?:CPU: \d+ PID: \d+ at |\S+:\d+ at |\[)",
        _O,
        "the kernel found a state that should not be, and went on",
        "kernel/panic.c: __warn()",
    ),
    KnownMessage(
        "panic",
        r"Kernel panic - not syncing: ",
        _O,
        "the kernel gave up",
        "kernel/panic.c: panic()",
        opens=False,
    ),
)

#: Every kind once, in the table's order: the values of the metric label.
KINDS = tuple(dict.fromkeys(known.kind for known in KNOWN))

# One regular expression for all rows: a log of 100 MB has a million lines.
_ALL = re.compile("|".join(f"(?P<d{i}>{d.pattern})" for i, d in enumerate(KNOWN)))


def recognise(message: str) -> KnownMessage | None:
    """The row for a kernel message without its timestamp; None for everything ordinary."""
    found = _ALL.match(message)
    if found is None or found.lastgroup is None:
        return None
    return KNOWN[int(found.lastgroup[1:])]
