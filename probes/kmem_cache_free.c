/*
 * Hook: raw tracepoint kmem:kmem_cache_free (call_site, ptr, s).  Since Linux 5.16 it has the cache
 * and fires before the free; before that it has neither, so a kprobe stands at the function's entry.
 *
 * The strict hook: it sees every free of an ext4 inode, whoever does it.  Where no function hook
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
static __always_inline bool is_stranger(u64 call_site)
{
	struct settings *config = get_settings();

	if (!config || !config->call_sites[0])
		return false;
	return call_site != config->call_sites[0] && call_site != config->call_sites[1] &&
	       call_site != config->call_sites[2] && call_site != config->call_sites[3];
}

static __always_inline void on_any_free(void *ctx, u64 object, u64 call_site)
{
#ifndef FREE_FROM_SLAB
	struct settings *config = get_settings();
	struct bucket *bucket = bucket_of(object);
	u32 way = bucket ? find_way(bucket, object) : NO_WAY;

	if (bucket && way != NO_WAY) {
		struct life *life = life_in(bucket, way);

		/* What was due before we were attached (the governor) has come and gone. */
		if (key_of(bucket, way, object) & OBJECT_DEAD && life->flags & LIFE_SLAB_FREE_DUE &&
		    config && life->freed.ns + 1000000000ull >= config->any_free_since) {
			life->flags &= ~LIFE_SLAB_FREE_DUE;
			if (life->flags & LIFE_CANARY)
				report_step(ctx, HOOK_ANY_FREE, object, life->ino, life->generation,
					    life->dev, 0);
			return;
		}
	}
#endif
	on_free(ctx, HOOK_ANY_FREE, object, call_site, 0, is_stranger(call_site));
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
