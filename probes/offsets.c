/*
 * Hook: raw tracepoint raw_syscalls:sys_enter, for one system call at start.
 *
 * Where the kernel has no BTF, its headers say where the members are: they are compiled into constants,
 * and the program writes them into a map.
 * Invariant: the numbers are those of ebpfwatch/loader/offsets.py.
 */
#include <linux/version.h>
#include <linux/dcache.h>
#include <linux/fs.h>
#include <linux/mm.h> /* slub_def.h uses page_address() without it */
#include <linux/slab.h>
#ifdef CONFIG_SLAB
#include <linux/slab_def.h>
#else
#include <linux/slub_def.h>
#endif

#define OFFSETS 32

BPF_ARRAY(offsets, u64, OFFSETS);

static __always_inline void put(u32 index, u64 value)
{
	u64 *slot = offsets.lookup(&index);

	if (slot)
		*slot = value + 1; /* 0 = not yet written */
}

int find_offsets(struct bpf_raw_tracepoint_args *ctx)
{
	/* What a kernel may lack comes first: what it has is there once the last one is. */
#ifdef CONFIG_IMA
	put(26, offsetof(struct inode, i_readcount));
#endif
#if defined(CONFIG_RWSEM_SPIN_ON_OWNER) && !defined(CONFIG_PREEMPT_RT) && \
	!defined(CONFIG_PREEMPT_RT_FULL)
	put(27, offsetof(struct inode, i_rwsem) + offsetof(struct rw_semaphore, owner));
#endif
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 8, 0)
	put(28, offsetof(struct dentry, d_subdirs));
	put(29, offsetof(struct dentry, d_child));
#else
	put(30, offsetof(struct dentry, d_children));
	put(31, offsetof(struct dentry, d_sib));
#endif
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
	put(14, offsetof(struct inode, i_dentry));
	put(15, offsetof(struct inode, i_writecount));
	put(16, offsetof(struct inode, i_data) + offsetof(struct address_space, i_mmap));
	put(17, offsetof(struct dentry, d_lockref.count));
	put(18, offsetof(struct dentry, d_u));
	put(19, offsetof(struct dentry, d_sb));
	put(20, offsetof(struct super_block, s_type));
	put(21, offsetof(struct file_system_type, name));
	put(22, offsetof(struct file, f_path) + offsetof(struct path, dentry));
	return 0;
}
