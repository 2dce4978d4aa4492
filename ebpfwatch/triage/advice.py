"""What a triage makes of the loaded modules, and what to do next."""

from __future__ import annotations

from ebpfwatch.triage import fault
from ebpfwatch.triage.assess import Weight
from ebpfwatch.triage.summary import Triage

__all__ = ["modules", "next_steps"]


def modules(triage: Triage) -> list[str]:
    """The out-of-tree ones, and whether any is on a stack."""
    foreign = [module for module in triage.modules.values() if module.foreign]
    if not triage.modules:
        return []
    if not foreign:
        return [f"{len(triage.modules)} loaded, none of them out of tree"]
    names = ", ".join(f"{module.name} ({module.flags})" for module in foreign)
    said = [
        f"out of tree: {names}. They are suspects, not culprits: loaded is all that the log says",
    ]
    on_stack = sorted(_at_work(triage) & {module.name for module in foreign})
    if on_stack:
        said.append(f"on the stack, or the work function, of a report above: {', '.join(on_stack)}")
    elif triage.verdict in ("this_bug", "suspected") and not (triage.traced or triage.findings):
        said.append("none of them is on a stack in this log: who freed first is not in it")
    return said


def _at_work(triage: Triage) -> set[str]:
    """Modules whose code a report that matters shows at work."""
    reports = [g.report for g in triage.groups if g.assessment.weight >= Weight.UNDECIDED]
    modules = {frame.module for report in reports for frame in report.frames}
    return modules | {report.work.partition("[")[2].rstrip("]") for report in reports}


def next_steps(triage: Triage) -> list[str]:
    """Steps in the order in which to take them."""
    if triage.verdict == "nothing_found":
        return []
    if triage.verdict == "not_this_bug":
        return ["follow the first complaint above; ebpfwatch has nothing to add to it"]
    steps = _vmcore(triage)
    if triage.traced:
        steps.append(
            "name the addresses that ebpfwatch printed: its next start on that machine does it by"
            " itself, and `ebpfwatch report` shows what reached the disk"
        )
    if triage.findings:
        steps.append("read the findings whole: `ebpfwatch report`, or state_directory/findings")
    else:
        steps.append(
            "find the first free with its stack, which no log holds: run `ebpfwatch run` with"
            " evidence.first_stacks on and do again what users did; a finding names both"
            " contexts and the module of each frame"
        )
    if any(module.foreign for module in triage.modules.values()):
        steps.append(
            "leave the out-of-tree modules out, half of them at a time, those that hook into files"
            " first; a machine without them that still crashes acquits them"
        )
    steps.append(
        "on a test machine boot with slub_debug=FZPU,ext4_inode_cache: a second free is caught as"
        " it happens, as long as the object was not handed out again in between; it costs memory"
        " and time on every inode"
    )
    steps.append(
        "keep the next crash whole: kdump loaded, kernel.panic_on_oops=1; `ebpfwatch check` says"
        " what of it is missing"
    )
    return steps


def _vmcore(triage: Triage) -> list[str]:
    proven = triage.heaviest(Weight.PROVEN)
    found = fault.object_register(proven.report) if proven else None
    if found is None:
        return ["if there is a vmcore, keep it with its vmlinux"]
    return [
        f"if there is a vmcore, look in crash: `kmem {found[1]:x}` says what the object's page is"
        " now (free, or whose)"
    ]
