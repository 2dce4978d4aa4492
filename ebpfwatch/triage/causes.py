"""Signatures: what kind of mistake leaves the picture that a log shows, and who is named in it.

Read in Linux 4.19.78 and shown there with modules that make the mistake (docs/case.md); other
kernels may differ, so each sentence says what it rests on.
"""

from __future__ import annotations

import re

from ebpfwatch.kernellog.report import Frame, Report
from ebpfwatch.triage.assess import Weight, own_symbols
from ebpfwatch.triage.summary import Group, Triage

__all__ = ["accused", "causes", "in_a_word"]


def causes(triage: Triage) -> list[str]:
    """The mistakes that the log's own picture points to."""
    said: list[str] = []
    for sentences in (_parent_killed_again, _dentry_freed, _inode_put, _dentry_put, _no_lock):
        said += sentences(triage)
    return said


def in_a_word(triage: Triage) -> str:
    """The most telling of them as one sentence for a support engineer; "" for none."""
    if any(_from_above(group.report) for group in _groups(triage, "dentry_free")):
        return (
            "Before that the kernel ended a directory again that had ended already: somebody gave"
            " back a directory more often than he had taken it, and the inode is a victim of that"
        )
    return ""


def _version(release: str) -> tuple[int, int]:
    found = re.match(r"(\d{1,3})\.(\d{1,3})", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _groups(triage: Triage, kind: str) -> list[Group]:
    return [group for group in triage.groups if group.report.kind == kind]


def _from_above(report: Report) -> bool:
    """dentry_free < __dentry_kill < dentry_kill < shrink_dentry_list.

    In Linux 4.19 shrink_dentry_list() calls dentry_kill() in one place only: for the parent of a
    dentry that it has just killed.  Since 5.3 (commit 9bdebc2bd1c4) it does not call it any more.
    """
    symbols = own_symbols(report)
    for callee, caller in zip(symbols[:6], symbols[1:7]):
        if (callee, caller) == ("dentry_kill", "shrink_dentry_list"):
            return (4, 19) <= _version(report.release) < (5, 3)
    return False


def _parent_killed_again(triage: Triage) -> list[str]:
    groups = [group for group in _groups(triage, "dentry_free") if _from_above(group.report)]
    if not groups:
        return []
    count = sum(group.count for group in groups)
    times = f"{count} times" if count > 1 else "once in this log"
    return [
        f"the shrinker killed the PARENT of a dentry {times} although the parent was dead already:"
        " in this kernel shrink_dentry_list() calls dentry_kill() only for the parent of what it"
        " has just killed. So a directory (or a few) died while it still had children, and each"
        " child that was reclaimed afterwards killed it once more. A directory has one reference"
        " for each child, so somebody called dput() on it more often than he had got it, some time"
        " before, on none of these stacks. This is the best reading of the picture, not a proof:"
        " it was made on purpose in 4.19.78 and looked the same",
        "each of these kills hands the same rcu_head to RCU again, while it waits there. That joins"
        " the callback lists of the CPUs: callbacks behind it run twice, or too early, and they are"
        " those of what reclaim frees at that time, dentries and inodes that did nothing wrong. An"
        " inode that is freed twice afterwards is a victim of that",
    ]


def _dentry_freed(triage: Triage) -> list[str]:
    groups = _groups(triage, "dentry_free")
    if not groups:
        return []
    return [
        "dentry_free() warns where d_u.d_alias.pprev is not NULL. That word is also d_u.d_rcu.func:"
        " in a vmcore, a dentry where it is the address of __d_free was freed before (seen in all"
        " dentries of the runs that were looked at); where it points into an inode (i_dentry) or"
        " another dentry, the dentry is still on an inode's list of aliases"
    ]


def _inode_put(triage: Triage) -> list[str]:
    said = []
    for group in _groups(triage, "inode_state"):
        symbols = own_symbols(group.report)[:2]
        if "ihold" in symbols:
            said.append(
                "ihold() found an inode with no reference left: somebody called iput() once too"
                " often, so it was ended while others used it; the caller of ihold() is innocent"
            )
        elif "iput" in symbols:
            said.append(
                "iput() found an inode that was ended already (I_CLEAR): somebody put it once too"
                " often, or through a pointer to an inode that had gone"
            )
    return list(dict.fromkeys(said))


def _dentry_put(triage: Triage) -> list[str]:
    for group in _groups(triage, "dentry_state"):
        if {"dput", "fast_dput"} & set(own_symbols(group.report)[:2]):
            return [
                "dput() found a dentry without a reference left: somebody called dput() once too"
                " often, usually on a file that was held open; the caller here closes his own"
            ]
    return []


def _no_lock(triage: Triage) -> list[str]:
    for group in triage.groups:
        symbols = own_symbols(group.report)
        inside = {"security_inode_unlink", "may_delete", "vfs_unlink"} & set(symbols[:3])
        if inside and group.report.kind in ("oops", "kasan") and "do_unlinkat" not in symbols:
            return [
                f"the crash is in {sorted(inside)[0]}, and not below the system call unlink: kernel"
                " code deletes files itself. Two of its threads that delete the same file without"
                " the directory's lock end exactly so"
            ]
    return []


# -- who is named


def accused(triage: Triage) -> list[tuple[str, str]]:
    """Modules that the log itself connects with the damage, and by what; the surest first.

    A module that is only loaded is not among them.
    """
    found: dict[str, tuple[int, str]] = {}
    for group in triage.groups:
        if group.assessment.weight < Weight.UNDECIDED:
            continue
        report = group.report
        second = report.kind in ("rcu_head_twice", "already_free", "wrong_cache") or any(
            words in report.headline for words in ("double-free", "invalid-free", "invalid free")
        )
        for heading, frames in report.other_stacks.items():
            if heading == "freed":
                _name(
                    found,
                    triage,
                    frames,
                    0,
                    "is on the stack of the free before, which the log has",
                )
        for frame_list in (report.frames, [f for f in (report.at, report.caller) if f]):
            how = "is on the stack of the wrong free" if second else "is on the stack of a report"
            _name(found, triage, frame_list, 1 if second else 2, how)
        work = report.work.rpartition("[")[2].rstrip("]") if report.work.endswith("]") else ""
        if work:
            _name(found, triage, [Frame("", 0, 0, work)], 2, "has the work function that ran")
    return [(name, how) for name, (_, how) in sorted(found.items(), key=lambda item: item[1][0])]


_BEFORE = "is on the stack of the free before, which the log has"


def _name(
    found: dict[str, tuple[int, str]], triage: Triage, frames: list[Frame], rank: int, how: str
) -> None:
    for frame in frames:
        known = triage.modules.get(frame.module)
        if frame.module and frame.sure and (known is None or known.foreign):
            if frame.module in _IN_TREE and (known is None or not known.foreign):
                continue
            if frame.module not in found or found[frame.module][0] > rank:
                found[frame.module] = (rank, how)


#: Filesystems of the kernel's tree: where no list says what is out of tree, they are not accused.
_IN_TREE = {"ext4", "jbd2", "mbcache", "overlay", "xfs", "btrfs", "f2fs", "fuse", "nfs", "cifs"}
