/*
 * Hook: ext4_free_in_core_inode(inode) (since Linux 5.3); before that ext4_i_callback(rcu_head), whose argument is a member of the inode.
 *
 * The RCU callback that frees the object: the free before it happens, in a softirq or in RCU's own
 * thread.
 * Invariant: a softirq cannot interrupt itself, so in a softirq no run is skipped.  RCU's threads (rcuc,
 * rcuo: PREEMPT_RT, rcu_nocbs=) may preempt one another inside a fentry program; what that skips is
 * `free_missed` once the address is used again (__bpf_prog_enter_recur() in kernel/bpf/trampoline.c).
 */
#include "free.h"

#ifdef RCU_FREE_FENTRY
int ext4_free_in_core_inode(struct bpf_raw_tracepoint_args *ctx)
{
	on_free(ctx, HOOK_RCU_FREE, object_of(fentry_argument(ctx, 0)), 0, LIFE_SLAB_FREE_DUE,
		false);
	return 0;
}
#endif

#ifdef RCU_FREE_KPROBE
int ext4_free_in_core_inode(struct pt_regs *ctx)
{
	u64 inode = PT_REGS_PARM1(ctx);

#ifdef RCU_FREE_FROM_HEAD
	inode -= OFF_I_RCU;
#endif
	on_free(ctx, HOOK_RCU_FREE, object_of(inode), caller_of(ctx), LIFE_SLAB_FREE_DUE, false);
	return 0;
}
#endif
