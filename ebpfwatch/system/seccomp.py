"""System calls that the daemon never makes once it is loaded, refused by the kernel.

The unit has a filter of systemd's.  Without it the daemon makes its own, where libseccomp's Python
binding is there (python3-seccomp).  A list of what is refused, not of what is allowed: a call that
the C library begins to make one day must not blind the watcher.
"""

from __future__ import annotations

import errno
from pathlib import Path

__all__ = ["REFUSED", "confine"]

#: What a defect could do harm with; names are those of the system calls (syscalls(2)).
REFUSED = (
    # other file systems, other roots, other namespaces
    *("mount", "umount2", "pivot_root", "chroot", "move_mount", "fsopen", "fsconfig", "fsmount"),
    *("fspick", "open_tree", "mount_setattr", "setns", "unshare", "open_by_handle_at", "quotactl"),
    # the kernel itself
    *("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot"),
    *("swapon", "swapoff", "acct", "syslog", "lookup_dcookie", "iopl", "ioperm", "modify_ldt"),
    # other processes, their memory, their keys
    *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd"),
    *("keyctl", "add_key", "request_key", "userfaultfd", "personality"),
    # another clock, another name, another user, another owner
    *("settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname"),
    *("setdomainname", "setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid"),
    *("setgroups", "setfsuid", "setfsgid", "chown", "fchown", "lchown", "fchownat"),
    *("mknod", "mknodat", "io_uring_setup", "io_uring_enter", "io_uring_register"),
)
_STARTING = ("execve", "execveat")


def confine(starts_programs: bool, status: Path = Path("/proc/self/status")) -> str:
    """Have these refused with EPERM for this thread and those it starts later; ``starts_programs``:
    it may start others.  "" if they are, by us or by whoever started us; else why not.

    After ``privileges.drop``: a filter needs no_new_privs.
    """
    if "\nSeccomp:\t2\n" in status.read_text():
        return ""
    try:
        import seccomp
    except ImportError:
        return "the Python module seccomp is missing (apt-get install python3-seccomp)"
    try:
        rules = seccomp.SyscallFilter(seccomp.ALLOW)
        for name in (*REFUSED, *(() if starts_programs else _STARTING)):
            try:
                rules.add_rule(seccomp.ERRNO(errno.EPERM), name)
            except (RuntimeError, ValueError):  # this machine has no such call
                continue
        rules.load()
    except (OSError, RuntimeError) as error:
        return str(error)
    return ""
