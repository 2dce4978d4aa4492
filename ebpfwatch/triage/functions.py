"""Which kernel functions free slab objects, end inodes and dentries, or work on them.

Names without compiler suffixes, of Linux 3.10 to 6.18; functions that came or went with a version
stand beside those they replaced.
"""

from __future__ import annotations

import re

from ebpfwatch.catalogue.functions import RCU_CALLBACKS

__all__ = [
    "BLOCK",
    "DISPATCH",
    "EXT4_FREE",
    "INODE_FREE",
    "KFREE",
    "LIFE",
    "NOISE",
    "RCU",
    "RECLAIM",
    "SLAB_ALLOC",
    "SLAB_FREE",
    "SOFTIRQ",
    "USE",
    "filesystem",
    "filesystem_of_cache",
]

#: ext4's callbacks that free the memory of an inode; i_callback is every filesystem's.
EXT4_FREE = RCU_CALLBACKS - {"i_callback"}
#: The VFS' own: every filesystem's inodes come by here.
INODE_FREE = {"i_callback", "destroy_inode", "free_inode_nonrcu"}
#: Functions of the slab that take an object back.
SLAB_FREE = {
    *(
        "kmem_cache_free",
        "__kmem_cache_free",
        "kmem_cache_free_bulk",
        "cache_from_obj",
        "slab_free",
    ),
    *("__slab_free", "do_slab_free", "set_freepointer", "free_to_partial_list", "___cache_free"),
    *("slab_free_freelist_hook", "slab_free_hook", "free_debug_processing", "__cache_free"),
    *("cache_free_debugcheck", "__kasan_slab_free", "____kasan_slab_free", "kasan_slab_free"),
    *("kasan_report_invalid_free", "kasan_report_double_free", "kfence_guarded_free"),
    *(
        "__kfence_free",
        "kfence_report_error",
        "object_err",
        "slab_err",
        "slab_bug",
        "build_detached",
    ),
    *("discard_slab", "__free_slab", "build_detached_freelist", "free_large_kmalloc"),
}
#: They free what kmalloc() gave, which is no inode of ext4 and no dentry.
KFREE = {"kfree", "kvfree", "kzfree", "kfree_sensitive"}
SLAB_ALLOC = {
    *("kmem_cache_alloc", "kmem_cache_alloc_lru", "kmem_cache_alloc_noprof", "slab_alloc_node"),
    *("kmem_cache_alloc_lru_noprof", "kmem_cache_alloc_trace", "___slab_alloc", "__slab_alloc"),
    *("__kmalloc", "__kmalloc_noprof", "get_freepointer", "deactivate_slab", "slab_alloc"),
    *("kmem_cache_alloc_node", "__kmalloc_node", "__kmalloc_track_caller", "kmalloc_trace"),
    *(
        "__kmalloc_cache_noprof",
        "__kmalloc_node_track_caller",
        "get_partial_node",
        "unfreeze_partials",
    ),
    *("kmem_cache_alloc_bulk", "new_slab", "allocate_slab", "freelist_ptr_decode"),
}
#: Where inodes and dentries end their life.
LIFE = {
    *("evict", "iput", "iput_final", "destroy_inode", "clear_inode", "ext4_evict_inode"),
    *("ext4_clear_inode", "ext4_destroy_inode", "__destroy_inode", "generic_delete_inode"),
    *("inode_lru_isolate", "prune_icache_sb", "dispose_list", "evict_inodes", "invalidate_inodes"),
    *("__dentry_kill", "dentry_kill", "dentry_free", "dentry_unlink_inode", "shrink_dentry_list"),
    *("shrink_lock_dentry", "shrink_kill", "dentry_lru_isolate", "prune_dcache_sb", "d_delete"),
    *("dput", "dput_to_list", "fast_dput", "d_lru_del", "d_lru_add", "dentry_lru_del", "d_kill"),
    *("d_invalidate", "shrink_dcache_parent", "shrink_dcache_for_umount", "do_one_tree"),
    *("umount_collect", "umount_check", "select_collect", "__d_drop", "d_drop", "___d_drop"),
    *("ext4_orphan_del", "ext4_orphan_add", "drop_nlink", "ext4_i_callback", "i_callback"),
    *("ext4_free_in_core_inode", "__d_free", "__d_free_external", "shrink_dcache_sb", "drop_inode"),
}
#: Where living ones are looked up, listed, referenced, deleted by name or written back.
USE = {
    *("find_inode", "find_inode_fast", "ilookup", "ilookup5", "iget_locked", "iget5_locked"),
    *("ext4_iget", "__ext4_iget", "insert_inode_locked", "insert_inode_locked4", "inode_insert5"),
    *("__insert_inode_hash", "__remove_inode_hash", "inode_add_lru", "inode_lru_list_add"),
    *("__inode_add_lru", "inode_lru_list_del", "list_lru_add", "list_lru_del", "list_lru_add_obj"),
    *("list_lru_del_obj", "list_lru_walk_one", "__list_lru_walk_one", "list_lru_walk_node"),
    *("list_lru_isolate", "list_lru_isolate_move", "ihold", "igrab", "__iget", "d_splice_alias"),
    *("d_instantiate", "d_instantiate_new", "__d_instantiate", "d_add", "__d_add", "d_alloc"),
    *("__d_alloc", "d_rehash", "__d_rehash", "d_move", "__d_move", "d_make_root", "d_find_alias"),
    *("__d_find_alias", "d_prune_aliases", "d_find_any_alias", "__d_lookup", "__d_lookup_rcu"),
    *("d_lookup", "lookup_fast", "d_walk", "d_genocide", "vfs_unlink", "vfs_rmdir", "vfs_rename"),
    *("ext4_unlink", "__ext4_unlink", "ext4_rmdir", "do_unlinkat", "security_inode_unlink"),
    *("writeback_sb_inodes", "__writeback_single_inode", "__mark_inode_dirty", "wb_writeback"),
    *("inode_io_list_del", "inode_io_list_move_locked", "move_expired_inodes", "queue_io"),
    *("inode_sb_list_add", "inode_sb_list_del", "new_inode", "alloc_inode", "inode_init_always"),
    *("ext4_alloc_inode", "__es_shrink", "ext4_es_scan", "es_reclaim_extents", "super_cache_scan"),
    *(
        "security_inode_free",
        "inode_doinit_with_dentry",
        "fsnotify_destroy_marks",
        "iterate_supers",
    ),
    *("drop_pagecache_sb", "ext4_mark_inode_dirty", "ext4_dirty_inode", "ext4_mark_iloc_dirty"),
    *("jbd2_journal_release_jbd_inode", "inode_wait_for_writeback", "lockref_get", "d_ancestor"),
    *("lockref_get_not_dead", "lockref_put_or_lock", "lockref_put_return", "inode_permission"),
    *("nfs_prune_aliases", "sync_inodes_sb", "wait_sb_inodes", "invalidate_inode_pages2"),
}
RCU = {
    *("rcu_do_batch", "rcu_process_callbacks", "rcu_core", "rcu_core_si", "rcu_cblist_dequeue"),
    *("__rcu_process_callbacks", "rcu_nocb_kthread", "nocb_cb_wait", "rcu_cpu_kthread"),
}
SOFTIRQ = {"__do_softirq", "do_softirq", "handle_softirqs", "run_ksoftirqd", "call_softirq"}
#: They call what somebody gave them: a callback that jumps to the slab leaves only these.
DISPATCH = {"process_one_work", "worker_thread", "kthread", "call_timer_fn", "expire_timers"}
RECLAIM = {"shrink_slab", "do_shrink_slab", "super_cache_scan", "shrink_slab_memcg"}
#: Below these a crash is a disk's or a network's own.
BLOCK = {
    *("submit_bio", "generic_make_request", "submit_bio_noacct", "blk_mq_dispatch_rq_list"),
    *("__blk_mq_run_hw_queue", "blk_flush_plug_list", "blk_finish_plug", "__submit_bio"),
    *("scsi_queue_rq", "nvme_queue_rq", "virtio_queue_rq", "bio_endio", "blk_mq_complete_request"),
    *("dev_queue_xmit", "__dev_queue_xmit", "netif_receive_skb", "tcp_sendmsg", "sock_sendmsg"),
}
#: Frames of the report itself: they say how it was printed, not what was done.
NOISE = re.compile(
    r"(?:__)?dump_stack(?:_lvl|_print_info)?|show_stack|dump_backtrace|unwind_backtrace|__warn"
    r"|warn_slowpath_(?:fmt|null|common)(?:_taint)?|__warn_printk|report_bug|handle_bug|fixup_bug"
    r"|do_invalid_op|invalid_op|exc_invalid_op|asm_exc_\w+|do_error_trap|do_trap|bug_handler"
    r"|call_break_hook|brk_handler|do_debug_exception|el1_(?:dbg|sync|abort|da)|el1h_64_sync\w*"
    r"|die(?:_kernel_fault)?|__die\w*|oops_end|no_context|__?bad_area\w*|do_page_fault|page_fault"
    r"|async_page_fault|do_async_page_fault|do_translation_fault|do_mem_abort|__do_kernel_fault"
    r"|do_user_addr_fault|exc_page_fault|do_general_protection|general_protection|panic"
    r"|(?:__)?list_(?:add|del|del_entry)(?:_entry)?(?:_valid)?(?:_or_report)?|list_del_init"
    r"|print_(?:report|address_description|error_description|trailer)\w*|kasan_\w*report\w*"
    r"|__asan_\w+|check_memory_region|kasan_check_range|kfence_\w+|__hwasan_\w+|kasan_tag_mismatch"
    r"|debug_print_object|__?debug_check_\w+|debug_object_\w+|debug_rcu_head_queue"
    r"|refcount_(?:warn_saturate|sub_and_test_checked|dec_and_test_checked|inc_checked)"
    r"|_raw_spin_\w+|queued_spin_lock_slowpath|native_queued_spin_lock_slowpath|do_raw_spin_lock"
)

_NAMED = re.compile(
    r"(?P<fs>[a-z0-9]+)_(?:evict_inode|free_inode|free_in_core_inode|destroy_inode|i_callback|kill_sb"
    r"|clear_inode|delete_inode|alloc_inode|destroy_inode_callback)$"
)
_GENERIC = {"generic", "truncate", "security", "inode", "anon", "new", "kill", "set", "get", "d"}
_CALLED = {"shmem": "tmpfs (shmem)", "zpl": "zfs", "ovl": "overlayfs", "inode": "the VFS"}
_CACHE = re.compile(r"(?:(?P<fs>[a-z0-9]+)_inode(?:_cache)?|(?P<vfs>inode_cache))$")
_NO_INODES = {"jbd2", "ext4_free", "nfs4"}


def filesystem(symbol: str) -> str:
    """Whose inodes a function is for, by its name; "" for one of no filesystem."""
    found = _NAMED.match(symbol)
    if found is None or found["fs"] in _GENERIC:
        return ""
    return _CALLED.get(found["fs"], found["fs"])


def filesystem_of_cache(cache: str) -> str:
    """Whose inodes lie in a slab cache; "" for a cache of other objects."""
    found = _CACHE.match(cache)
    if found is None or found["fs"] in _NO_INODES:
        return ""
    name = "the VFS" if found["vfs"] else found["fs"]
    return _CALLED.get(name, name)
