/*
 * The unit of `ebpfwatch unlinks`: the system calls, and the ext4 inode each one reaches.
 *
 * Hook besides sys_unlink.c's: raw tracepoint ext4:ext4_unlink_enter (parent inode, dentry).
 * Invariant: shares no map with the watcher; both can run at once.
 */
#include "inode.h"
#include "sys_unlink.c"

int ext4_unlink_enter(struct bpf_raw_tracepoint_args *ctx)
{
	struct unlink_record *call = call_of(bpf_get_current_pid_tgid());
	u64 inode = 0, name = 0, dentry = ctx->args[1];

	if (!call)
		return 0;
	if (READ(inode, dentry + OFF_D_INODE) || !inode)
		return 0;
	READ(call->ino, inode + OFF_I_INO);
	call->dev = read_dev(inode);
	READ(name, dentry + OFF_D_NAME);
	bpf_probe_read_kernel_str(call->name, sizeof(call->name), (void *)name);
	return 0;
}
