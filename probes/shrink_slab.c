/*
 * Hooks: raw tracepoints vmscan:mm_shrink_slab_start (shrinker, shrink_control, ...) and
 * vmscan:mm_shrink_slab_end.
 *
 * Marks the task as reclaiming while a shrinker runs.
 * Invariant: start and end come in pairs in one task; the kernel does not reclaim inside reclaim
 * (PF_MEMALLOC).
 */
#include "task.h"

static __always_inline void on_shrink_start(void)
{
	u32 pid = bpf_get_current_pid_tgid();
	struct task *task = task_slot(pid);

	count(COUNTER_SHRINK_START, 1);
	if (!task || !pid)
		return;
	if (task->reclaim_pid && task->reclaim_pid != pid)
		count(COUNTER_RECLAIM_CONTEXT_LOST, 1);
	task->reclaim_pid = pid;
}

static __always_inline void on_shrink_end(void)
{
	u32 pid = bpf_get_current_pid_tgid();
	struct task *task = task_slot(pid);

	count(COUNTER_SHRINK_END, 1);
	if (task && task->reclaim_pid == pid)
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
