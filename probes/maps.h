/*
 * Every map of the watcher.  All are arrays: allocated whole when loaded, never from a hot path,
 * because we trace the allocator.
 *
 * TABLE_BUCKETS, NOTE_SLOTS and RING_PAGES come from the loader, all powers of two.
 */
#include "contract.h"

#define RECLAIM_SLOTS 1024

BPF_ARRAY(table, struct bucket, TABLE_BUCKETS);
BPF_ARRAY(notes, struct note, NOTE_SLOTS);
BPF_ARRAY(reclaims, struct reclaim, RECLAIM_SLOTS);
BPF_ARRAY(settings, struct settings, 1);
BPF_PERCPU_ARRAY(counters, u64, COUNTER_COUNT);
BPF_PERCPU_ARRAY(grace, u64, GRACE_BUCKETS);
/* One scratch record a hook: a program never nests on itself, so nobody overwrites it. */
BPF_PERCPU_ARRAY(verdict_scratch, struct verdict_record, HOOK_COUNT);

#ifdef HAVE_RINGBUF
BPF_RINGBUF_OUTPUT(records, RING_PAGES);
#else
BPF_PERF_OUTPUT(records);
#endif

static __always_inline void count(u32 which, u64 by)
{
	u64 *total = counters.lookup(&which);

	/* Atomic although per CPU: a softirq may count between our load and our store. */
	if (total)
		__sync_fetch_and_add(total, by);
}

static __always_inline void submit(void *ctx, void *record, u32 size)
{
	long error;

#ifdef HAVE_RINGBUF
	error = records.ringbuf_output(record, size, 0);
#else
	error = records.perf_submit(ctx, record, size);
#endif
	if (error)
		count(COUNTER_SUBMIT_LOST, 1);
}

static __always_inline void fill_actor(struct actor *actor, u64 ns)
{
	u64 id = bpf_get_current_pid_tgid();

	actor->ns = ns;
	actor->pid = (u32)id;
	actor->tgid = id >> 32;
	actor->cpu = bpf_get_smp_processor_id();
	actor->reserved = 0;
	bpf_get_current_comm(actor->comm, sizeof(actor->comm));
}

static __always_inline struct settings *get_settings(void)
{
	u32 zero = 0;

	return settings.lookup(&zero);
}
