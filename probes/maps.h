/*
 * The maps of the watcher.
 *
 * Invariant: all are arrays, allocated whole when loaded, never from a hot path, because we trace the
 * allocator.
 *
 * TABLE_BUCKETS and NOTE_SLOTS come from the loader, powers of two.
 */
#include "output.h"

#define TASK_SLOTS 1024

BPF_ARRAY(table, struct bucket, TABLE_BUCKETS);
BPF_ARRAY(notes, struct note, NOTE_SLOTS);
BPF_ARRAY(tasks, struct task, TASK_SLOTS);
BPF_ARRAY(settings, struct settings, 1);
BPF_PERCPU_ARRAY(grace, u64, GRACE_BUCKETS);
/* The device of the superblock that a CPU saw last, as of a tick of the clock: most inodes die where the last one did. */
struct device_seen {
	u64 super;
	u64 ns;
	u32 dev;
	u32 reserved;
};

BPF_PERCPU_ARRAY(devices, struct device_seen, 1);
/* When a dying object was last forgotten, or not entered. */
BPF_ARRAY(dying_lost, u64, 1);
/*
 * One scratch record a hook and CPU, and whether it is being written.  A program may nest on itself where
 * a softirq comes on top of it: raw tracepoints have no guard before Linux 6.2 (__bpf_trace_run() in
 * kernel/trace/bpf_trace.c).  What it held last is there for a dump (ebpfwatch/postmortem).
 */
BPF_PERCPU_ARRAY(verdict_scratch, struct verdict_record, HOOK_COUNT);
BPF_PERCPU_ARRAY(verdict_in_use, u32, HOOK_COUNT);

static __always_inline struct settings *get_settings(void)
{
	u32 zero = 0;

	return settings.lookup(&zero);
}

/* When a CPU last came or went. */
BPF_ARRAY(hotplug, u64, 1);

static __always_inline u64 *get_hotplug(void)
{
	u32 zero = 0;

	return hotplug.lookup(&zero);
}

/* Callbacks that RCU ran on another CPU than they were queued on: how many within a short time. */
struct crossing {
	u64 ns;
	u64 count;
};

BPF_ARRAY(crossings, struct crossing, 1);

static __always_inline u64 *get_dying_lost(void)
{
	u32 zero = 0;

	return dying_lost.lookup(&zero);
}

/* A dying object that the table will not know when it is freed: the counter says why. */
static __always_inline void count_dying_lost(u32 which)
{
	u64 *lost = get_dying_lost();

	count(which, 1);
	if (lost)
		*lost = bpf_ktime_get_ns();
}
