/*
 * The free of an ext4 inode object: the step that everything else exists for.
 *
 * Invariant: exactly one of free, free_unmatched, free_aborted or a verdict is counted for each
 * free; afterwards the object is in the table as FREED, so that the next free finds it, or is counted as
 * forgotten.
 */
#include "verdict.h"

/* The first free of a life the table does not know: legal, forgotten, or the silent crime? */
static __always_inline struct life *free_of_unknown(struct bucket *bucket, u64 ns,
						    struct suspicion *why)
{
	struct life *life;
	u32 way;

	why->flags |= read_witness(inode_of(why->object), &why->state, &why->count);
	if (why->flags & WITNESS_PUBLISHED)
		why->verdict = VERDICT_FREE_WHILE_ALIVE;
	else if (why->flags & WITNESS_CLEAR || !(why->flags & WITNESS_READ))
		count(COUNTER_FREE_UNMATCHED, 1);
	else
		count(COUNTER_FREE_ABORTED, 1);

	way = claim_way(bucket, why->object | OBJECT_DEAD);
	if (way == NO_WAY) {
		count(COUNTER_FORGOTTEN_DEAD, 1);
		return NULL;
	}
	life = &bucket->life[way & (WAYS - 1)];
	life->ino = why->ino;
	life->generation = why->generation;
	life->dev = why->dev;
	life->flags = LIFE_NO_EVICT;
	life->nlink = 0;
	life->frees = 0;
	__builtin_memset(&life->evicted, 0, sizeof(life->evicted));
	__builtin_memset(&life->destroyed, 0, sizeof(life->destroyed));
	__builtin_memset(&life->freed, 0, sizeof(life->freed));
	life->seal = seal_of(why->object, life);
	return life;
}

/* The free that follows an eviction: what every inode does once. */
static __always_inline void count_free(u64 grace_ns, u32 flags)
{
	u32 index = bpf_log2l(grace_ns / 1000 + 1);
	u64 *bin;

	count(COUNTER_FREE, 1);
	count(COUNTER_GRACE_NS, grace_ns);
	if (flags & LIFE_RECLAIM)
		count(COUNTER_FREE_IN_RECLAIM, 1);
	if (index > GRACE_BUCKETS - 1)
		index = GRACE_BUCKETS - 1;
	bin = grace.lookup(&index);
	if (bin)
		__sync_fetch_and_add(bin, 1);
}

static __always_inline void free_of_dead(struct suspicion *why)
{
	why->flags |= read_witness(inode_of(why->object), &why->state, &why->count);
	/* Published: the address lives again, and a living inode was freed. */
	why->verdict = why->flags & WITNESS_PUBLISHED ? VERDICT_FREE_WHILE_ALIVE
						      : VERDICT_DOUBLE_FREE;
#ifndef HAVE_ALLOC
	/* Neither published nor evicted: a life that never began, and nobody told us of the reuse. */
	if (why->verdict == VERDICT_DOUBLE_FREE && why->flags & WITNESS_READ &&
	    (!(why->flags & WITNESS_CLEAR) || why->count)) {
		why->verdict = VERDICT_NONE;
		count(COUNTER_FREE_ABORTED, 1);
	}
#endif
}

/* `next_flags` is what the entry carries on: LIFE_SLAB_FREE_DUE from the RCU callback, else 0. */
static __always_inline void on_free(void *ctx, u32 hook, u64 object, u64 call_site, u32 next_flags,
				    bool stranger)
{
	u64 ns = bpf_ktime_get_ns();
	struct suspicion why = {};
	struct bucket *bucket = bucket_of(object);
	struct life *life = NULL, *before = NULL;
	u64 key = 0, grace_ns = 0;
	u32 way, flags = 0;

	if (!bucket)
		return;
	why.object = object;
	why.call_site = call_site;
	if (!READ(why.ino, inode_of(object) + OFF_I_INO) &&
	    !READ(why.generation, inode_of(object) + OFF_I_GENERATION))
		why.flags |= WITNESS_IDENTITY;

	way = find_way(bucket, object);
	if (way != NO_WAY) {
		life = &bucket->life[way & (WAYS - 1)];
		flags = life->flags;
		grace_ns = ns - life->evicted.ns;
		if (why.flags & WITNESS_IDENTITY &&
		    (why.ino != life->ino || why.generation != life->generation))
			why.verdict = VERDICT_IDENTITY_CHANGED;
		/* Only now: if the way is still ours, what was read above was, too. */
		key = key_of(bucket, way, object);
	}
	before = key ? life : NULL;
	if (!key) {
		why.verdict = VERDICT_NONE;
		why.dev = read_dev(inode_of(object));
		life = free_of_unknown(bucket, ns, &why);
	} else if (key & OBJECT_DEAD) {
		free_of_dead(&why);
	}
	if (stranger && why.verdict == VERDICT_NONE)
		why.verdict = VERDICT_FOREIGN_FREE;
	if (why.verdict != VERDICT_NONE) {
		if (!(why.flags & WITNESS_READ))
			why.flags |= read_witness(inode_of(object), &why.state, &why.count);
		why.dev = read_dev(inode_of(object));
		report(ctx, hook, ns, &why, before, key);
	}
	if (!life)
		return;
	if (life->flags & LIFE_CANARY)
		report_step(ctx, hook, ns, object, life->ino, life->generation, life->dev, 0);
	fill_taker(ctx, &life->freed, ns, call_site);
	life->frees++;
	life->flags |= next_flags;
	if (!key || key & OBJECT_DEAD)
		return;
	if (swap_key(&bucket->object[way & (WAYS - 1)], key, object | OBJECT_DEAD)) {
		count_free(grace_ns, flags);
	} else {
		/* Another CPU has forgotten it since, and counted that. */
		count(COUNTER_FREE_UNMATCHED, 1);
		count(COUNTER_FORGOTTEN_DEAD, 1);
	}
}
