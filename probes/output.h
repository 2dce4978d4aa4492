/*
 * The way out: totals, and the ring that carries records to user space.
 *
 * RING_PAGES comes from the loader, a power of two.
 * Invariant: what the ring has no room for is counted.
 */
#include "compat.h"
#include "contract.h"

BPF_PERCPU_ARRAY(counters, u64, COUNTER_COUNT);
BPF_PERCPU_ARRAY(names, struct task_name, 1);

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

/* All of an actor but its name. */
static __always_inline void fill_nameless(struct actor *actor, u64 ns, u64 caller, u64 pid_tgid)
{
	actor->ns = ns;
	actor->pid = (u32)pid_tgid;
	actor->tgid = pid_tgid >> 32;
	actor->cpu = bpf_get_smp_processor_id();
	actor->caller = caller;
	actor->stack = 0;
}

static __always_inline void fill_actor(struct actor *actor, u64 ns, u64 caller)
{
	fill_nameless(actor, ns, caller, bpf_get_current_pid_tgid());
	bpf_get_current_comm(actor->comm, sizeof(actor->comm));
}

/*
 * The same, cheaper: the name is asked for once a tick and task.  Within one tick a task that calls
 * exec may still go by its old name.
 * Only where preemption is off (raw tracepoint, kprobe): nobody but a softirq, which has the same current
 * task, then comes between the name and its pid.
 */
static __always_inline void fill_named(struct actor *actor, u64 ns, u64 caller, u64 pid_tgid)
{
	u32 zero = 0, pid = pid_tgid;
	struct task_name *name = names.lookup(&zero);

	fill_nameless(actor, ns, caller, pid_tgid);
	if (!name)
		return;
	if (name->pid != pid || name->ns != ns) {
		bpf_get_current_comm(name->comm, sizeof(name->comm));
		name->pid = pid;
		name->ns = ns;
	}
	__builtin_memcpy(actor->comm, name->comm, sizeof(actor->comm));
}

/* On fentry, where preemption is on, the name of the task that runs now, without what others leave. */
static __always_inline void fill_step(struct actor *actor, u64 ns, u64 caller, u64 pid_tgid,
				      bool preemptible)
{
	if (preemptible)
		fill_actor(actor, ns, caller);
	else
		fill_named(actor, ns, caller, pid_tgid);
}

/* RCU's callback: the current task is a bystander, so it is not named. */
static __always_inline void fill_rcu(struct actor *actor, u64 ns, u64 caller)
{
	fill_nameless(actor, ns, caller, 0);
	__builtin_memcpy(actor->comm, "(RCU)\0\0\0\0\0\0\0\0\0\0", sizeof(actor->comm));
}

/* For a step that takes an object's life: its stack, where configured. */
static __always_inline void take_stack(void *ctx, struct actor *actor)
{
#ifdef FIRST_STACKS
	int key = stacks.get_stackid(ctx, BPF_F_REUSE_STACKID);

	if (key >= 0)
		actor->stack = key + 1;
#endif
}
