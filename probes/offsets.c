/*
 * Hook: raw tracepoint raw_syscalls:sys_enter, for one system call at start.
 *
 * Where the kernel has no BTF, its headers say where the members are: they are compiled into constants,
 * and the program writes them into a map.
 * Invariant: the order is that of ebpfwatch/kernel/offsets.py.
 */
#include <linux/dcache.h>
#include <linux/fs.h>
#include <linux/mm.h> /* slub_def.h uses page_address() without it */
#include <linux/slab.h>
#ifdef CONFIG_SLAB
#include <linux/slab_def.h>
#else
#include <linux/slub_def.h>
#endif

#define OFFSETS 16

BPF_ARRAY(offsets, u64, OFFSETS);

static __always_inline void put(u32 index, u64 value)
{
	u64 *slot = offsets.lookup(&index);

	if (slot)
		*slot = value + 1; /* 0 = not yet written */
}

int find_offsets(struct bpf_raw_tracepoint_args *ctx)
{
	put(0, offsetof(struct inode, i_ino));
	put(1, offsetof(struct inode, i_generation));
	put(2, offsetof(struct inode, i_nlink));
	put(3, offsetof(struct inode, i_state));
	put(4, offsetof(struct inode, i_count));
	put(5, offsetof(struct inode, i_sb));
	put(6, offsetof(struct inode, i_sb_list));
	put(7, offsetof(struct inode, i_rcu));
	put(8, offsetof(struct super_block, s_dev));
	put(9, offsetof(struct dentry, d_inode));
	put(10, offsetof(struct dentry, d_name) + offsetof(struct qstr, name));
	put(11, offsetof(struct kmem_cache, name));
	put(12, offsetof(struct kmem_cache, object_size));
	put(13, offsetof(struct dentry, d_parent));
	return 0;
}
