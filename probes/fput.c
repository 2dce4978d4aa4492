/*
 * Hook: __fput(file), of every filesystem: the last reference of an open file is gone.  Attached only while it is armed.
 *
 * Rule (fs/file_table.c): an open file holds its dentry until the end of __fput(), so that dentry has a count of at least 1.
 * A file whose open failed has none (do_dentry_open() sets f_path to NULL).
 * Invariant: two reads a call.
 */
#include "contracts.h"

static __always_inline void on_close(void *ctx, u64 file, u64 call_site)
{
	struct suspicion why = {};
	u64 dentry = 0;
	s32 held = 1;

	count(COUNTER_CLOSE, 1);
	if (READ(dentry, file + OFF_F_DENTRY) || !dentry || READ(held, dentry + OFF_D_COUNT) ||
	    held > 0)
		return;
	why.broken = BROKEN_COUNT | (held < 0 ? BROKEN_DEAD : 0);
	why.verdict = VERDICT_CLOSED_AFTER_DEATH;
	why.related = file;
	why.call_site = call_site;
	why.count = held;
	report_dentry(ctx, HOOK_CLOSE, dentry, &why);
}

#ifdef CLOSE_FENTRY
int fput(struct bpf_raw_tracepoint_args *ctx)
{
	on_close(ctx, fentry_argument(ctx, 0), 0);
	return 0;
}
#endif

#ifdef CLOSE_KPROBE
int fput(struct pt_regs *ctx)
{
	on_close(ctx, PT_REGS_PARM1(ctx), caller_of(ctx));
	return 0;
}
#endif
