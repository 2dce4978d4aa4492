/*
 * Which tasks are inside shrink_slab.  A task may sleep and move to another CPU in there, so the
 * context belongs to the task: a direct-mapped array by pid.
 *
 * Invariant: a slot names at most one task; one overwritten by another task is counted.
 */
#include "maps.h"

static __always_inline struct reclaim *reclaim_slot(u32 pid)
{
	u32 index = pid & (RECLAIM_SLOTS - 1);

	return reclaims.lookup(&index);
}
