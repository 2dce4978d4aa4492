/*
 * Hook: ext4_destroy_inode(inode) where it exists as a function to hook (fentry or kprobe).
 *
 * The object is about to be queued for RCU: its free comes a grace period later.  A second destroy
 * is the warning before the damage.
 * Invariant: task context; the object's memory is still its own.
 */
#include "verdict.h"

/* Queued or freed already: a second time, or a life whose allocation nobody told us of? */
static __always_inline void destroy_of_known(const struct life *life, u64 key,
					     struct suspicion *why)
{
	why->flags |= read_witness(inode_of(why->object), &why->state, &why->count);
	if (why->flags & WITNESS_PUBLISHED)
		why->verdict = VERDICT_FREE_WHILE_ALIVE;
	else if (!may_never_have_lived(life, key, why))
		why->verdict = VERDICT_DOUBLE_DESTROY;
}

/* On fentry the caller is on the stack only, and walking it costs more than all else (1.2 us). */
#ifdef DESTROY_FENTRY
#define DESTROY_CALLER(ctx, call_site) fentry_caller(ctx)
#define DESTROY_PREEMPTIBLE true
#else
#define DESTROY_CALLER(ctx, call_site) (call_site)
#define DESTROY_PREEMPTIBLE false
#endif

static __always_inline void on_destroy(void *ctx, u64 inode, u64 call_site)
{
	u64 ns = coarse_ns(), super = 0, pid_tgid = bpf_get_current_pid_tgid();
	struct suspicion why = {};
	struct bucket *bucket;
	struct life *life = NULL;
	u64 key;
	u32 way;

	count(COUNTER_DESTROY, 1);
	why.object = object_of(inode);
	bucket = bucket_of(why.object);
	if (!bucket)
		return;
	way = find_way(bucket, why.object);
	key = way == NO_WAY ? 0 : key_of(bucket, way, why.object);
	if (key) {
		life = life_in(bucket, way);
		if (key & OBJECT_BITS)
			destroy_of_known(life, key, &why);
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
		READ(super, inode + OFF_I_SB);
		why.dev = dev_of_witness(&why, life, super);
		why.call_site = DESTROY_CALLER(ctx, call_site);
		report(ctx, HOOK_DESTROY, &why, life, key);
	}
	if (!key || key & OBJECT_BITS)
		return;
	if (!swap_key(key_in(bucket, way), key, key | OBJECT_QUEUED))
		return;
	/* From the way, not from above: an old verifier does not see that a key means a life. */
	life = life_in(bucket, way);
	/* Whoever evicted it goes on to destroy it (evict() in fs/inode.c): only another's caller tells. */
	if (life->evicted.pid != (u32)pid_tgid)
		call_site = DESTROY_CALLER(ctx, call_site);
	fill_step(&life->destroyed, ns, call_site, pid_tgid, DESTROY_PREEMPTIBLE);
	take_stack(ctx, &life->destroyed);
	if (life->flags & LIFE_CANARY)
		report_step(ctx, HOOK_DESTROY, why.object, life->ino, life->generation, life->dev,
			    0);
}

#ifdef DESTROY_FENTRY
int ext4_destroy_inode(struct bpf_raw_tracepoint_args *ctx)
{
	on_destroy(ctx, fentry_argument(ctx, 0), 0);
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
