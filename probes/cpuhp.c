/*
 * Hook: raw tracepoint cpuhp:cpuhp_enter (cpu, target, idx, fun): a CPU comes or goes.
 *
 * RCU gives a dead CPU's callbacks to another (rcutree_migrate_callbacks() in kernel/rcu/tree.c), so for a while a callback may
 * run elsewhere than where it was queued: crossed() in free.h says nothing then.
 * Invariant: runs only while a CPU changes its state.
 */
#include "maps.h"

#ifdef HOTPLUG_RAW_TRACEPOINT
int cpuhp_enter(struct bpf_raw_tracepoint_args *ctx)
{
	u64 *at = get_hotplug();

	if (at)
		*at = bpf_ktime_get_ns();
	return 0;
}
#endif
