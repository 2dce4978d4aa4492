"""What people type into crash by hand, out of a dump: ps, memory, swap, mounts, modules, the log.

Each section stands alone: what one of them cannot read does not cost the others.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["log", "sections"]

_MOST_TASKS = 15
_MOST_MOUNTS = 40


def sections(drgn: Any, program: Any) -> Iterator[tuple[str, list[str]]]:
    """Title and lines of each."""
    for title, read in (
        ("Tasks", _tasks),
        ("Memory", _memory),
        ("Swap", _swap),
        ("Mounts", _mounts),
        ("Modules", _modules),
    ):
        yield title, _try(drgn, read, program)


def _try(drgn: Any, read: Callable[[Any], Iterator[str]], program: Any) -> list[str]:
    lines: list[str] = []
    try:
        lines.extend(read(program))
    except (drgn.FaultError, LookupError, ValueError, AttributeError, TypeError) as error:
        lines.append(f"cannot tell more: {error}")
    except ImportError:  # task_rss, module_taints, helpers.linux.swap and vmstat came in 0.0.33
        lines.append(f"drgn {drgn.__version__} cannot tell this; 0.0.33 and later can")
    return lines


def log(drgn: Any, program: Any) -> bytes:
    """The kernel's log, as dmesg prints it; b"" where it cannot be read."""
    from drgn.helpers.linux.printk import get_dmesg

    try:
        return bytes(get_dmesg(program))
    except (drgn.FaultError, LookupError, ValueError, AttributeError):
        return b""


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def _tasks(program: Any) -> Iterator[str]:
    from drgn.helpers.linux.mm import task_rss
    from drgn.helpers.linux.pid import for_each_task
    from drgn.helpers.linux.sched import task_state_to_char

    page = int(program["PAGE_SIZE"])
    states: collections.Counter[str] = collections.Counter()
    told: list[tuple[int, str]] = []
    waiting: list[str] = []
    for task in for_each_task(program):
        state = str(task_state_to_char(task))
        states[state] += 1
        name = f"{task.comm.string_().decode('utf-8', 'replace')} (pid {int(task.pid)})"
        if state in "DU":
            waiting.append(name)
        if task.mm and int(task.pid) == int(task.tgid):
            told.append((task_rss(program, task).total * page, f"{name}, {state}"))
    counted = ", ".join(f"{count} {state}" for state, count in states.most_common())
    yield f"{sum(states.values())} tasks by state: {counted}"
    if waiting:
        more = ", ..." if len(waiting) > _MOST_TASKS else ""
        yield f"uninterruptible (D): {', '.join(waiting[:_MOST_TASKS])}{more}"
    yield "most memory:"
    for size, name in sorted(told, reverse=True)[:_MOST_TASKS]:
        yield f"  {_mib(size):>12}  {name}"


def _memory(program: Any) -> Iterator[str]:
    from drgn.helpers.linux import mm, vmstat

    page = int(program["PAGE_SIZE"])
    total = int(mm.totalram_pages(program))
    free = int(vmstat.nr_free_pages(program))
    share = 100 * free / max(total, 1)
    yield f"total {_mib(total * page)}, free {_mib(free * page)} ({share:.1f} %)"
    # Since Linux 5.9 the names of the slab's counters end in _B.
    parts = []
    for label, names in (
        ("page cache", ("NR_FILE_PAGES",)),
        ("shared memory", ("NR_SHMEM",)),
        ("anonymous", ("NR_ANON_MAPPED",)),
        ("dirty", ("NR_FILE_DIRTY",)),
        ("slab that reclaim can take", ("NR_SLAB_RECLAIMABLE_B", "NR_SLAB_RECLAIMABLE")),
        ("other slab", ("NR_SLAB_UNRECLAIMABLE_B", "NR_SLAB_UNRECLAIMABLE")),
    ):
        for name in names:
            try:
                count = vmstat.global_node_page_state(program, program.constant(name))
            except LookupError:
                continue
            # In pages whatever the name (__mod_node_page_state(), mm/vmstat.c).
            parts.append(f"{label} {_mib(int(count) * page)}")
            break
    yield ", ".join(parts)
    committed, limit = int(mm.vm_memory_committed(program)), int(mm.vm_commit_limit(program))
    yield (
        f"committed {_mib(committed * page)}, the limit of overcommit_memory=2 would be"
        f" {_mib(limit * page)}"
    )


def _swap(program: Any) -> Iterator[str]:
    from drgn.helpers.linux.swap import (
        for_each_swap_info,
        swap_file_path,
        swap_is_file,
        swap_usage_in_pages,
    )

    page = int(program["PAGE_SIZE"])
    none = True
    for one in for_each_swap_info(program):
        none = False
        kind = "file" if swap_is_file(one) else "partition"
        yield (
            f"{swap_file_path(one).decode('utf-8', 'replace')} ({kind}):"
            f" {_mib(int(swap_usage_in_pages(one)) * page)} of {_mib(int(one.pages) * page)} used"
        )
    if none:
        yield "none"


def _mounts(program: Any) -> Iterator[str]:
    from drgn.helpers.linux.fs import for_each_mount, mount_dst, mount_fstype, mount_src

    count = 0
    for mount in for_each_mount(program):
        count += 1
        if count <= _MOST_MOUNTS:
            source, target, kind = (
                part.decode("utf-8", "replace")
                for part in (mount_src(mount), mount_dst(mount), mount_fstype(mount))
            )
            # SB_RDONLY of the superblock, or MNT_READONLY of the mount.
            read_only = int(mount.mnt.mnt_sb.s_flags) & 1 or int(mount.mnt.mnt_flags) & 0x40
            yield f"{source} on {target} type {kind}{' (read-only)' if read_only else ''}"
    if count > _MOST_MOUNTS:
        yield f"and {count - _MOST_MOUNTS} more"


def _modules(program: Any) -> Iterator[str]:
    from drgn.helpers.linux.module import for_each_module, module_address_regions, module_taints

    none = True
    for module in for_each_module(program):
        none = False
        taints = str(module_taints(module))
        size = sum(length for _, length in module_address_regions(module))
        yield (
            f"{module.name.string_().decode('ascii', 'replace')}, {size >> 10} KiB"
            + (f" ({taints})" if taints else "")
        )
    if none:
        yield "none is loaded"
