/*
 * How to read an inode without knowing its struct: the OFF_* come from BTF (or from the kernel's
 * headers by offsetof) through the loader.
 *
 * The object testifies about itself.  clear_inode() leaves exactly I_FREEING | I_CLEAR in i_state, and
 * evict() takes the inode off its superblock's list, before it is freed (fs/inode.c), so an object
 * that is still on that list was never evicted in this life: whoever frees it frees a living inode.
 * The bits are other ones in other kernels, so DEAD_STATE is learned from a dead inode (learn.c).
 * An inode that lost the race in iget_locked() is destroyed without eviction, legally; it never
 * was on the list.
 */
#include "compat.h"
#include "contract.h"

#define READ(destination, address) \
	bpf_probe_read_kernel(&(destination), sizeof(destination), (void *)(address))

static __always_inline u32 read_dev(u64 inode)
{
	u64 super = 0;
	u32 dev = 0;

	READ(super, inode + OFF_I_SB);
	READ(dev, super + OFF_S_DEV);
	return dev;
}
