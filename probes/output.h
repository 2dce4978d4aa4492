/*
 * The way out: totals, and the ring that carries records to user space.
 *
 * RING_PAGES comes from the loader, a power of two.
 * Invariant: what the ring has no room for is counted.
 */
#include "compat.h"
#include "contract.h"

BPF_PERCPU_ARRAY(counters, u64, COUNTER_COUNT);

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

#ifdef FIRST_STACKS
struct frames {
	u64 address[FIRST_STACK_DEPTH];
};

/* Few paths lead to an inode's death, so equal stacks share an entry. */
BPF_TABLE("stacktrace", int, struct frames, stacks, 1024);
#endif

static __always_inline void fill_actor(struct actor *actor, u64 ns, u64 caller)
{
	u64 id = bpf_get_current_pid_tgid();

	actor->ns = ns;
	actor->pid = (u32)id;
	actor->tgid = id >> 32;
	actor->cpu = bpf_get_smp_processor_id();
	actor->caller = caller;
	actor->stack = 0;
	bpf_get_current_comm(actor->comm, sizeof(actor->comm));
}

/* The same for a step that takes an object's life: with its stack, where configured. */
static __always_inline void fill_taker(void *ctx, struct actor *actor, u64 ns, u64 caller)
{
	fill_actor(actor, ns, caller);
#ifdef FIRST_STACKS
	int key = stacks.get_stackid(ctx, BPF_F_REUSE_STACKID);

	if (key >= 0)
		actor->stack = key + 1;
#endif
}
