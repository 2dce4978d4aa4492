/*
 * Hook: iput(inode), of every filesystem.  Attached only while it is armed: it runs several times for each inode that dies.
 *
 * Rule (fs/inode.c): who gives a reference back has one, so i_count is at least 1, and the inode was not cleared
 * (iput() itself has BUG_ON() for that).  Whoever breaks it was given a reference that somebody before had put already, or
 * never had one: the stack is of one of the two.
 * Invariant: one read of four bytes a call.
 */
#include "contracts.h"

static __always_inline void on_put(void *ctx, u64 inode, u64 call_site)
{
	struct suspicion why = {};

	if (!inode)
		return;
	count(COUNTER_PUT, 1);
	if (READ(why.count, inode + OFF_I_COUNT) || (s32)why.count > 0)
		return;
	why.flags = read_witness(inode, &why.state, &why.count);
	why.broken = BROKEN_COUNT | (why.flags & WITNESS_CLEAR ? BROKEN_DEAD : 0);
	why.verdict = VERDICT_PUT_WITHOUT_REFERENCE;
	why.object = object_of(inode);
	why.call_site = call_site;
	describe_inode(inode, &why);
	READ(why.super, inode + OFF_I_SB);
	why.dev = dev_of(why.super);
	report(ctx, HOOK_PUT, &why, NULL, 0);
}

#ifdef PUT_FENTRY
int iput(struct bpf_raw_tracepoint_args *ctx)
{
	on_put(ctx, fentry_argument(ctx, 0), 0);
	return 0;
}
#endif

#ifdef PUT_KPROBE
int iput(struct pt_regs *ctx)
{
	on_put(ctx, PT_REGS_PARM1(ctx), caller_of(ctx));
	return 0;
}
#endif
