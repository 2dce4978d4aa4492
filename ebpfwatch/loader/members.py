"""The members of the kernel's structures that the probes read, by their defines. No compiler."""

from __future__ import annotations

__all__ = ["MEMBERS", "OPTIONAL", "member"]

#: define: (struct, member, and a member inside that one). Their places here are the numbers of
#: probes/offsets.c.
MEMBERS = {
    "OFF_I_INO": ("inode", "i_ino", ()),
    "OFF_I_GENERATION": ("inode", "i_generation", ()),
    "OFF_I_NLINK": ("inode", "i_nlink", ()),
    "OFF_I_STATE": ("inode", "i_state", ()),
    "OFF_I_COUNT": ("inode", "i_count", ()),
    "OFF_I_SB": ("inode", "i_sb", ()),
    "OFF_I_SB_LIST": ("inode", "i_sb_list", ()),
    "OFF_I_RCU": ("inode", "i_rcu", ()),
    "OFF_S_DEV": ("super_block", "s_dev", ()),
    "OFF_D_INODE": ("dentry", "d_inode", ()),
    "OFF_D_NAME": ("dentry", "d_name", ("qstr", "name")),
    "OFF_CACHE_NAME": ("kmem_cache", "name", ()),
    "OFF_CACHE_OBJECT_SIZE": ("kmem_cache", "object_size", ()),
    "OFF_D_PARENT": ("dentry", "d_parent", ()),
    "OFF_I_DENTRY": ("inode", "i_dentry", ()),
    "OFF_I_WRITECOUNT": ("inode", "i_writecount", ()),
    "OFF_I_MMAP": ("inode", "i_data", ("address_space", "i_mmap")),
    "OFF_D_COUNT": ("dentry", "d_lockref", ("lockref", "count")),
    "OFF_D_U": ("dentry", "d_u", ()),
    "OFF_D_SB": ("dentry", "d_sb", ()),
    "OFF_S_TYPE": ("super_block", "s_type", ()),
    "OFF_FS_NAME": ("file_system_type", "name", ()),
    "OFF_F_DENTRY": ("file", "f_path", ("path", "dentry")),
}

#: The same of what a kernel may lack: then the check that needs it is absent (probes/contracts.h).
OPTIONAL = {
    "OFF_I_READCOUNT": ("inode", "i_readcount", ()),
    "OFF_I_RWSEM_OWNER": ("inode", "i_rwsem", ("rw_semaphore", "owner")),
    "OFF_D_SUBDIRS": ("dentry", "d_subdirs", ()),
    "OFF_D_CHILD": ("dentry", "d_child", ()),
    "OFF_D_CHILDREN": ("dentry", "d_children", ()),
    "OFF_D_SIB": ("dentry", "d_sib", ()),
}


def member(define: str) -> str:
    """Of which struct and member this is the offset, for people."""
    outer, name, inner = {**MEMBERS, **OPTIONAL}[define]
    return ".".join((f"struct {outer}, {name}", *inner[1:]))
