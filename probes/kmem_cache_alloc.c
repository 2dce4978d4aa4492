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
#include "verdict.h"

static __always_inline void on_alloc(void *ctx, u64 object)
{
	struct bucket *bucket = bucket_of(object);
	struct settings *config = get_settings();
	u32 way;

	if (!bucket)
		return;
	way = find_way(bucket, object);
	if (way != NO_WAY) {
		u64 key = key_of(bucket, way, object);

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
