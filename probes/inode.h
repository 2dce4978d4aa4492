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

/* What an inode says of itself. */
struct inode_seen {
	u64 super;
	u64 ino;
	u32 nlink;
	u32 generation;
	u32 state;
	u64 owner; /* of its lock, with its flags; 0 where the kernel keeps none, or it lies far off */
};

/* Where the fields lie close together one read costs a third of four. */
#define INODE_BLOCK 128
#define IN_BLOCK(offset) ((offset) >= OFF_I_SB && (offset) + 8 <= OFF_I_SB + INODE_BLOCK)
#define AT(offset) ((void *)block + ((offset) - OFF_I_SB))

#ifdef WORDS_TYPE
static __always_inline bool read_inode(u64 inode, struct inode_seen *seen)
{
	u64 words = WORDS(inode);

	seen->super = LOAD(64, words, OFF_I_SB);
	seen->ino = LOAD(64, words, OFF_I_INO);
	seen->nlink = LOAD(32, words, OFF_I_NLINK);
	seen->generation = LOAD(32, words, OFF_I_GENERATION);
	seen->state = LOAD(32, words, OFF_I_STATE);
#ifdef OFF_I_RWSEM_OWNER
	seen->owner = LOAD(64, words, OFF_I_RWSEM_OWNER);
#endif
	return true;
}
#else
static __always_inline bool read_inode(u64 inode, struct inode_seen *seen)
{
	u64 block[INODE_BLOCK / 8];

	if (READ(block, inode + OFF_I_SB))
		return false;
	seen->super = block[0];
#if IN_BLOCK(OFF_I_INO)
	seen->ino = *(u64 *)AT(OFF_I_INO);
#else
	READ(seen->ino, inode + OFF_I_INO);
#endif
#if IN_BLOCK(OFF_I_NLINK)
	seen->nlink = *(u32 *)AT(OFF_I_NLINK);
#else
	READ(seen->nlink, inode + OFF_I_NLINK);
#endif
#if IN_BLOCK(OFF_I_GENERATION)
	seen->generation = *(u32 *)AT(OFF_I_GENERATION);
#else
	READ(seen->generation, inode + OFF_I_GENERATION);
#endif
#if IN_BLOCK(OFF_I_STATE)
	seen->state = *(u32 *)AT(OFF_I_STATE);
#else
	READ(seen->state, inode + OFF_I_STATE);
#endif
#ifdef OFF_I_RWSEM_OWNER
#if IN_BLOCK(OFF_I_RWSEM_OWNER)
	seen->owner = *(u64 *)AT(OFF_I_RWSEM_OWNER);
#else
	READ(seen->owner, inode + OFF_I_RWSEM_OWNER);
#endif
#endif
	return true;
}
#endif

/* Which inode it is. */
static __always_inline bool read_identity(u64 inode, u64 *ino, u32 *generation)
{
#ifdef WORDS_TYPE
	u64 words = WORDS(inode);

	*ino = LOAD(64, words, OFF_I_INO);
	*generation = LOAD(32, words, OFF_I_GENERATION);
	return true;
#else
	return !READ(*ino, inode + OFF_I_INO) && !READ(*generation, inode + OFF_I_GENERATION);
#endif
}

static __always_inline u32 dev_of(u64 super)
{
	u32 dev = 0;

	READ(dev, super + OFF_S_DEV);
	return dev;
}

static __always_inline u32 read_dev(u64 inode)
{
	u64 super = 0;

	READ(super, inode + OFF_I_SB);
	return dev_of(super);
}
