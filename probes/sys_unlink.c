/*
 * Hooks: tracepoints syscalls:sys_enter_unlink (pathname), sys_enter_unlinkat (dfd, pathname, flag) and
 * their sys_exit_*; arm64 has only unlinkat.
 *
 * The whole call for `ebpfwatch unlinks`: the path as the caller wrote it, the inode it reached, the
 * result.  Not part of the watcher: one syscall tracepoint makes every system call of the machine take
 * the slow path.
 * Invariant: one call a task; a record is submitted only at the return of the call that began it.
 */
#include "output.h"

#define CALL_SLOTS 1024

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

BPF_ARRAY(calls, struct unlink_record, CALL_SLOTS);

static __always_inline struct unlink_record *call_slot(void)
{
	u32 index = (u32)bpf_get_current_pid_tgid() & (CALL_SLOTS - 1);

	return calls.lookup(&index);
}

static __always_inline int enter(s32 dfd, u64 path, u32 flags)
{
	struct unlink_record *call = call_slot();
	long bytes;

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
	struct unlink_record *call = call_slot();

	if (!call || call->actor.pid != (u32)bpf_get_current_pid_tgid() || !call->header.ns)
		return 0;
	call->result = result;
	submit(ctx, call, sizeof(*call));
	call->header.ns = 0;
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
