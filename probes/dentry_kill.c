/*
 * Hook: __dentry_kill(dentry), where a dentry begins to die; else dentry_free(dentry), where it ends. Of every filesystem.
 *
 * Rules (fs/dcache.c): lockref_mark_dead() has made the count of a dead dentry negative, so one that is killed with such a
 * count was killed before.  Each child holds a reference of its parent (d_alloc()) and leaves its list before it gives
 * that back (dentry_unlist() in __dentry_kill()), so a directory that is killed with children was put too often.  Cursors of
 * a directory's readers hold one, too (d_alloc_cursor()).
 * dentry_free() comes after dentry_unlink_inode(), so d_u.d_alias is empty there; d_u.d_rcu shares its words: where its
 * `func` is code of the kernel, RCU has the dentry already.
 * Invariant: one read a dentry; what is reported is the dentry, not its inode.
 */
#include "contracts.h"

#define DENTRY_LOW (OFF_D_COUNT & ~7)
#ifdef OFF_D_SUBDIRS
#define OFF_D_BELOW OFF_D_SUBDIRS /* a list_head: empty if it points at itself */
#define OFF_D_BESIDE OFF_D_CHILD
#else
#define OFF_D_BELOW OFF_D_CHILDREN /* a hlist_head since Linux 6.8: empty if NULL */
#define OFF_D_BESIDE OFF_D_SIB
#endif
#define DENTRY_BYTES (OFF_D_U + 16 - DENTRY_LOW)
#define DENTRY_IS_ONE_BLOCK                                                      \
	(OFF_D_U > DENTRY_LOW && DENTRY_BYTES <= 192 && DENTRY_BYTES % 8 == 0 && \
	 OFF_D_BELOW > DENTRY_LOW && OFF_D_BELOW < OFF_D_U)

struct dying_dentry {
	s32 count;
	u64 below;
	u64 pprev; /* d_u.d_alias.pprev, or d_u.d_rcu.func */
};

static __always_inline bool read_dying(u64 dentry, struct dying_dentry *seen)
{
#if DENTRY_IS_ONE_BLOCK
	u64 block[DENTRY_BYTES / 8];

	if (READ(block, dentry + DENTRY_LOW))
		return false;
	seen->count = *(s32 *)((void *)block + (OFF_D_COUNT - DENTRY_LOW));
	seen->below = *(u64 *)((void *)block + (OFF_D_BELOW - DENTRY_LOW));
	seen->pprev = block[DENTRY_BYTES / 8 - 1];
	return true;
#else
	return !READ(seen->count, dentry + OFF_D_COUNT) &&
	       !READ(seen->below, dentry + OFF_D_BELOW) && !READ(seen->pprev, dentry + OFF_D_U + 8);
#endif
}

static __always_inline bool has_children(u64 dentry, const struct dying_dentry *seen)
{
#ifdef OFF_D_SUBDIRS
	return seen->below != dentry + OFF_D_SUBDIRS;
#else
	return seen->below;
#endif
}

/* Whether it keeps the rules, as far as an instruction can see: for sure where it says yes. */
static __always_inline bool keeps_rules(u64 dentry, bool freeing)
{
#ifdef WORDS_TYPE
	u64 words = WORDS(dentry);
	struct dying_dentry seen = {};

	seen.below = LOAD(64, words, OFF_D_BELOW);
	if (freeing)
		seen.pprev = LOAD(64, words, OFF_D_U + 8);
	else
		seen.count = LOAD(32, words, OFF_D_COUNT);
	return seen.count >= 0 && !seen.pprev && !has_children(dentry, &seen);
#else
	return false;
#endif
}

static __always_inline bool is_kernel_code(u64 address)
{
	struct settings *config = get_settings();

	return config && config->text_start && address >= config->text_start &&
	       address < config->text_end;
}

/* `freeing`: at dentry_free(), where the count is always that of a dead one, and no list may hold it. */
static __always_inline void on_dentry(void *ctx, u64 dentry, u64 call_site, bool freeing)
{
	struct dying_dentry seen = {};
	struct suspicion why = {};
	u64 back = 0;

	count(COUNTER_DENTRY, 1);
	if (keeps_rules(dentry, freeing))
		return;
	if (!read_dying(dentry, &seen))
		return;
	if (!freeing && seen.count < 0)
		why.broken |= BROKEN_DEAD;
	if (freeing && seen.pprev)
		why.broken |= is_kernel_code(seen.pprev) ? BROKEN_QUEUED : BROKEN_ALIAS;
	if (has_children(dentry, &seen)) {
		why.broken |= BROKEN_CHILDREN;
		why.related = seen.below - OFF_D_BESIDE;
		if (!READ(back, why.related + OFF_D_PARENT) && back == dentry)
			why.flags |= RELATED_PROVEN;
	}
	if (!why.broken)
		return;
	why.verdict = why.broken & (BROKEN_DEAD | BROKEN_QUEUED) ? VERDICT_DENTRY_KILLED_TWICE
								 : VERDICT_DENTRY_KILLED_IN_USE;
	why.call_site = call_site;
	why.count = seen.count;
	why.found = seen.pprev;
	report_dentry(ctx, HOOK_DENTRY, dentry, &why);
}

#ifdef DENTRY_AT_FREE
#define DENTRY_FREEING true
#else
#define DENTRY_FREEING false
#endif

#ifdef DENTRY_FENTRY
int dentry_kill(struct bpf_raw_tracepoint_args *ctx)
{
	on_dentry(ctx, fentry_argument(ctx, 0), 0, DENTRY_FREEING);
	return 0;
}
#endif

#ifdef DENTRY_KPROBE
int dentry_kill(struct pt_regs *ctx)
{
	on_dentry(ctx, PT_REGS_PARM1(ctx), caller_of(ctx), DENTRY_FREEING);
	return 0;
}
#endif
