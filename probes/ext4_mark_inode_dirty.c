/*
 * Hook: raw tracepoint ext4:ext4_mark_inode_dirty (inode, caller).
 *
 * Invariant: an inode that is in the table as dead is not written to.
 */
#include "verdict.h"

#ifdef TRIAL_RAW_TRACEPOINT
int ext4_mark_inode_dirty(struct bpf_raw_tracepoint_args *ctx)
{
	u64 inode = ctx->args[0];
	struct suspicion why = {};
	struct bucket *bucket;
	u32 way;
	u64 key;

	why.object = object_of(inode);
	bucket = bucket_of(why.object);
	if (!bucket)
		return 0;
	way = find_way(bucket, why.object);
	key = way == NO_WAY ? 0 : key_of(bucket, way, why.object);
	if (!(key & OBJECT_DEAD))
		return 0;
	why.verdict = VERDICT_TRIAL_DIRTY;
	why.call_site = ctx->args[1];
	why.flags = read_witness(inode, &why.state, &why.count);
	report(ctx, HOOK_TRIAL, &why, life_in(bucket, way), key);
	return 0;
}
#endif
