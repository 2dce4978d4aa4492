/*
 * Hooks: raw tracepoints ext4:ext4_unlink_enter (parent inode, dentry) and ext4:ext4_unlink_exit
 * (dentry, ret).
 *
 * Remembers who deleted which name, until the inode dies of it.  The VFS holds the inode's lock around
 * ->unlink, so a second task inside it for the same inode broke that rule.
 * Invariant: at most one note an inode; a note overwritten is a name not known, never a wrong one.
 */
#include "verdict.h"

static __always_inline void on_unlink_enter(void *ctx, u64 parent, u64 dentry)
{
	u64 ns = bpf_ktime_get_ns();
	u32 pid = bpf_get_current_pid_tgid();
	struct settings *config = get_settings();
	struct note *note;
	u64 inode = 0, name = 0, ino = 0;
	u32 generation = 0;

	count(COUNTER_UNLINK, 1);
	if (READ(inode, dentry + OFF_D_INODE) || !inode)
		return;
	note = note_of(inode);
	if (!note)
		return;
	READ(ino, inode + OFF_I_INO);
	READ(generation, inode + OFF_I_GENERATION);
	/* The same inode, not only the same address: a former life's note may be left there. */
	if (note->inode == inode && note->ino == ino && note->generation == generation &&
	    note->flags & NOTE_IN_FLIGHT && note->actor.pid != pid) {
		struct suspicion why = {};

		why.object = object_of(inode);
		why.verdict = VERDICT_CONCURRENT_UNLINK;
		why.ino = ino;
		why.generation = generation;
		why.dev = read_dev(inode);
		report(ctx, HOOK_UNLINK, ns, &why, NULL, 0);
	}
	note->inode = 0;
	note->ino = ino;
	note->generation = generation;
	READ(note->parent_ino, parent + OFF_I_INO);
	READ(note->directory, dentry + OFF_D_PARENT);
	READ(name, dentry + OFF_D_NAME);
	if (bpf_probe_read_kernel_str(note->name, sizeof(note->name), (void *)name) < 0)
		note->name[0] = 0;
	note->dev = read_dev(inode);
	note->result = 0;
	fill_actor(&note->actor, ns, 0);
	note->flags = NOTE_IN_FLIGHT;
	if (config && config->canary_tgid && config->canary_tgid == note->actor.tgid) {
		note->flags |= NOTE_CANARY;
		report_step(ctx, HOOK_UNLINK, ns, object_of(inode), note->ino, note->generation,
			    note->dev, 0);
	}
	note->inode = inode;
}

static __always_inline void on_unlink_exit(void *ctx, u64 dentry, s32 result)
{
	u32 pid = bpf_get_current_pid_tgid();
	struct note *note;
	u64 inode = 0;

	if (READ(inode, dentry + OFF_D_INODE) || !inode)
		return;
	note = note_of(inode);
	if (!note || note->inode != inode || note->actor.pid != pid)
		return;
	note->result = result;
	note->flags &= ~NOTE_IN_FLIGHT;
	if (note->flags & NOTE_CANARY)
		report_step(ctx, HOOK_UNLINK, bpf_ktime_get_ns(), object_of(inode), note->ino,
			    note->generation, note->dev, 1);
}

#ifdef UNLINK_RAW_TRACEPOINT
int ext4_unlink_enter(struct bpf_raw_tracepoint_args *ctx)
{
	on_unlink_enter(ctx, ctx->args[0], ctx->args[1]);
	return 0;
}

int ext4_unlink_exit(struct bpf_raw_tracepoint_args *ctx)
{
	on_unlink_exit(ctx, ctx->args[0], (s32)ctx->args[1]);
	return 0;
}
#endif
