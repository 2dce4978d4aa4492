"""The kernel's messages that are known here, as one table for the live watcher and for triage.

Patterns are anchored at the start of a message and name more of it than a user can choose.  Kernel
lines may begin with a name that anybody chooses: a task's (15 bytes: "NAME[123]: segfault at ...")
or a network device's (15 characters without blanks: "NAME: renamed from ...").  So a row of 15
characters or less is not enough, and ``recognise`` refuses lines of these forms altogether.
"""

from __future__ import annotations

import dataclasses
import enum
import re

__all__ = [
    "DISK_ERROR",
    "KINDS",
    "KNOWN",
    "OOM_KILLED",
    "KnownMessage",
    "Relation",
    "disk_of",
    "recognise",
]


DISK_ERROR = "io_error"
#: What the line begins with that names whom the OOM killer ended (mm/oom_kill.c:
#: __oom_kill_process(); oom_kill_process() before Linux 4.20).
OOM_KILLED = ("Memory cgroup out", "Out of memory")


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
    stack follows.  ``begins``: what each such message begins with; asked first, because most
    lines of a log are none of these.
    """

    kind: str
    pattern: str
    relation: Relation
    says: str
    source: str
    begins: tuple[str, ...]
    opens: bool = True


_P, _D, _R, _F, _O = (
    Relation.PRECURSOR,
    Relation.DAMAGE,
    Relation.PRESSURE,
    Relation.FILESYSTEM,
    Relation.OTHER,
)
# "WARNING: CPU: 2 PID: 67 at fs/dcache.c:338 f+0x24/0xa8" and, since Linux 6.18,
# "WARNING: fs/dcache.c:338 at f+0x24/0xa8, CPU#2: kswapd0/67", perhaps with a condition.
_WARNING = r"WARNING: (?:(?:CPU: \d+ PID: \d+ )?at {0} |(?:\[.{{0,200}}?\] )?{0} at )"
_DCACHE = _WARNING.format(r"\S*fs/dcache\.c:\d+")
_INODE = _WARNING.format(r"\S*fs/inode\.c:\d+")
# A cache's name, before Linux 5.9 with the memory cgroup's in brackets: ext4_inode_cache(33:name).
_SLUB = r"BUG [^\s(]+(?:\(\d+:.{0,200}?\))? \((?:Not tainted|Tainted: ?[^)]*)\): "

#: Order matters: the first row that matches names the message.
KNOWN = (
    KnownMessage(
        "dentry_free",
        # The check may be inlined into its callers; other warnings of fs/dcache.c are in others.
        _DCACHE + r"(?:dentry_free|__dentry_kill|shrink_kill)\b",
        _P,
        "dentry_free() got a dentry that either had been freed already (it waits for RCU) or is"
        " still on its inode's list of aliases; the check reads a word that both use, and"
        " __dentry_kill() has just taken the dentry off that list, so a second free of the dentry"
        " is far more likely",
        "fs/dcache.c: dentry_free(), WARN_ON(!hlist_unhashed(&dentry->d_u.d_alias))",
        ("WARNING: ",),
    ),
    KnownMessage(
        "dentry_state",
        rf"{_DCACHE}|kernel BUG at \S*fs/dcache\.c:\d+"
        rf"|{_WARNING.format(r'[^ ]*lib/lockref[.]c:[0-9]+')}|kernel BUG at \S*lib/lockref\.c:\d+",
        _P,
        "a dentry was found in a state that must not be: its references were miscounted, or it was"
        " used after its end",
        "fs/dcache.c, lib/lockref.c",
        ("WARNING: ", "kernel BUG at "),
    ),
    KnownMessage(
        "dentry_in_use",
        r"BUG: Dentry \S+\{i=",
        _P,
        "a dentry is still in use when its filesystem goes: somebody got it and did not put it",
        "fs/dcache.c: umount_check()",
        ("BUG: Dentry ",),
        opens=False,
    ),
    KnownMessage(
        "inode_links",
        _INODE + r"(?:drop_nlink|inc_nlink|set_nlink|clear_nlink)\b",
        _D,
        "an inode's link count went below zero, or came back from zero: it was deleted twice, or"
        " the filesystem is damaged on the disk",
        "fs/inode.c: drop_nlink(), inc_nlink()",
        ("WARNING: ",),
    ),
    KnownMessage(
        "inode_state",
        rf"kernel BUG at \S*fs/inode\.c:\d+|{_INODE}",
        _P,
        "an inode was used or ended in a state that forbids it: its references were miscounted, or"
        " it was used after its end",
        "fs/inode.c: iput() and clear_inode(), BUG_ON(inode->i_state & I_CLEAR); ihold(),"
        " WARN_ON(atomic_inc_return(&inode->i_count) < 2)",
        ("WARNING: ", "kernel BUG at "),
    ),
    KnownMessage(
        "inode_state",
        r"EXT4-fs \([^)]*\): Inode \d+ \(\S+\): (?:orphan list check failed|i_reserved_data)",
        _P,
        "ext4 destroyed an inode that was not finished",
        "fs/ext4/super.c: ext4_destroy_inode()",
        ("EXT4-fs (",),
        opens=False,
    ),
    KnownMessage(
        "rcu_head_twice",
        r"\w*call_rcu\w*\(\): Double-freed CB |ODEBUG: \w+ \S+ \(active state \d+\).{0,60}"
        r" object type: rcu_head\b",
        _P,
        "an object was handed to RCU to be freed although it was waiting there already",
        "kernel/rcu/tree.c: __call_rcu(), debug_rcu_head_queue(); lib/debugobjects.c:"
        " debug_print_object()",
        ("__call_rcu", "call_rcu", "ODEBUG: ", "kvfree_call_rcu"),
    ),
    KnownMessage(
        "already_free",
        _SLUB + r"(?:Object already free|Invalid object pointer|Object is on free-list)",
        _P,
        "the slab's own check saw an object freed that was free already",
        "mm/slub.c: free_consistency_checks()",
        ("BUG ",),
    ),
    KnownMessage(
        "wrong_cache",
        r"(?:cache_from_obj: |virt_to_cache: |kmem_cache_free: )?(?:Wrong slab cache\. \S"
        r"|Object is not a Slab page)",
        _P,
        "an object was freed into a cache that it does not belong to (any more)",
        "mm/slab.h, mm/slub.c: cache_from_obj()",
        ("cache_from_obj", "virt_to_cache", "kmem_cache_free", "Wrong slab", "Object is not"),
    ),
    KnownMessage(
        "slab_corruption",
        _SLUB + r"(?!Objects remaining)",
        _D,
        "a slab object was written after its free, or beyond its end",
        "mm/slub.c: check_object(), on_freelist(), check_slab()",
        ("BUG ",),
    ),
    KnownMessage(
        "slab_corruption",
        r"kernel BUG at \S*mm/slub\.c:\d+",
        _D,
        "the slab's free list contradicts itself; with a hardened free list this is how an object"
        " freed twice in a row is caught",
        "mm/slub.c: set_freepointer(), BUG_ON(object == fp)",
        ("kernel BUG at ",),
    ),
    KnownMessage(
        "list_corruption",
        r"list_(?:add|del) corruption[.,] |list_add double add: new=|list_(?:add|del) corruption\b",
        _D,
        "a linked list was found broken: memory in use was handed out, or freed, under its owner",
        "lib/list_debug.c",
        ("list_add ", "list_del "),
    ),
    KnownMessage(
        "bad_page",
        r"BUG: Bad (?:page state in process|page map in process|rss-counter state|page cache in"
        r" process)",
        _D,
        "a page was freed or handed out while something still uses it",
        "mm/page_alloc.c: bad_page(); mm/memory.c: print_bad_pte()",
        ("BUG: Bad ",),
    ),
    KnownMessage(
        "kasan",
        r"BUG: KASAN: [\w-]+(?: or [\w-]+)?(?: \w+)? (?:in|on|at) \S",
        _D,
        "the sanitizer saw a wrong access, or a second free, at the moment it happened",
        "mm/kasan/report.c",
        ("BUG: KASAN: ",),
    ),
    KnownMessage(
        "kfence",
        r"BUG: KFENCE: (?:use-after-free|out-of-bounds|memory corruption|invalid)[ \w]* (?:in|at) ",
        _D,
        "a sampled object was used wrongly or freed again, seen at the moment it happened",
        "mm/kfence/report.c",
        ("BUG: KFENCE: ",),
    ),
    KnownMessage(
        "refcount",
        r"refcount_t: (?:underflow|addition on 0|increment on 0|saturated|decrement hit 0)",
        _D,
        "a reference count went wrong: somebody dropped what was not theirs",
        "lib/refcount.c: refcount_warn_saturate()",
        ("refcount_t: ",),
    ),
    KnownMessage(
        "ext4_error",
        r"EXT4-fs (?:error|panic) ?\(device|EXT4-fs \([^)]*\): (?:Remounting filesystem read-only"
        r"|previous I/O error|Inode \d+ .* failed)|JBD2: .*(?:error|abort)|Aborting journal",
        _F,
        "ext4 found its disk structures wrong, or its journal aborted",
        "fs/ext4/super.c: __ext4_error()",
        ("EXT4-fs ", "JBD2: ", "Aborting journal"),
        opens=False,
    ),
    KnownMessage(
        "page_allocation_failure",
        r"\S.{0,40}: page allocation failure: order:\d+",
        _R,
        "the kernel could not get memory at once",
        "mm/page_alloc.c: warn_alloc()",
        (),
    ),
    KnownMessage(
        "oom",
        r"\S.{0,40} invoked oom-killer: |(?:Memory cgroup out of memory|Out of memory)\b",
        _R,
        "memory ran out and a process was killed",
        "mm/oom_kill.c",
        OOM_KILLED,
    ),
    KnownMessage(
        "soft_lockup",
        r"(?:watchdog: )?(?:NMI watchdog: )?(?:BUG: soft lockup|Watchdog detected hard LOCKUP)"
        r"|BUG: workqueue lockup",
        _O,
        "a CPU was busy in the kernel for too long",
        "kernel/watchdog.c",
        ("watchdog: ", "NMI watchdog: ", "BUG: soft lockup", "Watchdog det", "BUG: workqueue l"),
    ),
    KnownMessage(
        "hung_task",
        r"INFO: task .{1,80} blocked (?:in I/O wait )?for more than \d+ seconds",
        _O,
        "a task waits and waits, usually for a disk or a lock",
        "kernel/hung_task.c",
        ("INFO: task ",),
    ),
    KnownMessage(
        "rcu_stall",
        r"(?:rcu: )?INFO: rcu\S* (?:self-)?detected (?:stalls?|expedited stalls)",
        _O,
        "a CPU held up RCU; until it goes on no inode is freed",
        "kernel/rcu/tree_stall.h",
        ("rcu: INFO: ", "INFO: rcu"),
    ),
    KnownMessage(
        "hardware",
        r"mce: \[Hardware Error\]|\[Hardware Error\]|\{\d+\}\[Hardware Error\]|EDAC \S+: \d+ [CU]E"
        r"|SError Interrupt on CPU|Machine check events logged"
        r"|mce: .*(?:Machine Check|Uncorrected|Memory error|recovery)"
        r"|Memory failure: 0x[0-9a-f]+: |(?:Internal error: |Unhandled fault: |Bad mode in .{0,40})"
        r"?synchronous (?:external abort|parity)|(?:\w+ )?\w*: ?BUS ERROR\b",
        _O,
        "the hardware reports a fault of its own",
        "arch/x86/kernel/cpu/mce, drivers/edac, drivers/acpi/apei/ghes.c, mm/memory-failure.c",
        (
            *("mce: ", "[Hardware Error]", "{", "EDAC ", "SError ", "Machine check"),
            *("Memory failure: ", "Internal error: s", "Unhandled fault: s", "synchronous "),
        ),
        opens=False,
    ),
    KnownMessage(
        DISK_ERROR,
        r"(?:blk_update_request: |print_req_error: |end_request: )?(?:critical [\w ]{1,20}|I/O"
        r"|timeout|recoverable transport|device offline|protection) error, dev "
        r"|Buffer I/O error on dev"
        r"|nvme \S+ ?: (?:I/O .{0,40}timeout|controller is down)|ata\d\S*: (?:failed command"
        r"|exception Emask)|sd \S+ \[\w+\] .*(?:FAILED Result|Medium Error)",
        _O,
        "a disk does not answer, or answers with errors",
        "block/blk-core.c, drivers/nvme/host/pci.c, drivers/ata, drivers/scsi/sd.c",
        (
            *("blk_update_request", "print_req_error", "end_request", "critical ", "I/O error"),
            *("Buffer I/O error", "nvme ", "ata", "sd ", "timeout error", "recoverable transport"),
            *("device offline error", "protection error"),
        ),
        opens=False,
    ),
    KnownMessage(
        "oops",
        r"Unable to handle kernel|BUG: unable to handle |BUG: kernel NULL pointer dereference"
        r"|(?:Oops: )?general protection fault\b.{0,80}: \d{4} \[#\d+\]",
        _O,
        "the kernel touched memory that is not there",
        "arch/arm64/mm/fault.c: die_kernel_fault(); arch/x86/mm/fault.c: show_fault_oops()",
        ("Unable to h", "BUG: unable", "BUG: kernel NULL", "Oops: general", "general protection"),
    ),
    KnownMessage(
        "kernel_bug",
        r"kernel BUG at \S+:\d+",
        _O,
        "the kernel found a state that must not be",
        "lib/bug.c: report_bug()",
        ("kernel BUG at ",),
    ),
    KnownMessage(
        "warning",
        _WARNING.format(r"\S+:\d+")
        + r"|WARNING: (?:CPU: \d+ PID: \d+ at|\[.{1,200}?\] \S+:\d+ at)",
        _O,
        "the kernel found a state that should not be, and went on",
        "kernel/panic.c: __warn()",
        ("WARNING: ",),
    ),
    KnownMessage(
        "panic",
        r"Kernel panic - not syncing: ",
        _O,
        "the kernel stopped: a panic",
        "kernel/panic.c: panic()",
        ("Kernel panic",),
        opens=False,
    ),
)

#: Every kind once, in the table's order: the values of the metric label.
KINDS = tuple(dict.fromkeys(known.kind for known in KNOWN))

# One regular expression for all rows: a log of 100 MB has a million lines.
_ALL = re.compile("|".join(f"(?P<d{i}>{d.pattern})" for i, d in enumerate(KNOWN)))
_BEGINS = tuple({word for known in KNOWN for word in known.begins})
# A task's name in front: "NAME[123]: segfault at", "NAME (123): drop_caches",
# "NAME/123: potentially unexpected fatal signal" (arch/*/mm/fault.c, kernel/signal.c). A network
# device's: "NAME: renamed from" (net/core/dev.c: dev_change_name()).
_CHOSEN_BY_USERS = re.compile(
    r".{1,15}? ?(?:\[\d+\]:? |\(\d+\): |/\d+: potentially|: renamed from "
    r"|: (?:entered|left) \w+ mode| uses )"
)


#: "I/O error, dev vdb, sector 8", "Buffer I/O error on dev vdb1, logical block 3", "sd 0:0:0:0:
#: [sda] tag#1 FAILED Result", "nvme0n1: I/O Cmd".
_DISK = re.compile(r"\bdev ([\w!-]{1,31}), |\[(\w{1,31})\]|^nvme \S+ (nvme\w{1,27}): ")


def disk_of(message: str) -> str:
    """The device that a message of the kind "io_error" is about; "" where it names none."""
    found = _DISK.search(message)
    return next(filter(None, found.groups()), "") if found else ""


def recognise(message: str) -> KnownMessage | None:
    """The row for a kernel message without its timestamp; None for everything ordinary."""
    if not message.startswith(_BEGINS):
        # Only these begin with a task's name; written out, because it is asked of each line.
        if " page allocation failure: " not in message and " invoked oom-killer: " not in message:
            return None
    found = _ALL.match(message)
    if found is None or found.lastgroup is None or _CHOSEN_BY_USERS.match(message):
        return None
    return KNOWN[int(found.lastgroup[1:])]
