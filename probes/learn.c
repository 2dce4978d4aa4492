/*
 * Hooks: ext4_evict_inode and kmem_cache_free, on the rungs of those roles, for a moment at start.
 *
 * Learns from one inode of our own what no header tells: the address of ext4's inode cache, from where it is
 * freed, where vfs_inode lies in the object, and what i_state says of an inode that was evicted (the
 * bits differ between kernels).  The watcher compiles the answers in: a comparison with a constant is all
 * that the free of another cache may cost.
 * Invariant: writes once; runs until the loader has read the answer.
 */
#include "compat.h"
#include "contract.h"

BPF_ARRAY(learned, struct learned, 1);
BPF_ARRAY(evicted, u64, 1);

static __always_inline void learn_evict(u64 inode)
{
	u32 zero = 0;
	u64 *last = evicted.lookup(&zero);

	if (last && bpf_get_current_pid_tgid() >> 32 == LEARNER_TGID)
		*last = inode;
}

static __always_inline void learn_free(u64 cache, u64 object, u64 call_site)
{
	u64 name = 0;
	u64 found[3] = {};
	u32 state = 0, count = 1, size = 0;
	u32 zero = 0;
	u64 *last = evicted.lookup(&zero);
	struct learned *answer = learned.lookup(&zero);

	if (!answer || answer->cache || !last)
		return;
	/* Ours is the object that the inode lies in; its neighbours on the slab page die, too. */
	bpf_probe_read_kernel(&size, sizeof(size), (void *)(cache + OFF_CACHE_OBJECT_SIZE));
	if (*last - object >= size)
		return;
	bpf_probe_read_kernel(&name, sizeof(name), (void *)(cache + OFF_CACHE_NAME));
	bpf_probe_read_kernel_str(found, sizeof(found), (void *)name);
	/* "ext4_inode_cache" as two words, then NUL: a loop over bytes is too much for the verifier. */
	if (found[0] != 0x6f6e695f34747865ULL || found[1] != 0x65686361635f6564ULL || found[2])
		return;
	bpf_probe_read_kernel(&state, sizeof(state), (void *)(*last + OFF_I_STATE));
	bpf_probe_read_kernel(&count, sizeof(count), (void *)(*last + OFF_I_COUNT));
	/* An inode that never lived (a lost race in iget_locked) teaches nothing. */
	if (!state || count)
		return;
	answer->dead_state = state;
	answer->vfs_inode = *last - object;
	answer->call_site = call_site;
	answer->object = object;
	answer->cache = cache;
}

#ifdef EVICT_RAW_TRACEPOINT
int ext4_evict_inode(struct bpf_raw_tracepoint_args *ctx)
{
	learn_evict(ctx->args[0]);
	return 0;
}
#endif

#ifdef EVICT_KPROBE
int ext4_evict_inode(struct pt_regs *ctx)
{
	learn_evict(PT_REGS_PARM1(ctx));
	return 0;
}
#endif

#ifdef ANY_FREE_RAW_TRACEPOINT
int kmem_cache_free(struct bpf_raw_tracepoint_args *ctx)
{
	learn_free(ctx->args[FREE_CACHE_ARG], ctx->args[1], ctx->args[0]);
	return 0;
}
#endif

#ifdef ANY_FREE_KPROBE
int kmem_cache_free(struct pt_regs *ctx)
{
	learn_free(PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), caller_of(ctx));
	return 0;
}
#endif
