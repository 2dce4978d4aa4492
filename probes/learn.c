/*
 * Hooks: ext4_evict_inode and kmem_cache_free, on the rungs of those roles, and the raw tracepoint
 * ext4:ext4_allocate_inode (inode, dir, mode), for a moment at start.
 *
 * Learns from an inode of our own what no header tells: the address of ext4's inode cache, from where it is
 * freed, where vfs_inode lies in the object, and what i_state says of an inode that was evicted (the
 * bits differ between kernels).  The watcher compiles the answers in: a comparison with a constant is all
 * that the free of another cache may cost.
 * What the inode says of itself through the OFF_* is kept beside it: the loader knows what it put in,
 * so offsets of another kernel are found out here (ebpfwatch/loader/learn.py).
 * Invariant: the answer is written once; the first OURS inodes are waited for, however late RCU frees
 * them, and no later one takes their place.
 */
#include "specimen.h"

#ifdef FINDING /* the offsets are what is looked for: only the specimen counts */
#define learn_allocate(inode)
#define learn_evict(inode)
#define learn_free(cache, object, call_site)
#else
#include "inode.h"

BPF_ARRAY(learned, struct learned, 1);
BPF_ARRAY(count_allocated, u32, 1);
BPF_ARRAY(allocated, struct testimony, OURS);
BPF_ARRAY(evicted, struct testimony, OURS);

static __always_inline void testify(struct testimony *said, u64 inode)
{
	struct inode_seen fields = {};
	u64 next = 0, back = 0;

	read_inode(inode, &fields);
	said->ino = fields.ino;
	said->generation = fields.generation;
	said->nlink = fields.nlink;
	said->dev = dev_of(fields.super);
	said->state = fields.state;
	READ(said->count, inode + OFF_I_COUNT);
	READ(next, inode + OFF_I_SB_LIST);
	if (next != inode + OFF_I_SB_LIST)
		READ(back, next + 8); /* struct list_head: next, prev */
	said->listed = back == inode + OFF_I_SB_LIST;
	said->inode = inode;
}

static __always_inline void learn_allocate(u64 inode)
{
	u32 zero = 0, index;
	u32 *count = count_allocated.lookup(&zero);
	struct testimony *said;

	if (!is_ours() || !count || *count >= OURS)
		return;
	index = (*count)++;
	said = allocated.lookup(&index);
	if (said)
		testify(said, inode);
}

/* Only of what we allocated: reclaim inside our own task may evict any inode. */
static __always_inline void learn_evict(u64 inode)
{
	struct testimony *said;
	u32 found = OURS;

	if (!is_ours())
		return;
#pragma unroll
	for (u32 i = 0; i < OURS; i++) {
		u32 index = i;

		said = allocated.lookup(&index);
		if (said && said->inode == inode)
			found = i;
	}
	said = found < OURS ? evicted.lookup(&found) : NULL;
	if (said && !said->inode)
		testify(said, inode);
}

/* Whether it is ext4's inode cache: its name as two words, then NUL: old verifiers know no loops. */
static __always_inline bool is_inode_cache(u64 cache)
{
	u64 name = cache;
	u64 found[3] = {};

#ifndef FREE_CACHE_BY_NAME /* else the tracepoint gives the name itself (Linux 5.13 to 6.0) */
	READ(name, cache + OFF_CACHE_NAME);
#endif
	bpf_probe_read_kernel_str(found, sizeof(found), (void *)name);
	return found[0] == 0x6f6e695f34747865ULL && found[1] == 0x65686361635f6564ULL && !found[2];
}

static __always_inline void learn_free(u64 cache, u64 object, u64 call_site)
{
	u32 state = 0, size = 0, zero = 0;
	struct learned *answer = learned.lookup(&zero);
	struct testimony *said;
	u64 inode = 0;

	if (!answer || answer->cache)
		return;
	/* Ours is the object that the inode lies in; its neighbours on the slab page die, too. */
#ifdef CACHE_OBJECT_SIZE
	size = CACHE_OBJECT_SIZE;
#else
	READ(size, cache + OFF_CACHE_OBJECT_SIZE);
#endif
#pragma unroll
	for (u32 i = 0; i < OURS; i++) {
		u32 index = i;

		said = evicted.lookup(&index);
		if (said && said->inode - object < size)
			inode = said->inode;
	}
	if (!inode || !is_inode_cache(cache))
		return;
	READ(state, inode + OFF_I_STATE);
	answer->dead_state = state;
	answer->vfs_inode = inode - object;
	answer->call_site = call_site;
	answer->object = object;
	answer->cache = cache;
}
#endif

int ext4_allocate_inode(struct bpf_raw_tracepoint_args *ctx)
{
	learn_allocate(ctx->args[0]);
	meet_inode(ctx->args[0]);
	return 0;
}

#ifdef EVICT_RAW_TRACEPOINT
int ext4_evict_inode(struct bpf_raw_tracepoint_args *ctx)
{
	learn_evict(ctx->args[0]);
	meet_eviction(ctx->args[0]);
	return 0;
}
#endif

#ifdef EVICT_KPROBE
int ext4_evict_inode(struct pt_regs *ctx)
{
	learn_evict(PT_REGS_PARM1(ctx));
	meet_eviction(PT_REGS_PARM1(ctx));
	return 0;
}
#endif

#ifdef ANY_FREE_RAW_TRACEPOINT
int kmem_cache_free(struct bpf_raw_tracepoint_args *ctx)
{
	learn_free(ctx->args[FREE_CACHE_ARG], ctx->args[1], ctx->args[0]);
	meet_free(ctx->args[FREE_CACHE_ARG], ctx->args[1]);
	return 0;
}
#endif

#ifdef ANY_FREE_KPROBE
int kmem_cache_free(struct pt_regs *ctx)
{
	learn_free(PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), caller_of(ctx));
	meet_free(PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx));
	return 0;
}
#endif
