/*
 * What tasks are in the middle of: inside shrink_slab, inside ext4_unlink.  A task may sleep and move to
 * another CPU in there, so the context belongs to the task: a direct-mapped array by pid.
 *
 * Invariant: a slot names at most one task a role.  A reclaim that another task overwrites is counted; of an
 * unlink that is overwritten nobody says any more that it is under way, which accuses nobody.
 */
#include "maps.h"

static __always_inline struct task *task_slot(u32 pid)
{
	u32 index = pid & (TASK_SLOTS - 1);

	return tasks.lookup(&index);
}
