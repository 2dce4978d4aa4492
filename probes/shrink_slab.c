/*
 * Hooks: raw tracepoints vmscan:mm_shrink_slab_start (shrinker, shrink_control, ...) and
 * vmscan:mm_shrink_slab_end.
 *
 * Marks the task as reclaiming while a shrinker runs.
 * Invariant: start and end come in pairs in one task.  A shrinker that kswapd or direct reclaim runs does
 * not reclaim again (PF_MEMALLOC: __alloc_pages_slowpath() in mm/page_alloc.c), but drop_slab() runs
 * without it: what its shrinkers allocate may reclaim, inside the scan that goes on afterwards.  Hence
 * a depth, where no end can be missed; the kretprobe's can (maxactive), and ends it all.
 */
#include "task.h"

static __always_inline void on_shrink_start(void)
{
	u32 pid = bpf_get_current_pid_tgid();
	struct task *task = task_slot(pid);

	count(COUNTER_SHRINK_START, 1);
	if (!task || !pid)
		return;
	if (task->reclaim_pid == pid) {
		task->reclaim_depth++;
		return;
	}
	if (task->reclaim_pid)
		count(COUNTER_RECLAIM_CONTEXT_LOST, 1);
	task->reclaim_pid = pid;
	task->reclaim_depth = 1;
}

static __always_inline void on_shrink_end(void)
{
	u32 pid = bpf_get_current_pid_tgid();
	struct task *task = task_slot(pid);

	count(COUNTER_SHRINK_END, 1);
	if (!task || task->reclaim_pid != pid)
		return;
#ifndef RECLAIM_KPROBE
	if (task->reclaim_depth > 1) {
		task->reclaim_depth--;
		return;
	}
#endif
	task->reclaim_pid = 0;
}

#ifdef RECLAIM_RAW_TRACEPOINT
int mm_shrink_slab_start(struct bpf_raw_tracepoint_args *ctx)
{
	on_shrink_start();
	return 0;
}

int mm_shrink_slab_end(struct bpf_raw_tracepoint_args *ctx)
{
	on_shrink_end();
	return 0;
}
#endif

#ifdef RECLAIM_KPROBE
int shrink_slab(struct pt_regs *ctx)
{
	on_shrink_start();
	return 0;
}

int shrink_slab_return(struct pt_regs *ctx)
{
	on_shrink_end();
	return 0;
}
#endif
