/*
 * Hooks: tracepoints syscalls:sys_enter_unlink (pathname), sys_enter_unlinkat (dfd, pathname, flag) and
 * their sys_exit_*; arm64 has only unlinkat.
 *
 * The whole call for `ebpfwatch unlinks`: the path as the caller wrote it, the inode it reached, the
 * result.  Not part of the watcher: one syscall tracepoint makes every system call of the machine take
 * the slow path.
 * Invariant: a call is found by its own task's pid_tgid and written by that task alone, so nobody gets
 * another's name, inode or result; each call of whom we want is submitted at its return, or is counted as
 * lost, or has not returned.
 *
 * NOTE_SLOTS comes from the loader: calls that can be under way at once.
 */
#include "output.h"

#define EVERYBODY 0xffffffffu

struct syscall_enter {
	u64 common;
	s64 number;
	u64 args[6];
};

struct syscall_exit {
	u64 common;
	s64 number;
	s64 result;
};

/*
 * A hash, allocated whole when it is loaded: an array of slots by pid would give two tasks the same one.
 * Only in task context, so no softirq meets the lock of a bucket.
 */
BPF_HASH(calls, u64, struct unlink_record, NOTE_SLOTS);
BPF_ARRAY(blank, struct unlink_record, 1); /* never written: what a new entry begins with */
BPF_ARRAY(wanted, u32, 1);                 /* whose calls: a tgid, EVERYBODY, or 0 = nobody's yet */

/* The call that this task is in the middle of, if we saw it begin. */
static __always_inline struct unlink_record *call_of(u64 pid_tgid)
{
	struct unlink_record *call = calls.lookup(&pid_tgid);

	return call && call->header.ns ? call : NULL;
}

static __always_inline struct unlink_record *new_call(u64 pid_tgid)
{
	struct unlink_record *call = calls.lookup(&pid_tgid), *nothing;
	u32 zero = 0;

	if (call) {
		/* Its call never returned: that task died in there, and its number is in use again. */
		if (call->header.ns)
			count(COUNTER_CALL_LOST, 1);
		return call;
	}
	nothing = blank.lookup(&zero);
	if (!nothing)
		return NULL;
	calls.update(&pid_tgid, nothing);
	call = calls.lookup(&pid_tgid);
	if (!call)
		count(COUNTER_CALL_LOST, 1);
	return call;
}

static __always_inline int enter(s32 dfd, u64 path, u32 flags)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();
	struct unlink_record *call;
	u32 zero = 0, *whose = wanted.lookup(&zero);
	long bytes;

	if (!whose || (*whose != EVERYBODY && *whose != pid_tgid >> 32))
		return 0;
	count(COUNTER_UNLINK, 1);
	call = new_call(pid_tgid);
	if (!call)
		return 0;
	call->header.kind = RECORD_UNLINK;
	call->header.size = sizeof(*call);
	call->header.cpu = bpf_get_smp_processor_id();
	call->header.ns = bpf_ktime_get_ns();
	call->ino = 0;
	call->dev = 0;
	call->dfd = dfd;
	call->flags = flags;
	call->name[0] = 0;
	fill_actor(&call->actor, call->header.ns, 0);
	bytes = bpf_probe_read_user_str(call->path, sizeof(call->path), (void *)path);
	call->path_bytes = bytes > 0 ? bytes : 0;
	if (bytes <= 0)
		call->path[0] = 0;
	return 0;
}

static __always_inline int leave(void *ctx, s32 result)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();
	struct unlink_record *call = call_of(pid_tgid);

	if (!call)
		return 0;
	call->result = result;
	submit(ctx, call, sizeof(*call));
	/* Told, even where the entry cannot be given back. */
	call->header.ns = 0;
	calls.delete(&pid_tgid);
	return 0;
}

int sys_enter_unlink(struct syscall_enter *ctx)
{
	return enter(-100 /* AT_FDCWD */, ctx->args[0], 0);
}

int sys_enter_unlinkat(struct syscall_enter *ctx)
{
	return enter(ctx->args[0], ctx->args[1], ctx->args[2]);
}

int sys_exit_unlink(struct syscall_exit *ctx)
{
	return leave(ctx, ctx->result);
}

int sys_exit_unlinkat(struct syscall_exit *ctx)
{
	return leave(ctx, ctx->result);
}
