// SPDX-License-Identifier: GPL-2.0
/* One instance of each struct that the probes read, so that the compiler's debug information describes it. */
#include <linux/dcache.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/slub_def.h>

struct inode types_inode;
struct super_block types_super;
struct dentry types_dentry;
struct kmem_cache types_cache;

MODULE_LICENSE("GPL");
