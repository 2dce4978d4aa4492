/*
 * Hooks: raw tracepoints ext4:ext4_unlink_enter (parent inode, dentry) and ext4:ext4_unlink_exit
 * (dentry, ret).
 *
 * Remembers who deleted which name, until the inode dies of it.  The VFS holds the inode's lock around
 * ->unlink, so a second task inside it for the same inode broke that rule.  Whoever comes here without those
 * locks, or with a name that is not in that directory (may_delete() in fs/namei.c has a BUG_ON() for it, for who comes
 * by vfs_unlink()), is told at once.
 * With NO_NAMES only that it was deleted, when and by whom: what the verdicts are made of.
 * Invariant: at most one note an inode; a note overwritten, or written by two CPUs at once (then its seal is
 * broken), is a name not known, never a wrong one.
 */
#include "contracts.h"
#include "task.h"

/* struct dentry from d_parent on: all of it, and a short name, in one read. */
#define DENTRY_WHOLE (OFF_D_NAME == OFF_D_PARENT + 16 && OFF_D_INODE == OFF_D_NAME + 8)

struct dentry_seen {
	u64 parent;
	u64 hash_and_length;
	u64 name;
	u64 inode;
#ifndef NO_NAMES
	char inline_name[INLINE_NAME];
#endif
};

static __always_inline bool read_dentry(u64 dentry, struct dentry_seen *seen)
{
#ifdef WORDS_TYPE
	u64 words = WORDS(dentry);

	seen->parent = LOAD(64, words, OFF_D_PARENT);
	seen->name = LOAD(64, words, OFF_D_NAME);
	seen->inode = LOAD(64, words, OFF_D_INODE);
#if DENTRY_WHOLE && !defined(NO_NAMES)
	*(u64 *)&seen->inline_name[0] = LOAD(64, words, OFF_D_INODE + 8);
	*(u64 *)&seen->inline_name[8] = LOAD(64, words, OFF_D_INODE + 16);
	*(u64 *)&seen->inline_name[16] = LOAD(64, words, OFF_D_INODE + 24);
	*(u64 *)&seen->inline_name[24] = LOAD(64, words, OFF_D_INODE + 32);
#endif
	return true;
#elif DENTRY_WHOLE
	return !READ(*seen, dentry + OFF_D_PARENT);
#else
	return !READ(seen->inode, dentry + OFF_D_INODE) && !READ(seen->name, dentry + OFF_D_NAME) &&
	       !READ(seen->parent, dentry + OFF_D_PARENT);
#endif
}

/* Whether the directory above the name is `parent`, as far as an instruction can see: for sure where it says yes. */
static __always_inline bool is_below(const struct dentry_seen *seen, u64 parent)
{
#ifdef WORDS_TYPE
	return LOAD(64, WORDS(seen->parent), OFF_D_INODE) == parent;
#else
	return false;
#endif
}

static __always_inline void copy_name(struct note *note, u64 parent_ino, u64 dentry,
				      const struct dentry_seen *seen)
{
#ifdef NO_NAMES
	note->parent_ino = 0;
	note->directory = 0;
	note->name[0] = 0;
#else
	note->parent_ino = parent_ino;
	note->directory = seen->parent;
#if DENTRY_WHOLE
	if (seen->name == dentry + OFF_D_INODE + 8) {
		__builtin_memcpy(note->name, seen->inline_name, INLINE_NAME);
		note->name[INLINE_NAME] = 0;
		return;
	}
#endif
	if (bpf_probe_read_kernel_str(note->name, sizeof(note->name), (void *)seen->name) < 0)
		note->name[0] = 0;
#endif
}

static __always_inline void report_unlink(void *ctx, u64 inode, u64 parent, u64 dentry, u32 broken,
					  u64 found)
{
	struct suspicion why = {};
	struct inode_seen seen = {};

	if (read_inode(inode, &seen))
		why.flags = WITNESS_IDENTITY;
	why.flags |= read_witness(inode, &why.state, &why.count);
	why.object = object_of(inode);
	why.verdict = broken ? VERDICT_UNLOCKED_UNLINK : VERDICT_CONCURRENT_UNLINK;
	why.broken = broken;
	why.related = parent;
	why.found = found;
	why.dentry = broken ? dentry : 0;
	why.ino = seen.ino;
	why.generation = seen.generation;
	why.dev = dev_of(seen.super);
	report(ctx, HOOK_UNLINK, &why, NULL, 0);
}

static __always_inline void report_canary(void *ctx, u64 inode, u32 leaving)
{
	struct inode_seen seen = {};

	read_inode(inode, &seen);
	report_step(ctx, HOOK_UNLINK, object_of(inode), seen.ino, seen.generation,
		    dev_of(seen.super), leaving);
}

static __always_inline void on_unlink_enter(void *ctx, u64 parent, u64 dentry)
{
	u64 ns = coarse_ns(), pid_tgid = bpf_get_current_pid_tgid();
	u32 pid = pid_tgid;
	struct task *task = task_slot(pid);
	struct settings *config = get_settings();
	struct dentry_seen seen = {};
	struct unlinked directory = {}, victim = {};
	struct note *note;
	u64 inode, found = 0, above = 0;
	u32 broken = 0;
	bool concurrent;

	count(COUNTER_UNLINK, 1);
	if (!read_dentry(dentry, &seen) || !seen.inode)
		return;
	inode = seen.inode;
	note = note_of(inode);
	if (!note)
		return;
	if (read_unlinked(parent, &directory) && read_unlinked(inode, &victim))
		broken = check_unlink(&directory, &victim, &found);
	if (!is_below(&seen, parent) && !READ(above, seen.parent + OFF_D_INODE) && above != parent)
		broken |= BROKEN_PARENT;
	/* A former life's note is spent: its inode was evicted. */
	concurrent = note->inode == inode && !(note->flags & NOTE_SPENT) &&
		     note->actor.pid != pid && in_flight(note) && !is_locked_by_us(inode);
	if (broken || concurrent)
		report_unlink(ctx, inode, parent, dentry, broken, found);
	note->inode = 0;
	copy_name(note, directory.ino, dentry, &seen);
	note->result = 0;
	fill_named(&note->actor, ns, 0, pid_tgid);
	note->flags = NOTE_IN_FLIGHT;
	note->seal = seal_of_note(note, inode);
	if (config && config->canary_tgid && config->canary_tgid == note->actor.tgid) {
		note->flags |= NOTE_CANARY;
		report_canary(ctx, inode, 0);
	}
	note->inode = inode;
	if (task) {
		task->inode = inode;
		task->unlink_pid = pid;
	}
}

/* The inode that this task is unlinking; it is in the dentry, too, but that costs a read. */
static __always_inline u64 leave_unlink(u32 pid, u64 dentry)
{
	struct task *task = task_slot(pid);
	u64 inode = 0;

	if (task && task->unlink_pid == pid) {
		task->unlink_pid = 0;
		return task->inode;
	}
	READ(inode, dentry + OFF_D_INODE);
	return inode;
}

static __always_inline void on_unlink_exit(void *ctx, u64 dentry, s32 result)
{
	u32 pid = bpf_get_current_pid_tgid();
	u64 inode = leave_unlink(pid, dentry);
	struct note *note = note_of(inode);

	if (!inode || !note || note->inode != inode || note->actor.pid != pid)
		return;
	note->result = result;
	note->flags &= ~NOTE_IN_FLIGHT;
	if (note->flags & NOTE_CANARY)
		report_canary(ctx, inode, 1);
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
