/*
 * The contract between the probes and user space: every struct that crosses the border, and the
 * numbers in it.
 *
 * GENERATED from ebpfwatch/catalogue by `make contract`: change it there.
 * Invariant: fixed-width members only, no implicit padding, no pointer.
 */
/* clang-format off */
#ifndef EBPFWATCH_CONTRACT_H
#define EBPFWATCH_CONTRACT_H

/* The roles, in the order of an object's life. */
enum hook {
	HOOK_ALLOC = 0,
	HOOK_UNLINK = 1,
	HOOK_EVICT = 2,
	HOOK_DESTROY = 3,
	HOOK_RCU_FREE = 4,
	HOOK_ANY_FREE = 5,
	HOOK_RECLAIM = 6,
	HOOK_UNLINK_PATH = 7,
	HOOK_DENTRY = 8,
	HOOK_HOTPLUG = 9,
	HOOK_PUT = 10,
	HOOK_CLOSE = 11,
	HOOK_COUNT,
};

/* An object's state; absent means alive: only the dying and the dead are in the table. */
enum state {
	STATE_ABSENT = 0,
	STATE_EVICTING = 1,
	STATE_QUEUED = 2,
	STATE_FREED = 3,
};

enum verdict {
	VERDICT_NONE = 0,
	VERDICT_DOUBLE_DESTROY = 1,
	VERDICT_DOUBLE_EVICT = 2,
	VERDICT_DOUBLE_FREE = 3,
	VERDICT_FREE_WHILE_ALIVE = 4,
	VERDICT_FOREIGN_FREE = 5,
	VERDICT_IDENTITY_CHANGED = 6,
	VERDICT_FREED_IN_RECLAIM = 7,
	VERDICT_CONCURRENT_UNLINK = 8,
	VERDICT_EVICTED_IN_USE = 9,
	VERDICT_UNLOCKED_UNLINK = 10,
	VERDICT_WRITTEN_AFTER_FREE = 11,
	VERDICT_ALLOCATED_WHILE_ALIVE = 12,
	VERDICT_DENTRY_KILLED_TWICE = 13,
	VERDICT_DENTRY_KILLED_IN_USE = 14,
	VERDICT_PUT_WITHOUT_REFERENCE = 15,
	VERDICT_CLOSED_AFTER_DEATH = 16,
	VERDICT_RCU_LISTS_CROSSED = 17,
};

enum record_kind {
	/* one step of the canary's own inode */
	RECORD_STEP = 1,
	/* something that should not happen */
	RECORD_VERDICT = 2,
	/* one unlink system call, for `ebpfwatch unlinks` */
	RECORD_UNLINK = 3,
};

/* Totals, one slot each in the per-CPU array `counters`. */
enum counter {
	/* allocations seen of an address the table knew */
	COUNTER_ALLOC = 0,
	/* unlinks entered */
	COUNTER_UNLINK = 1,
	/* inodes evicted */
	COUNTER_EVICT = 2,
	/* inodes evicted inside shrink_slab */
	COUNTER_EVICT_IN_RECLAIM = 3,
	/* inodes queued for RCU */
	COUNTER_DESTROY = 4,
	/* evicted inodes freed */
	COUNTER_FREE = 5,
	/* freed inodes whose eviction was inside shrink_slab */
	COUNTER_FREE_IN_RECLAIM = 6,
	/* dead inodes freed whose eviction the table did not know */
	COUNTER_FREE_UNMATCHED = 7,
	/* inodes freed that never lived (a lost iget race, a failed allocation) */
	COUNTER_FREE_ABORTED = 8,
	/* shrink_slab calls entered */
	COUNTER_SHRINK_START = 9,
	/* shrink_slab calls left */
	COUNTER_SHRINK_END = 10,
	/* events the ring buffer had no room for */
	COUNTER_SUBMIT_LOST = 11,
	/* addresses allocated again whose free was never seen */
	COUNTER_FREE_MISSED = 12,
	/* inodes that died without their allocation having been seen, though its hook was there */
	COUNTER_ALLOC_MISSED = 13,
	/* dying inodes overwritten in a full table */
	COUNTER_FORGOTTEN_DYING = 14,
	/* dead inodes overwritten in a full table: the detection horizon */
	COUNTER_FORGOTTEN_DEAD = 15,
	/* reclaim contexts overwritten by another task */
	COUNTER_RECLAIM_CONTEXT_LOST = 16,
	/* evictions not entered because other CPUs were faster in a full bucket */
	COUNTER_TORN = 17,
	/* sum of the time from evict to free */
	COUNTER_GRACE_NS = 18,
	/* verdicts reported */
	COUNTER_VERDICT = 19,
	/* only in unlinks.c: calls whose start was not kept */
	COUNTER_CALL_LOST = 20,
	/* of any cache, where seeing one costs a trap */
	COUNTER_SLAB_FREE = 21,
	/* inodes that RCU freed on another CPU than they were queued on */
	COUNTER_RCU_OTHER_CPU = 22,
	/* dentries killed (or freed), of every filesystem */
	COUNTER_DENTRY = 23,
	/* references of inodes given back, while that hook is armed */
	COUNTER_PUT = 24,
	/* files closed, while that hook is armed */
	COUNTER_CLOSE = 25,
	COUNTER_COUNT,
};

#define GRACE_BUCKETS 32 /* frees by the time since their eviction, in powers of two */
#define WAYS 4 /* objects in a bucket */
#define COMM_LEN 16 /* TASK_COMM_LEN of linux/sched.h */
#define NAME_LEN 64 /* bytes that are kept of a name, NUL included */
#define FILESYSTEM_LEN 16 /* bytes that are kept of a filesystem's type */
#define INLINE_NAME 32 /* so much of a short name lies in the dentry (DNAME_INLINE_LEN, 4.19: 32) */
#define PATH_LEN 256 /* bytes that are kept of a path */
#define PARENTS_MAX 8 /* directories above a name */
#define PARENTS_LEN 256 /* bytes of their names */
#define STACK_DEPTH 32 /* frames of a verdict's stack */
#define OURS 8 /* files of our own that probes/learn.c waits for */
#define MOMENTS 4 /* moments that probes/specimen.h keeps: */
#define MOMENT_UNLINKED 0 /* the inode, as ext4_unlink() is entered */
#define MOMENT_DIRECTORY 1 /* its directory's inode, at the same time */
#define MOMENT_EVICTED 2 /* the inode, as ext4_evict_inode() is entered */
#define MOMENT_FREED 3 /* the inode, as its memory is freed */
#define MOMENT_BYTES 1536 /* so much of it: more than a struct inode has */
#define PEEK_BYTES 512 /* bytes that are read at once where the loader wants them */
#define FIRST_STACK_DEPTH 24 /* frames of an earlier step's stack */

/* The lowest bits of a bucket's key: the object's state, changed at once with it. */
#define OBJECT_DEAD 1ull /* it was freed */
#define OBJECT_QUEUED 2ull /* it was queued for RCU */
#define OBJECT_BITS 3ull /* all that is no address */

/* life.flags: LIFE_*. */
#define LIFE_RECLAIM 1u /* evicted inside shrink_slab */
#define LIFE_UNLINKED 2u /* an unlink of this inode was seen */
#define LIFE_IN_FLIGHT 4u /* ... and had not returned when it was evicted */
#define LIFE_CANARY 8u /* our own file: every step is reported */
#define LIFE_NO_EVICT 16u /* in the table without its eviction having been seen */
#define LIFE_SLAB_FREE_DUE 32u /* the RCU callback ran; the slab free that follows is its own */

/* note.flags: NOTE_*. */
#define NOTE_IN_FLIGHT 1u /* ext4_unlink has not returned */
#define NOTE_CANARY 2u /* our own file */
#define NOTE_SPENT 4u /* that life was evicted: the next one at this address is not meant */

/* verdict_record.flags: what the object itself said at that moment, and what is valid. */
#define WITNESS_READ 1u /* the fields below could be read */
#define WITNESS_CLEAR 2u /* I_FREEING | I_CLEAR: this life was evicted */
#define WITNESS_PUBLISHED 4u /* on its superblock's list, which points back: alive */
#define WITNESS_IDENTITY 8u /* ino_now and generation_now could be read */
#define SEAL_BROKEN 16u /* two CPUs wrote the entry at once */
#define NOTE_VALID 32u /* `note` is the unlink of this very inode */
#define LIFE_VALID 64u /* `life` is this object's entry */
#define PARENTS_VALID 128u /* the directory is still in memory: `parents` are its names */
#define PARENTS_WHOLE 256u /* ... up to the root of the filesystem */
#define WITNESS_NO_INODE 512u /* where the link to that list was there is something else now */
#define OBJECT_DENTRY 1024u /* `object` is a dentry; ino_now is its inode's, 0 if it has none */
#define NAME_NOW 2048u /* note.name and `parents` were read from a dentry at this moment */
#define RELATED_PROVEN 4096u /* `related` points back at the object */
#define LIFE_FORMER 8192u /* `life` is the former life of that address, which ended as it should */

/* verdict_record.broken: BROKEN_*: the rules that the object contradicts. */
#define BROKEN_ALIAS 1u /* a dentry still names the inode; of a dentry: it is on its inode's list */
#define BROKEN_COUNT 2u /* the number of references is not what it must be here */
#define BROKEN_WRITERS 4u /* open for writing, or denied to writers */
#define BROKEN_READERS 8u /* open for reading */
#define BROKEN_MAPPED 16u /* mapped into memory */
#define BROKEN_DIRECTORY_LOCK 32u /* the lock of directory `related` is not ours: `found` owns it */
#define BROKEN_VICTIM_LOCK 64u /* the same of the inode's own lock */
#define BROKEN_NO_LINK 128u /* no link is left */
#define BROKEN_STATE 256u /* `found` is an i_state that no dead inode has */
#define BROKEN_LISTED 512u /* on its superblock's list */
#define BROKEN_DEAD 1024u /* it was dead before */
#define BROKEN_CHILDREN 2048u /* `related` is a child of it */
#define BROKEN_QUEUED 4096u /* `found` is the function that RCU will call for it */
#define BROKEN_PARENT 8192u /* the name is not in directory `related` */

struct header {
	__u16 kind;
	__u16 size;
	__u32 cpu;
	__u64 ns; /* CLOCK_MONOTONIC */
};

/* Who did a step: the task that was current. ns 0 means the step was not seen. */
struct actor {
	__u64 ns;
	__u64 caller; /* the code that called the hooked function; 0 = not known */
	__u32 pid;
	__u32 tgid;
	__u32 cpu;
	__u32 stack; /* key in `stacks` plus one; 0 = no stack was taken */
	char comm[COMM_LEN];
};

/* One dying or dead object. */
struct life {
	__u64 seal; /* check sum over what eviction wrote */
	__u64 ino;
	__u32 generation;
	__u32 dev; /* the kernel's dev_t: major << 20 | minor */
	__u32 state;
	__u32 flags;
	__u32 nlink;
	__u32 frees;
	struct actor evicted;
	struct actor freed;
	struct actor destroyed;
};

/* One unlink, remembered by the inode's address. */
struct note {
	__u64 seal; /* check sum over what the unlink wrote */
	__u64 inode;
	__u64 parent_ino;
	__u32 flags;
	__s32 result;
	struct actor actor;
	__u64 directory; /* the dentry above; it may be gone when it is needed */
	char name[NAME_LEN];
};

/* WAYS objects whose addresses share a hash. Keys first: a miss touches one cache line. */
struct bucket {
	__u64 object[WAYS]; /* 0 = free way; else with its OBJECT_* bits */
	struct life life[WAYS];
};

/* What a task is in the middle of; the pids are 0 when nobody is. */
struct task {
	__u32 reclaim_pid; /* inside shrink_slab */
	__u32 unlink_pid; /* inside ext4_unlink, of this inode: */
	__u64 inode;
	__u32 reclaim_depth; /* what reclaims may be made to reclaim inside */
	__u32 reserved;
};

/* The name of the task that runs on a CPU, as of a tick of the clock. */
struct task_name {
	__u64 ns;
	__u32 pid;
	__u32 reserved;
	char comm[COMM_LEN];
};

/* What user space tells the programs. Times are CLOCK_MONOTONIC. */
struct settings {
	__u64 call_sites[4]; /* where kmem_cache_free may be called from; 0 = none */
	__u32 canary_tgid;
	__u32 reserved;
	__u64 alloc_since; /* attached without a gap since then; all ones = it is off */
	__u64 any_free_since; /* the same, where it is not the free itself */
	__u64 unlink_since; /* as alloc_since */
	__u64 evict_since; /* since when no eviction was missed; 0 = not known */
	__u64 text_start; /* the kernel's own code: _stext; 0 = not known */
	__u64 text_end; /* _etext */
};

struct step_record {
	struct header header;
	__u64 object;
	__u64 ino;
	__u32 generation;
	__u32 dev;
	__u32 hook;
	__u32 leaving; /* 1 = the function returns (unlink) */
	struct actor actor;
};

struct verdict_record {
	struct header header;
	__u32 verdict;
	__u32 hook;
	__u32 flags;
	__u32 stack_bytes;
	__u64 object;
	__u64 call_site;
	__u64 ino_now;
	__u32 generation_now;
	__u32 dev_now;
	__u64 state_now; /* inode.i_state */
	__s32 count_now; /* inode.i_count, or the count of a dentry */
	__u32 reclaim_pid;
	__u32 broken; /* BROKEN_* */
	__s32 writers; /* inode.i_writecount */
	__u64 related; /* the other object of a broken rule */
	__u64 found; /* the value that broke it */
	char filesystem[FILESYSTEM_LEN]; /* its type; empty = ext4 */
	struct life life; /* the entry as it was before this step */
	struct note note;
	struct actor actor;
	__u64 stack[STACK_DEPTH];
	char parents[PARENTS_LEN]; /* names, innermost first, each with its NUL */
};

struct unlink_record {
	struct header header;
	__u64 ino; /* 0 when no ext4 inode was reached */
	__u32 dev;
	__s32 result;
	__s32 dfd;
	__u32 flags; /* unlinkat's flags */
	__u32 path_bytes;
	__u32 reserved;
	struct actor actor;
	char path[PATH_LEN];
	char name[NAME_LEN];
};

/* What probes/learn.c finds out from a file of our own. */
struct learned {
	__u64 cache; /* ext4's struct kmem_cache; 0 = not learned yet */
	__u64 call_site;
	__u64 object;
	__u64 dead_state; /* i_state of an inode that was evicted */
	__u64 vfs_inode; /* where the inode lies in its object */
};

/* What such a file's inode says, while it lives and when it is evicted. */
struct testimony {
	__u64 inode;
	__u64 ino;
	__u32 generation;
	__u32 nlink;
	__u32 dev;
	__u32 state;
	__u32 count;
	__u32 listed; /* its link to the superblock's list leads back */
};

/* Where a file of the loader's own lies (probes/specimen.h). */
struct met {
	__u64 inode;
	__u64 directory; /* its inode */
	__u64 dentry;
	__u64 task;
	__u64 file; /* the last that was synced */
	__u64 cache; /* of the object that the inode lay in */
	__u64 distance; /* from that object to the inode */
};

struct moment {
	__u64 address; /* 0 = it has not come */
	char bytes[MOMENT_BYTES];
};

struct peeked {
	__u64 address;
	__u64 failed; /* 1 = nothing can be read there */
	char bytes[PEEK_BYTES];
};

#endif
