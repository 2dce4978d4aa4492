/*
 * Contracts: rules of the VFS that hold whenever a hook is passed.
 *
 * The object that stands there is asked, nothing is remembered, so nothing can have been forgotten.
 * docs/contracts.md has a row for each: the rule, where the kernel's source says so, and how often
 * ordinary work broke it.
 * A member that this kernel does not have has no OFF_*: that check is left out, and `ebpfwatch check`
 * says so.
 * Invariant: an object that keeps the rules costs one read, and no call of report().
 */
#include "verdict.h"

#define ALIAS_TO_DENTRY(alias) ((alias) - OFF_D_U)

/*
 * evict() (fs/inode.c): nobody can reach the inode any more.  Each dentry on i_dentry holds a reference of it
 * (d_instantiate(), dentry_unlink_inode()); an open file holds its dentry, a mapping its file.  i_dentry shares
 * its word with i_rcu, which call_rcu() writes later.
 */
#define USE_BYTES (OFF_I_MMAP + 8 - OFF_I_DENTRY)
#define IN_USE(offset) ((offset) >= OFF_I_DENTRY && (offset) + 4 <= OFF_I_MMAP + 8)
#define USE_IS_ONE_BLOCK                                                        \
	(OFF_I_MMAP > OFF_I_DENTRY && USE_BYTES <= 176 && USE_BYTES % 8 == 0 && \
	 IN_USE(OFF_I_COUNT) && IN_USE(OFF_I_WRITECOUNT))

struct use {
	u64 alias;
	u64 mapped;
	u32 count;
	s32 writers;
	u32 readers;
};

#if USE_IS_ONE_BLOCK
#define USE_AT(type, offset) (*(type *)((void *)block + ((offset) - OFF_I_DENTRY)))
#endif

static __always_inline bool read_use(u64 inode, struct use *use)
{
	use->readers = 0;
#if USE_IS_ONE_BLOCK
	u64 block[USE_BYTES / 8];

	if (READ(block, inode + OFF_I_DENTRY))
		return false;
	use->alias = block[0];
	use->mapped = USE_AT(u64, OFF_I_MMAP);
	use->count = USE_AT(u32, OFF_I_COUNT);
	use->writers = USE_AT(s32, OFF_I_WRITECOUNT);
#ifdef OFF_I_READCOUNT
#if IN_USE(OFF_I_READCOUNT)
	use->readers = USE_AT(u32, OFF_I_READCOUNT);
#else
	READ(use->readers, inode + OFF_I_READCOUNT);
#endif
#endif
	return true;
#else
	if (READ(use->alias, inode + OFF_I_DENTRY) || READ(use->count, inode + OFF_I_COUNT) ||
	    READ(use->writers, inode + OFF_I_WRITECOUNT) || READ(use->mapped, inode + OFF_I_MMAP))
		return false;
#ifdef OFF_I_READCOUNT
	READ(use->readers, inode + OFF_I_READCOUNT);
#endif
	return true;
#endif
}

/* Whether nothing leads to it, as far as an instruction can see: for sure where it says yes. */
static __always_inline bool is_unused(u64 inode)
{
#ifdef WORDS_TYPE
	u64 words = WORDS(inode);
	u64 users = LOAD(64, words, OFF_I_DENTRY) | LOAD(64, words, OFF_I_MMAP) |
		    LOAD(32, words, OFF_I_COUNT) | LOAD(32, words, OFF_I_WRITECOUNT);

#ifdef OFF_I_READCOUNT
	users |= LOAD(32, words, OFF_I_READCOUNT);
#endif
	return !users;
#else
	return false;
#endif
}

static __always_inline void check_eviction(u64 inode, struct suspicion *why)
{
	struct use use;
	u64 back = 0;

	if (is_unused(inode))
		return;
	if (!read_use(inode, &use) ||
	    !(use.alias | use.mapped | use.count | (u32)use.writers | use.readers))
		return;
	if (use.alias) {
		why->broken |= BROKEN_ALIAS;
		why->related = ALIAS_TO_DENTRY(use.alias);
		if (!READ(back, why->related + OFF_D_INODE) && back == inode) {
			why->flags |= RELATED_PROVEN;
			why->dentry = why->related;
		}
	}
	if (use.count)
		why->broken |= BROKEN_COUNT;
	if (use.writers)
		why->broken |= BROKEN_WRITERS;
	if (use.readers)
		why->broken |= BROKEN_READERS;
	if (use.mapped)
		why->broken |= BROKEN_MAPPED;
	why->writers = use.writers;
	why->found = use.count;
	why->verdict = VERDICT_EVICTED_IN_USE;
}

/*
 * do_unlinkat() and vfs_unlink() (fs/namei.c): ->unlink runs with i_rwsem of the directory and of the victim held
 * for writing.  rwsem_set_owner() writes the task into `owner`; bit 0 means readers (kernel/locking/rwsem.c; bits 1
 * and 2 are of no matter to us).  PREEMPT_RT's lock is another and has no such member.
 */
#define OWNER_FLAGS 6ull

struct unlinked {
	u64 owner;
	u64 ino;
	u32 nlink;
};

#ifdef OFF_I_RWSEM_OWNER
#define LOCK_BYTES (OFF_I_RWSEM_OWNER + 8 - OFF_I_INO)
#define LOCK_IS_ONE_BLOCK                                                             \
	(OFF_I_RWSEM_OWNER > OFF_I_INO && LOCK_BYTES <= 192 && LOCK_BYTES % 8 == 0 && \
	 OFF_I_NLINK > OFF_I_INO && OFF_I_NLINK < OFF_I_RWSEM_OWNER)
#endif

static __always_inline bool read_unlinked(u64 inode, struct unlinked *seen)
{
#ifdef WORDS_TYPE
	u64 words = WORDS(inode);

	seen->ino = LOAD(64, words, OFF_I_INO);
	seen->nlink = LOAD(32, words, OFF_I_NLINK);
	seen->owner = 0;
#ifdef OFF_I_RWSEM_OWNER
	seen->owner = LOAD(64, words, OFF_I_RWSEM_OWNER);
#endif
	return seen->ino; /* what has no number is not memory */
#elif defined(OFF_I_RWSEM_OWNER)
#if LOCK_IS_ONE_BLOCK
	u64 block[LOCK_BYTES / 8];

	if (READ(block, inode + OFF_I_INO))
		return false;
	seen->ino = block[0];
	seen->nlink = *(u32 *)((void *)block + (OFF_I_NLINK - OFF_I_INO));
	seen->owner = block[LOCK_BYTES / 8 - 1];
	return true;
#else
	return !READ(seen->ino, inode + OFF_I_INO) && !READ(seen->nlink, inode + OFF_I_NLINK) &&
	       !READ(seen->owner, inode + OFF_I_RWSEM_OWNER);
#endif
#else
	seen->owner = 0;
	return !READ(seen->ino, inode + OFF_I_INO) && !READ(seen->nlink, inode + OFF_I_NLINK);
#endif
}

/* `directory` and `victim` are what was read of them; NULL: it could not be. */
static __always_inline u32 check_unlink(const struct unlinked *directory,
					const struct unlinked *victim, u64 *found)
{
	u32 broken = 0;

#ifdef OFF_I_RWSEM_OWNER
	u64 self = bpf_get_current_task();

	if ((victim->owner & ~OWNER_FLAGS) != self) {
		broken |= BROKEN_VICTIM_LOCK;
		*found = victim->owner;
	}
	if ((directory->owner & ~OWNER_FLAGS) != self) {
		broken |= BROKEN_DIRECTORY_LOCK;
		*found = directory->owner;
	}
#endif
	if (!victim->nlink)
		broken |= BROKEN_NO_LINK;
	return broken;
}

/* What a report of another filesystem's object, or of a dentry, tells of its inode. */
static __always_inline void describe_inode(u64 inode, struct suspicion *why)
{
	if (!inode)
		return;
	if (!READ(why->ino, inode + OFF_I_INO) && !READ(why->generation, inode + OFF_I_GENERATION))
		why->flags |= WITNESS_IDENTITY;
}

/* A dentry of any filesystem that breaks a rule: who it is, then the report. */
static __always_inline void report_dentry(void *ctx, u32 hook, u64 dentry, struct suspicion *why)
{
	u64 inode = 0;

	why->object = dentry;
	why->dentry = dentry;
	why->flags |= WITNESS_READ | OBJECT_DENTRY;
	if (!READ(inode, dentry + OFF_D_INODE))
		describe_inode(inode, why);
	READ(why->super, dentry + OFF_D_SB);
	why->dev = dev_of(why->super);
	report(ctx, hook, why, NULL, 0);
}
