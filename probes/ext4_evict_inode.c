/*
 * Hook: raw tracepoint ext4:ext4_evict_inode (inode), at the entry of ext4_evict_inode().
 *
 * Eviction is where an inode begins to die: from here the object is in the table.  The reclaim
 * context of the evicting task is written down here, because the free comes later, in somebody
 * else's softirq.
 * Invariant: each eviction is counted once and leaves one EVICTING entry, or is counted as torn.
 */
#include "contracts.h"
#include "task.h"

/*
 * The object is dying or dead already: is this a second eviction, or a life we did not see begin?
 *
 * An object that says I_CLEAR was evicted in this life, for a new one wipes it (inode_init_always()
 * since Linux 6.11, before that new_inode() and iget_locked(): fs/inode.c).  One that does not say so, and
 * that was seen queued or freed, was cleared since, and has a new life unless something overwrote it.
 */
static __always_inline bool is_double_evict(const struct life *life, u64 key, u32 state)
{
	if ((state & DEAD_STATE) == DEAD_STATE)
		return true;
	/* The second eviction came while the first one runs; or the free was missed, too. */
	if (!(key & OBJECT_BITS))
		return alloc_seen_since(life, key);
	return alloc_certain_since(life, key);
}

static __always_inline void evict_of_known(const struct life *life, u64 key, u32 state,
					   struct suspicion *why)
{
	if (is_double_evict(life, key, state)) {
		why->flags |= read_witness(inode_of(why->object), &why->state, &why->count);
		why->verdict = VERDICT_DOUBLE_EVICT;
	} else if (!(key & OBJECT_DEAD)) {
		count(COUNTER_FREE_MISSED, 1);
	} else if (alloc_seen_since(life, key)) {
		count(COUNTER_ALLOC_MISSED, 1);
	}
}

static __always_inline void on_evict(void *ctx, u64 inode, u64 call_site)
{
	u64 ns = coarse_ns(), pid_tgid = bpf_get_current_pid_tgid();
	struct settings *config = get_settings();
	struct inode_seen seen = {};
	struct suspicion why = {};
	struct bucket *bucket;
	struct task *task;
	struct note *note;
	struct life *life = NULL;
	u32 way, flags = 0, pid = pid_tgid;
	u64 key;

	count(COUNTER_EVICT, 1);
	why.object = object_of(inode);
	why.call_site = call_site;
	bucket = bucket_of(why.object);
	if (!bucket)
		return;
	/* Early, so that the wait for the table's memory overlaps with the reads. */
	way = find_way(bucket, why.object);
	read_inode(inode, &seen);
	why.ino = seen.ino;
	why.generation = seen.generation;
	why.dev = dev_at(seen.super, ns);
	why.flags = WITNESS_IDENTITY;

	note = note_of(inode);
	if (note && (note->inode != inode || note->flags & NOTE_SPENT))
		note = NULL;
	WHOLE(note);
	if (note) {
		flags |= LIFE_UNLINKED;
		if (in_flight(note) && is_locked(&seen))
			flags |= LIFE_IN_FLIGHT;
		if (note->flags & NOTE_CANARY)
			flags |= LIFE_CANARY;
	}
	task = task_slot(pid);
	if (task && task->reclaim_pid == pid && pid) {
		flags |= LIFE_RECLAIM;
		why.reclaim_pid = pid;
		count(COUNTER_EVICT_IN_RECLAIM, 1);
		if (flags & LIFE_IN_FLIGHT || seen.nlink == 0)
			why.verdict = VERDICT_FREED_IN_RECLAIM;
	} else if (config && config->canary_tgid && config->canary_tgid == pid_tgid >> 32 &&
		   seen.nlink == 0) {
		/* Where the unlink hook is off there is no note: who deletes a file that nobody has open evicts it. */
		flags |= LIFE_CANARY;
	}

	check_eviction(inode, &why);
	key = way == NO_WAY ? 0 : key_of(bucket, way, why.object);
	if (key) {
		life = life_in(bucket, way);
		evict_of_known(life, key, seen.state, &why);
	}
	if (why.verdict != VERDICT_NONE) {
		bool again = why.verdict == VERDICT_DOUBLE_EVICT;

		/* Else what the table knows is of a former life. */
		report(ctx, HOOK_EVICT, &why, again ? life : NULL, again ? key : 0);
	}
	/* Another CPU may forget it while we report. */
	if (!key || !swap_key(key_in(bucket, way), key, why.object)) {
		way = claim_way(bucket, why.object);
		if (way == NO_WAY) {
			count_dying_lost(COUNTER_TORN);
			return;
		}
	}
	/* From the way, not from above: an old verifier does not see that a key means a life. */
	life = life_in(bucket, way);
	life->ino = why.ino;
	life->generation = why.generation;
	life->dev = why.dev;
	life->flags = flags;
	life->nlink = seen.nlink;
	life->frees = 0;
	fill_named(&life->evicted, ns, call_site, pid_tgid);
	take_stack(ctx, &life->evicted);
	life->freed.ns = 0;
	life->destroyed.ns = 0;
	life->seal = seal_of(why.object, life);
	count_if_taken(bucket, way, why.object);
	if (note)
		note->flags |= NOTE_SPENT;
	if (flags & LIFE_CANARY)
		report_step(ctx, HOOK_EVICT, why.object, why.ino, why.generation, why.dev, 0);
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
