/*
 * Hooks: inode_init_always(super, inode), renamed inode_init_always_gfp in Linux 6.12: runs once for each
 * new life of an inode of any filesystem; else the raw tracepoint kmem:kmem_cache_alloc (call_site,
 * ptr, s, ...) where it has the cache argument: on every slab allocation.
 *
 * An allocation ends the memory of the address's former life.
 * Invariant: inodes are allocated in task context only (alloc_inode() sleeps: GFP_KERNEL), so a kprobe or a
 * raw tracepoint, which run with preemption off, miss none.  A fentry program does: ALLOC_MAY_MISS
 * (verdict.h).
 */
#include "contracts.h"

/*
 * The memory of a new life is dead: on no superblock's list (evict() takes it off), and, where we saw it freed, its
 * i_state is what clear_inode() left, or 0: fresh from the slab's constructor, or freed before it ever lived.
 */
/* Whether it is so, as far as an instruction can see: for sure where it says yes. */
static __always_inline bool is_dead_memory(u64 inode, u64 key)
{
#ifdef WORDS_TYPE
	u64 words = WORDS(inode);
	u64 next = LOAD(64, words, OFF_I_SB_LIST);
	u32 state = LOAD(32, words, OFF_I_STATE);

	return (!next || next == inode + OFF_I_SB_LIST) &&
	       (!(key & OBJECT_DEAD) || !state || state == DEAD_STATE);
#else
	return false;
#endif
}

static __always_inline void check_memory(void *ctx, u64 object, const struct life *life, u64 key)
{
	u64 inode = inode_of(object);
	struct suspicion why = {};

	if (is_dead_memory(inode, key))
		return;
	WHOLE(life); /* old verifiers do not connect it with the key */
	why.flags = read_witness(inode, &why.state, &why.count);
	if (!(why.flags & WITNESS_READ))
		return;
	if (why.flags & WITNESS_PUBLISHED) {
		why.verdict = VERDICT_ALLOCATED_WHILE_ALIVE;
		why.broken = BROKEN_LISTED;
	} else if (life && key & OBJECT_DEAD && why.state && why.state != DEAD_STATE) {
		why.verdict = VERDICT_WRITTEN_AFTER_FREE;
		why.broken = BROKEN_STATE;
		why.found = why.state;
	} else {
		return;
	}
	why.object = object;
	if (!READ(why.ino, inode + OFF_I_INO) && !READ(why.generation, inode + OFF_I_GENERATION))
		why.flags |= WITNESS_IDENTITY;
	READ(why.super, inode + OFF_I_SB);
	why.dev = dev_of(why.super);
	report(ctx, HOOK_ALLOC, &why, life, key);
}

static __always_inline void on_alloc(void *ctx, u64 object)
{
	struct bucket *bucket = bucket_of(object);
	struct settings *config = get_settings();
	struct life *life = NULL;
	u64 key = 0;
	u32 way;

	if (!bucket)
		return;
	way = find_way(bucket, object);
	if (way != NO_WAY) {
		life = life_in(bucket, way);
		key = key_of(bucket, way, object);
	}
	check_memory(ctx, object, key ? life : NULL, key);
	if (way != NO_WAY) {
		if (key && swap_key(key_in(bucket, way), key, 0)) {
			count(COUNTER_ALLOC, 1);
			/* The address comes back although we never saw it freed: a miss of ours. */
			if (!(key & OBJECT_DEAD))
				count(COUNTER_FREE_MISSED, 1);
		}
	}
	if (config && config->canary_tgid &&
	    config->canary_tgid == bpf_get_current_pid_tgid() >> 32)
		report_step(ctx, HOOK_ALLOC, object, 0, 0, 0, 0);
}

#ifdef ALLOC_RAW_TRACEPOINT
int kmem_cache_alloc(struct bpf_raw_tracepoint_args *ctx)
{
	if (ctx->args[ALLOC_CACHE_ARG] != EXT4_INODE_CACHE)
		return 0;
	on_alloc(ctx, ctx->args[1]);
	return 0;
}
#endif

#ifdef ALLOC_FENTRY
int inode_init_always(struct bpf_raw_tracepoint_args *ctx)
{
	on_alloc(ctx, object_of(fentry_argument(ctx, 1)));
	return 0;
}
#endif

#ifdef ALLOC_KPROBE
int inode_init_always(struct pt_regs *ctx)
{
	on_alloc(ctx, object_of(PT_REGS_PARM2(ctx)));
	return 0;
}
#endif
