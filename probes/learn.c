/*
 * Hook: kmem_cache_free on the rung of the strict hook, for a moment at start.
 *
 * Learns the address of ext4's inode cache, and from where it is freed, by the cache's name, and what
 * i_state says of an inode that was evicted (the bits differ between kernels): the
 * watcher compiles the address in, because a comparison with a constant is all that the free of another
 * cache may cost.
 * Invariant: writes once; runs until the loader has read the answer.
 */
#include "compat.h"

struct learned {
	u64 cache;
	u64 call_site;
	u64 object;
	u64 dead_state;
};

BPF_ARRAY(learned, struct learned, 1);

static __always_inline void learn(u64 cache, u64 object, u64 call_site)
{
	u64 name = 0, inode = object + OFF_VFS_INODE;
	u64 found[3] = {};
	u32 state = 0, count = 1;
	u32 zero = 0;
	struct learned *answer = learned.lookup(&zero);

	if (!answer || answer->cache)
		return;
	bpf_probe_read_kernel(&name, sizeof(name), (void *)(cache + OFF_CACHE_NAME));
	bpf_probe_read_kernel_str(found, sizeof(found), (void *)name);
	/* "ext4_inode_cache" as two words, then NUL: a loop over bytes is too much for the verifier. */
	if (found[0] != 0x6f6e695f34747865ULL || found[1] != 0x65686361635f6564ULL || found[2])
		return;
	bpf_probe_read_kernel(&state, sizeof(state), (void *)(inode + OFF_I_STATE));
	bpf_probe_read_kernel(&count, sizeof(count), (void *)(inode + OFF_I_COUNT));
	/* An inode that never lived (a lost race in iget_locked) teaches nothing. */
	if (!state || count)
		return;
	answer->dead_state = state;
	answer->call_site = call_site;
	answer->object = object;
	answer->cache = cache;
}

#ifdef ANY_FREE_RAW_TRACEPOINT
int kmem_cache_free(struct bpf_raw_tracepoint_args *ctx)
{
	learn(ctx->args[FREE_CACHE_ARG], ctx->args[1], ctx->args[0]);
	return 0;
}
#endif

#ifdef ANY_FREE_KPROBE
int kmem_cache_free(struct pt_regs *ctx)
{
	learn(PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), caller_of(ctx));
	return 0;
}
#endif
