/*
 * The contract between the probes and user space: every struct that crosses the border, and the
 * numbers in it.  ebpfwatch/events/wire.py mirrors it; tests/unit/test_wire.py compiles this file
 * with cc and compares every size and offset.
 *
 * Invariant: fixed-width members only, no implicit padding, no pointer.
 */
#ifndef EBPFWATCH_CONTRACT_H
#define EBPFWATCH_CONTRACT_H

/* The roles of the hook ladder, in the order of an object's life. */
enum hook {
	HOOK_ALLOC,
	HOOK_UNLINK,
	HOOK_EVICT,
	HOOK_DESTROY,
	HOOK_RCU_FREE,
	HOOK_ANY_FREE,
	HOOK_RECLAIM,
	HOOK_UNLINK_PATH,
	HOOK_COUNT,
};

/* Absent means alive: only dying and dead objects are in the table. */
enum state {
	STATE_ABSENT,
	STATE_EVICTING,
	STATE_QUEUED,
	STATE_FREED,
};

enum verdict {
	VERDICT_NONE,
	VERDICT_DOUBLE_DESTROY,
	VERDICT_DOUBLE_EVICT,
	VERDICT_DOUBLE_FREE,
	VERDICT_FREE_WHILE_ALIVE,
	VERDICT_FOREIGN_FREE,
	VERDICT_IDENTITY_CHANGED,
	VERDICT_FREED_IN_RECLAIM,
	VERDICT_CONCURRENT_UNLINK,
};

enum record_kind {
	RECORD_STEP = 1,    /* one step of the canary's own inode */
	RECORD_VERDICT = 2, /* something that should not happen */
	RECORD_UNLINK = 3,  /* one unlink system call, for `ebpfwatch unlinks` */
};

/* Totals, one slot each in the per-CPU array `counters`. */
enum counter {
	COUNTER_ALLOC,
	COUNTER_UNLINK,
	COUNTER_EVICT,
	COUNTER_EVICT_IN_RECLAIM,
	COUNTER_DESTROY,
	COUNTER_FREE,
	COUNTER_FREE_IN_RECLAIM,
	COUNTER_FREE_UNMATCHED,
	COUNTER_FREE_ABORTED,
	COUNTER_SHRINK_START,
	COUNTER_SHRINK_END,
	COUNTER_SUBMIT_LOST,
	COUNTER_FREE_MISSED,
	COUNTER_FORGOTTEN_DYING,
	COUNTER_FORGOTTEN_DEAD,
	COUNTER_RECLAIM_CONTEXT_LOST,
	COUNTER_TORN,
	COUNTER_GRACE_NS, /* sum of the time from evict to free */
	COUNTER_VERDICT,
	COUNTER_CALL_LOST, /* only in unlinks.c */
	COUNTER_SLAB_FREE, /* of any cache, where seeing one costs a trap */
	COUNTER_COUNT,
};

#define GRACE_BUCKETS 32
#define WAYS 4
#define COMM_LEN 16
#define NAME_LEN 64
#define INLINE_NAME 32 /* at least that much of a short name lies in the dentry (4.19: 32 bytes) */
#define PATH_LEN 256
#define PARENTS_MAX 8
#define PARENTS_LEN 256
#define STACK_DEPTH 32
#define FIRST_STACK_DEPTH 24

/* Lowest bits of a bucket's key, for objects are aligned: the object's state, changed at once with it. */
#define OBJECT_DEAD 1ull
#define OBJECT_QUEUED 2ull
#define OBJECT_BITS (OBJECT_DEAD | OBJECT_QUEUED)

/* life.flags */
#define LIFE_RECLAIM 1u        /* evicted inside shrink_slab */
#define LIFE_UNLINKED 2u       /* an unlink of this inode was seen */
#define LIFE_IN_FLIGHT 4u      /* ... and had not returned when it was evicted */
#define LIFE_CANARY 8u         /* our own file: every step is reported */
#define LIFE_NO_EVICT 16u      /* in the table without its eviction having been seen */
#define LIFE_SLAB_FREE_DUE 32u /* the RCU callback ran; the slab free that follows is its own */

/* note.flags */
#define NOTE_IN_FLIGHT 1u
#define NOTE_CANARY 2u
#define NOTE_SPENT 4u /* that life was evicted: the next one at this address is not meant */

/* verdict_record.flags: what the object itself said at that moment */
#define WITNESS_READ 1u      /* the fields below could be read */
#define WITNESS_CLEAR 2u     /* I_FREEING | I_CLEAR: this life was evicted */
#define WITNESS_PUBLISHED 4u /* on its superblock's list, which points back: alive */
#define WITNESS_IDENTITY 8u  /* ino_now and generation_now could be read */
#define SEAL_BROKEN 16u      /* two CPUs wrote the entry at once */
#define NOTE_VALID 32u       /* `note` is the unlink of this very inode */
#define LIFE_VALID 64u       /* `life` is this object's entry */
#define PARENTS_VALID 128u   /* the directory is still in memory: `parents` are its names */
#define PARENTS_WHOLE 256u   /* ... up to the root of the filesystem */
#define WITNESS_NO_INODE 512u /* where the link to that list was there is something else now */

struct header {
	__u16 kind;
	__u16 size;
	__u32 cpu;
	__u64 ns; /* CLOCK_MONOTONIC */
};

/* Who did a step: the task that was current. ns 0 means the step was not seen. */
struct actor {
	__u64 ns;
	__u64 caller; /* the code that called the hooked function; 0 = the hook cannot tell */
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
	__u32 unlink_pid;  /* inside ext4_unlink, of this inode: */
	__u64 inode;
};

/* The name of the task that runs on a CPU, as of a tick of the clock. */
struct task_name {
	__u64 ns;
	__u32 pid;
	__u32 reserved;
	char comm[COMM_LEN];
};

struct settings {
	__u64 call_sites[4]; /* where kmem_cache_free may be called from; all 0 = not known */
	__u32 canary_tgid;
	__u32 reserved;
	__u64 alloc_since; /* the alloc hook has been attached without a gap since then; all ones = it is off */
	__u64 strict_since; /* the same for any_free, where it is not the free itself */
	__u64 unlink_since; /* as alloc_since */
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
	__u32 count_now; /* inode.i_count */
	__u32 reclaim_pid;
	struct life life; /* the entry as it was before this step */
	struct note note;
	struct actor actor;
	__u64 stack[STACK_DEPTH];
	/* Names of the directories, innermost first: each ends in NUL, an empty one ends the list. */
	char parents[PARENTS_LEN];
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

#endif
