/*
 * Hook: raw tracepoint kmem:kmem_cache_free (call_site, ptr, s), which comes before the free since
 * Linux 5.16.  Since 6.1 it has the cache; from 5.13 to 6.0 the cache's name, a pointer that only this
 * cache has (s->name), and then EXT4_INODE_CACHE is that pointer.  Elsewhere a kprobe stands at the
 * function's entry.
 *
 * The any_free hook: it sees every free of an ext4 inode, whoever does it.  Where no function hook
 * stands on the RCU callback it is also the free itself (FREE_FROM_SLAB).
 * Invariant: a free of another cache costs one comparison; on the kprobe, whose trap costs more than all else,
 * each is counted, so that the governor knows what we cost.
 */
#include "compat.h"
#include "free.h"

/*
 * True if the caller is none of those we know; false while we know none.  Asked even where an RCU callback
 * should have come before: the table may have forgotten the object between the two.
 */
static __always_inline bool is_unknown_caller(u64 call_site)
{
	struct settings *config = get_settings();

	if (!config || !config->call_sites[0])
		return false;
	return call_site != config->call_sites[0] && call_site != config->call_sites[1] &&
	       call_site != config->call_sites[2] && call_site != config->call_sites[3];
}

#ifndef FREE_FROM_SLAB
/*
 * From the RCU callback to the slab free at most.  It is some 100 ns; but RCU's threads may be preempted in between
 * (PREEMPT_RT), and a virtual CPU may stand still.
 */
#define DUE_NS_MAX 10000000000ull

/*
 * Whether this is the slab free that follows the RCU callback: in the same call, so the current task is
 * the same, and soon.  Where that free was not seen, the mark must not excuse another's, later.
 */
static __always_inline bool is_due(const struct life *life, u64 key)
{
	struct settings *config = get_settings();
	u32 pid = bpf_get_current_pid_tgid();
	u64 ns = coarse_ns();

	if (!(key & OBJECT_DEAD) || !(life->flags & LIFE_SLAB_FREE_DUE) || !config)
		return false;
	/* What was due before we were attached (the governor) has come and gone. */
	if (life->freed.ns + 1000000000ull < config->any_free_since)
		return false;
	return life->freed.pid == pid && life->freed.ns + DUE_NS_MAX >= ns;
}
#endif

static __always_inline void on_any_free(void *ctx, u64 object, u64 call_site)
{
#ifndef FREE_FROM_SLAB
	struct bucket *bucket = bucket_of(object);
	u32 way = bucket ? find_way(bucket, object) : NO_WAY;

	if (bucket && way != NO_WAY) {
		struct life *life = life_in(bucket, way);

		if (is_due(life, key_of(bucket, way, object))) {
			life->flags &= ~LIFE_SLAB_FREE_DUE;
			if (life->flags & LIFE_CANARY)
				report_step(ctx, HOOK_ANY_FREE, object, life->ino, life->generation,
					    life->dev, 0);
			return;
		}
	}
#endif
	on_free(ctx, HOOK_ANY_FREE, object, call_site, 0, is_unknown_caller(call_site));
}

#ifdef ANY_FREE_RAW_TRACEPOINT
int kmem_cache_free(struct bpf_raw_tracepoint_args *ctx)
{
	if (ctx->args[FREE_CACHE_ARG] != EXT4_INODE_CACHE)
		return 0;
	on_any_free(ctx, ctx->args[1], ctx->args[0]);
	return 0;
}
#endif

#ifdef ANY_FREE_KPROBE
int kmem_cache_free(struct pt_regs *ctx)
{
	count(COUNTER_SLAB_FREE, 1);
	if (PT_REGS_PARM1(ctx) != EXT4_INODE_CACHE)
		return 0;
	on_any_free(ctx, PT_REGS_PARM2(ctx), caller_of(ctx));
	return 0;
}
#endif
