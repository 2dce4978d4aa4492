/*
 * The free of an ext4 inode object: the step that everything else exists for.
 *
 * Invariant: exactly one of free, free_unmatched, free_aborted or a verdict is counted for each
 * free; afterwards the object is in the table as FREED, so that the next free finds it, or is counted as
 * forgotten.
 */
#include "verdict.h"

/*
 * Whether every dead inode that may still be freed for the first time is in the table: evictions have been watched
 * for longer than any grace period lasts, and nothing dying was forgotten in that time.  Then a dead inode that the
 * table does not know was freed before, and that was forgotten.
 * A lost race in iget_locked() is told from it by its count of 1: before Linux 6.11 inode_init_always() leaves the
 * i_state of the life before (fs/inode.c).
 */
#define GRACE_NS_MAX 60000000000ull

static __always_inline bool evictions_known(void)
{
#ifdef HAVE_RINGBUF
	struct settings *config = get_settings();
	u64 *lost = get_dying_lost();
	u64 ns = bpf_ktime_get_ns();

	return config && config->evict_since && config->evict_since + GRACE_NS_MAX < ns && lost &&
	       (!*lost || *lost + GRACE_NS_MAX < ns);
#else
	/* Linux 4.19's verifier follows 131072 instructions, then refuses the program. */
	return false;
#endif
}

/* The first free of a life the table does not know: legal, forgotten, or the silent crime? */
static __always_inline void free_of_unknown(struct suspicion *why)
{
	if (why->flags & WITNESS_PUBLISHED)
		why->verdict = VERDICT_FREE_WHILE_ALIVE;
	else if (why->flags & WITNESS_NO_INODE)
		why->verdict =
			VERDICT_DOUBLE_FREE; /* its page has gone another way since the first */
	else if (why->flags & WITNESS_CLEAR && !why->count && evictions_known())
		why->verdict = VERDICT_DOUBLE_FREE;
	else
		count(never_lived(why) ? COUNTER_FREE_ABORTED : COUNTER_FREE_UNMATCHED, 1);
}

/* An entry for it, so that the next free finds it. After the report: it may take its former life's way. */
static __always_inline struct life *remember_unknown(struct bucket *bucket,
						     const struct suspicion *why)
{
	struct life *life;
	u32 way;

	way = claim_way(bucket, why->object | OBJECT_DEAD);
	if (way == NO_WAY) {
		count(COUNTER_FORGOTTEN_DEAD, 1);
		return NULL;
	}
	life = life_in(bucket, way);
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

/* The entry is dying, but it is another inode that is freed there. */
static __always_inline void free_of_other(const struct life *life, u64 key, struct suspicion *why)
{
	if (why->flags & WITNESS_PUBLISHED)
		why->verdict = VERDICT_FREE_WHILE_ALIVE;
	else if (!may_never_have_lived(life, key, why))
		why->verdict = VERDICT_IDENTITY_CHANGED;
}

static __always_inline void free_of_dead(const struct life *life, u64 key, struct suspicion *why)
{
	/* Published: the address lives again, and a living inode was freed. */
	if (why->flags & WITNESS_PUBLISHED)
		why->verdict = VERDICT_FREE_WHILE_ALIVE;
	else if (!may_never_have_lived(life, key, why))
		why->verdict = VERDICT_DOUBLE_FREE;
	else
		count(COUNTER_FREE_ABORTED, 1);
	if (why->verdict == VERDICT_NONE && alloc_seen_since(life, key))
		count(COUNTER_ALLOC_MISSED, 1);
}

/*
 * RCU runs a callback on the CPU that queued it (kernel/rcu/tree.c: each CPU has its list); one that is run elsewhere has
 * come there because two lists were crossed: somebody queued one rcu_head twice.  Legal are: a CPU that went
 * (cpuhp.c), offloaded callbacks (they run in a thread called rcuo...), and a task that moved between the hook on the
 * destruction and its call_rcu(), which happens to one inode at a time, so only many at once are told.
 */
#define CROSSED_MANY 8
#ifndef CROSSED_NS
#define CROSSED_NS 20000000ull
#endif
#define HOTPLUG_NS 10000000000ull
#define COMM_RCUO 0x6f756372u /* "rcuo" */

static __always_inline bool crossed(const struct life *life)
{
#if defined(HOTPLUG_RAW_TRACEPOINT) && defined(HAVE_RINGBUF)
	u32 zero = 0;
	u64 ns, *changed = get_hotplug();
	struct crossing *crossing = crossings.lookup(&zero);
	char comm[COMM_LEN] = {};

	if (!life->destroyed.ns || life->destroyed.cpu == bpf_get_smp_processor_id())
		return false;
	bpf_get_current_comm(comm, sizeof(comm));
	ns = bpf_ktime_get_ns();
	if (*(u32 *)comm == COMM_RCUO || !changed || !crossing ||
	    (*changed && ns < *changed + HOTPLUG_NS))
		return false;
	count(COUNTER_RCU_OTHER_CPU, 1);
	if (ns > crossing->ns + CROSSED_NS)
		crossing->count = 0;
	crossing->ns = ns;
	__sync_fetch_and_add(&crossing->count, 1);
	return crossing->count == CROSSED_MANY;
#else
	return false;
#endif
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

/* As for destroy: the caller only where somebody will read it. */
#ifdef RCU_FREE_FENTRY
#define FREE_CALLER(ctx, call_site) fentry_caller(ctx)
#define RCU_FREE_PREEMPTIBLE(hook) ((hook) == HOOK_RCU_FREE)
#else
#define FREE_CALLER(ctx, call_site) (call_site)
#define RCU_FREE_PREEMPTIBLE(hook) false
#endif

/* `next_flags` is what the entry carries on: LIFE_SLAB_FREE_DUE from the RCU callback, else 0. */
static __always_inline void on_free(void *ctx, u32 hook, u64 object, u64 call_site, u32 next_flags,
				    bool unknown_caller)
{
	u64 ns = coarse_ns();
	struct suspicion why = {};
	struct bucket *bucket = bucket_of(object);
	struct life *life = NULL, *before = NULL;
	u64 key = 0, grace_ns = 0, super = 0;
	u32 way, flags = 0;
	bool other = false;

	if (!bucket)
		return;
	why.object = object;
	why.call_site = call_site;
	/* Early, so that the wait for the table's memory overlaps with the read. */
	way = find_way(bucket, object);
	if (read_identity(inode_of(object), &why.ino, &why.generation))
		why.flags |= WITNESS_IDENTITY;
	if (way != NO_WAY) {
		life = life_in(bucket, way);
		flags = life->flags;
		/* The coarse clock of one CPU may be a tick behind another's. */
		grace_ns = ns > life->evicted.ns ? ns - life->evicted.ns : 0;
		/*
		 * A CPU that was interrupted between claiming this way and writing its life may have
		 * written over ours since: a broken seal tells no identity, and the key still who dies.
		 */
		other = why.flags & WITNESS_IDENTITY &&
			(why.ino != life->ino || why.generation != life->generation) &&
			life->seal == seal_of(object, life);
		/*
		 * What was read above may be another's: arm64 may load the key first.  The identity
		 * has its seal; grace_ns and flags are used only where the swap of the key below, a full
		 * barrier, finds it as it is here.
		 */
		key = key_of(bucket, way, object);
	}
	before = key ? life : NULL;
	if (!key || key & OBJECT_DEAD || other || unknown_caller) {
		why.flags |= read_witness(inode_of(object), &why.state, &why.count);
		READ(super, inode_of(object) + OFF_I_SB);
		why.dev = dev_of_witness(&why, before, super);
	}
	if (!key)
		free_of_unknown(&why);
	else if (key & OBJECT_DEAD)
		free_of_dead(life, key, &why);
	else if (other)
		free_of_other(life, key, &why);
	else if (hook == HOOK_RCU_FREE && crossed(life)) {
		why.flags |= read_witness(inode_of(object), &why.state, &why.count);
		why.dev = life->dev;
		why.verdict = VERDICT_RCU_LISTS_CROSSED;
	}
	if (unknown_caller && why.verdict == VERDICT_NONE)
		why.verdict = VERDICT_FOREIGN_FREE;
	if (why.verdict != VERDICT_NONE) {
		if (RCU_FREE_PREEMPTIBLE(hook))
			why.call_site = FREE_CALLER(ctx, call_site);
		report(ctx, hook, &why, before, key);
	}
	if (!key)
		life = remember_unknown(bucket, &why);
	if (!life)
		return;
	if (life->flags & LIFE_CANARY)
		report_step(ctx, hook, object, life->ino, life->generation, life->dev, 0);
	if (hook == HOOK_ANY_FREE && call_site == EXT4_FREE_SITE)
		fill_rcu(&life->freed, ns, call_site);
	else
		fill_step(&life->freed, ns, call_site, bpf_get_current_pid_tgid(),
			  RCU_FREE_PREEMPTIBLE(hook));
	take_stack(ctx, &life->freed);
	life->frees++;
	life->flags |= next_flags;
	if (!key || key & OBJECT_DEAD)
		return;
	if (swap_key(key_in(bucket, way), key, object | OBJECT_DEAD)) {
		count_free(grace_ns, flags);
	} else {
		/* Another CPU has forgotten it since, and counted that. */
		count(COUNTER_FREE_UNMATCHED, 1);
		count(COUNTER_FORGOTTEN_DEAD, 1);
	}
}
