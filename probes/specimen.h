/*
 * A file of our own as it lies in the kernel's memory: where its inode, its dentry, its directory and an open file are, and
 * what was in the inode at moments that only a program sees.
 *
 * The loader knows what it put into that file, so it can say of each offset whether it is this kernel's, and find those that
 * nobody told it (ebpfwatch/loader/anatomy.py).
 * Invariant: without any OFF_*; only what our own task does is looked at.
 */
#include "compat.h"
#include "contract.h"

BPF_ARRAY(met, struct met, 1);
BPF_ARRAY(moments, struct moment, MOMENTS);
BPF_ARRAY(peeked, struct peeked, 1);

static __always_inline bool is_ours(void)
{
	return bpf_get_current_pid_tgid() >> 32 == LEARNER_TGID;
}

static __always_inline struct met *get_met(void)
{
	u32 zero = 0;

	return met.lookup(&zero);
}

static __always_inline void keep_moment(u32 which, u64 address)
{
	struct moment *moment = moments.lookup(&which);

	if (moment && !bpf_probe_read_kernel(moment->bytes, sizeof(moment->bytes), (void *)address))
		moment->address = address;
}

static __always_inline void meet_inode(u64 inode)
{
	struct met *now = get_met();

	if (now && is_ours())
		now->inode = inode;
}

static __always_inline void meet_unlink(u64 directory, u64 dentry)
{
	struct met *now = get_met();

	if (!now || !is_ours())
		return;
	now->directory = directory;
	now->dentry = dentry;
	now->task = bpf_get_current_task();
	keep_moment(MOMENT_UNLINKED, now->inode);
	keep_moment(MOMENT_DIRECTORY, directory);
}

static __always_inline void meet_file(u64 file)
{
	struct met *now = get_met();

	if (now && is_ours())
		now->file = file;
}

static __always_inline void meet_eviction(u64 inode)
{
	struct met *now = get_met();

	if (now && is_ours() && now->inode == inode)
		keep_moment(MOMENT_EVICTED, inode);
}

/* The inode lies in the object nearest below it; its neighbours on the slab page die, too. */
static __always_inline void meet_free(u64 cache, u64 object)
{
	struct met *now = get_met();
	u32 which = MOMENT_EVICTED;
	struct moment *evicted = moments.lookup(&which);
	u64 distance;

	if (!now || !evicted || !evicted->address)
		return;
	distance = evicted->address - object;
	if (distance >= MOMENT_BYTES || (now->cache && distance >= now->distance))
		return;
	now->distance = distance;
	now->cache = cache;
	keep_moment(MOMENT_FREED, evicted->address);
}

/* Asked for by prctl(PR_SET_NAME) of our own: the memory at an address that the loader wrote down. */
int task_rename(struct bpf_raw_tracepoint_args *ctx)
{
	u32 zero = 0;
	struct peeked *answer = peeked.lookup(&zero);

	if (answer && is_ours())
		answer->failed = !!bpf_probe_read_kernel(answer->bytes, sizeof(answer->bytes),
							 (void *)answer->address);
	return 0;
}

int ext4_unlink_enter(struct bpf_raw_tracepoint_args *ctx)
{
	meet_unlink(ctx->args[0], ctx->args[1]);
	return 0;
}

int ext4_sync_file_enter(struct bpf_raw_tracepoint_args *ctx)
{
	meet_file(ctx->args[0]);
	return 0;
}
