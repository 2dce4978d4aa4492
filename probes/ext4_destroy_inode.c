/*
 * Hook: ext4_destroy_inode(inode) where it exists as a function to hook (fentry or kprobe).
 *
 * The object is about to be queued for RCU: its free comes a grace period later.  A second destroy
 * is the warning before the damage.
 * Invariant: task context; the object's memory is still its own.
 */
#include "verdict.h"

static __always_inline void on_destroy(void *ctx, u64 inode, u64 call_site)
{
	u64 ns = bpf_ktime_get_ns();
	struct suspicion why = {};
	struct bucket *bucket;
	struct life *life = NULL;
	u64 key;
	u32 way;

	count(COUNTER_DESTROY, 1);
	why.object = object_of(inode);
	why.call_site = call_site;
	bucket = bucket_of(why.object);
	if (!bucket)
		return;
	way = find_way(bucket, why.object);
	key = way == NO_WAY ? 0 : key_of(bucket, way, why.object);
	if (key) {
		life = &bucket->life[way & (WAYS - 1)];
		if (key & OBJECT_BITS)
			why.verdict = VERDICT_DOUBLE_DESTROY;
	} else {
		why.flags |= read_witness(inode, &why.state, &why.count);
		if (why.flags & WITNESS_PUBLISHED)
			why.verdict = VERDICT_FREE_WHILE_ALIVE;
	}
	if (why.verdict != VERDICT_NONE) {
		why.flags |= read_witness(inode, &why.state, &why.count);
		if (!READ(why.ino, inode + OFF_I_INO) &&
		    !READ(why.generation, inode + OFF_I_GENERATION))
			why.flags |= WITNESS_IDENTITY;
		why.dev = read_dev(inode);
		report(ctx, HOOK_DESTROY, ns, &why, life, key);
	}
	if (!key || key & OBJECT_BITS)
		return;
	if (!swap_key(&bucket->object[way & (WAYS - 1)], key, key | OBJECT_QUEUED))
		return;
	/* From the way, not from above: an old verifier does not see that a key means a life. */
	life = &bucket->life[way & (WAYS - 1)];
	fill_taker(ctx, &life->destroyed, ns, call_site);
	if (life->flags & LIFE_CANARY)
		report_step(ctx, HOOK_DESTROY, ns, why.object, life->ino, life->generation,
			    life->dev, 0);
}

#ifdef DESTROY_FENTRY
int ext4_destroy_inode(struct bpf_raw_tracepoint_args *ctx)
{
	on_destroy(ctx, fentry_argument(ctx, 0), fentry_caller(ctx));
	return 0;
}
#endif

#ifdef DESTROY_KPROBE
int ext4_destroy_inode(struct pt_regs *ctx)
{
	on_destroy(ctx, PT_REGS_PARM1(ctx), caller_of(ctx));
	return 0;
}
#endif
