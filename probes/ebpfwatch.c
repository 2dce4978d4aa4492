/*
 * The whole watcher as one unit, so that all hooks share one set of maps and one ring.
 * `ebpfwatch print-probes` shows it as it is compiled.
 */
#include "kmem_cache_alloc.c"
#include "ext4_unlink.c"
#include "ext4_evict_inode.c"
#include "ext4_destroy_inode.c"
#include "ext4_free_in_core_inode.c"
#include "kmem_cache_free.c"
#include "shrink_slab.c"
#include "cpuhp.c"
#include "dentry_kill.c"
#include "iput.c"
#include "fput.c"
#include "selftest.c"
