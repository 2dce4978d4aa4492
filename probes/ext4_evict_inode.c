/*
 * Hook: raw tracepoint ext4:ext4_evict_inode (inode), at the entry of ext4_evict_inode().
 *
 * Eviction is where an inode begins to die: from here the object is in the table.  The reclaim
 * context of the evicting task is written down here, because the free comes later, in somebody
 * else's softirq.
 * Invariant: each eviction is counted once and leaves one EVICTING entry, or is counted as torn.
 */
#include "reclaim.h"
#include "verdict.h"

/* The object is dying or dead already: is this a second eviction, or a life we did not see begin? */
static __always_inline void evict_of_known(u64 key, struct suspicion *why)
{
	why->flags |= read_witness(inode_of(why->object), &why->state, &why->count);
#ifdef HAVE_ALLOC
	/* An allocation would have removed the entry. */
	why->verdict = VERDICT_DOUBLE_EVICT;
#else
	/* inode_init_always() or new_inode() wiped I_CLEAR if a new life began. */
	if (why->flags & WITNESS_CLEAR)
		why->verdict = VERDICT_DOUBLE_EVICT;
	else if (!(key & OBJECT_DEAD))
		count(COUNTER_FREE_MISSED, 1);
#endif
}

static __always_inline void on_evict(void *ctx, u64 inode, u64 call_site)
{
	u64 ns = bpf_ktime_get_ns();
	struct suspicion why = {};
	struct bucket *bucket;
	struct reclaim *reclaim;
	struct note *note;
	struct life *life;
	u32 way, nlink = 0, flags = 0, pid;
	u64 key;

	count(COUNTER_EVICT, 1);
	why.object = object_of(inode);
	why.call_site = call_site;
	bucket = bucket_of(why.object);
	if (!bucket)
		return;
	READ(why.ino, inode + OFF_I_INO);
	READ(why.generation, inode + OFF_I_GENERATION);
	READ(nlink, inode + OFF_I_NLINK);
	why.dev = read_dev(inode);
	why.flags = WITNESS_IDENTITY;

	note = note_of(inode);
	if (note && note->inode == inode && note->ino == why.ino &&
	    note->generation == why.generation) {
		flags |= LIFE_UNLINKED;
		if (note->flags & NOTE_IN_FLIGHT)
			flags |= LIFE_IN_FLIGHT;
		if (note->flags & NOTE_CANARY)
			flags |= LIFE_CANARY;
	}
	pid = bpf_get_current_pid_tgid();
	reclaim = reclaim_slot(pid);
	if (reclaim && reclaim->pid == pid && pid) {
		reclaim->evicted++;
		flags |= LIFE_RECLAIM;
		why.reclaim_pid = pid;
		count(COUNTER_EVICT_IN_RECLAIM, 1);
		if (flags & LIFE_IN_FLIGHT || nlink == 0)
			why.verdict = VERDICT_FREED_IN_RECLAIM;
	}

	way = find_way(bucket, why.object);
	life = NULL;
	key = way == NO_WAY ? 0 : key_of(bucket, way, why.object);
	if (key) {
		life = &bucket->life[way & (WAYS - 1)];
		evict_of_known(key, &why);
	}
	if (why.verdict != VERDICT_NONE)
		report(ctx, HOOK_EVICT, ns, &why, life, key);
	/* Another CPU may forget it while we report. */
	if (!key || !swap_key(&bucket->object[way & (WAYS - 1)], key, why.object)) {
		way = claim_way(bucket, why.object);
		if (way == NO_WAY) {
			count(COUNTER_TORN, 1);
			return;
		}
	}
	/* From the way, not from above: an old verifier does not see that a key means a life. */
	life = &bucket->life[way & (WAYS - 1)];
	life->ino = why.ino;
	life->generation = why.generation;
	life->dev = why.dev;
	life->flags = flags;
	life->nlink = nlink;
	life->frees = 0;
	fill_taker(ctx, &life->evicted, ns, call_site);
	__builtin_memset(&life->destroyed, 0, sizeof(life->destroyed));
	__builtin_memset(&life->freed, 0, sizeof(life->freed));
	life->seal = seal_of(why.object, life);
	if (flags & LIFE_CANARY)
		report_step(ctx, HOOK_EVICT, ns, why.object, why.ino, why.generation, why.dev, 0);
}

#ifdef EVICT_RAW_TRACEPOINT
int ext4_evict_inode(struct bpf_raw_tracepoint_args *ctx)
{
	on_evict(ctx, ctx->args[0], 0);
	return 0;
}
#endif

#ifdef EVICT_KPROBE
int ext4_evict_inode(struct pt_regs *ctx)
{
	on_evict(ctx, PT_REGS_PARM1(ctx), caller_of(ctx));
	return 0;
}
#endif
