/*
 * Hook: iput(inode), of every filesystem.  Attached only while it is armed: it runs several times for each inode that dies.
 *
 * Rules: who gives a reference back has one, so i_count is at least 1, and the inode was not cleared (fs/inode.c: iput()
 * itself has BUG_ON() for that).  Each dentry on i_dentry has one, too, and leaves the list before it gives that back
 * (fs/dcache.c: dentry_unlink_inode()), so who gives back the last one finds the list empty.  Whoever breaks a rule was given
 * a reference that somebody before had put already, or never had one: the stack is of one of the two.
 * Invariant: one read of four bytes a call, and one of eight more for the last reference.
 */
#include "contracts.h"

/*
 * Whether a dentry has the last reference, so that it is not the caller's.  The list may change while it is read: a dentry that
 * leaves it between the two reads of the count leaves `d_inode`, too, and one that comes brings its reference before.
 */
static __always_inline bool belongs_to_dentry(u64 inode, struct suspicion *why)
{
	u64 alias = 0, again = 0, back = 0;
	u32 held = 0;

	if (READ(alias, inode + OFF_I_DENTRY) || !alias)
		return false;
	why->related = ALIAS_TO_DENTRY(alias);
	if (READ(held, inode + OFF_I_COUNT) || held != 1 ||
	    READ(back, why->related + OFF_D_INODE) || back != inode ||
	    READ(again, inode + OFF_I_DENTRY) || again != alias ||
	    READ(held, inode + OFF_I_COUNT) || held != 1)
		return false;
	why->dentry = why->related;
	why->flags |= RELATED_PROVEN;
	return true;
}

static __always_inline void on_put(void *ctx, u64 inode, u64 call_site)
{
	struct suspicion why = {};

	if (!inode)
		return;
	count(COUNTER_PUT, 1);
	if (READ(why.count, inode + OFF_I_COUNT) || (s32)why.count > 1)
		return;
	why.broken = BROKEN_COUNT;
	if (why.count == 1) {
		if (!belongs_to_dentry(inode, &why))
			return;
		why.broken |= BROKEN_ALIAS;
	}
	why.flags |= read_witness(inode, &why.state, &why.count);
	if (why.flags & WITNESS_CLEAR)
		why.broken |= BROKEN_DEAD;
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
