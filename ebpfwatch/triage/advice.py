"""What a triage makes of the loaded modules, and what to do next."""

from __future__ import annotations

from ebpfwatch.triage import fault
from ebpfwatch.triage.assess import Weight
from ebpfwatch.triage.causes import accused
from ebpfwatch.triage.summary import Triage

__all__ = ["WHERE", "modules", "next_steps"]


#: Where the log of a crash may lie; docs/troubleshooting.md has the same places.
WHERE = (
    "look for the log of the crash: `journalctl -k -b -1 -o export` prints that of the boot before;"
    " /var/lib/systemd/pstore and /var/crash keep what a crash left. `ebpfwatch triage` takes a"
    " file, or such a directory"
)
_OTHER_CAUSE = (
    "begin with the first complaint in *What the kernel said*, and with what prints it; it has"
    " another cause than the one that ebpfwatch looks for"
)


def modules(triage: Triage) -> list[str]:
    """The out-of-tree ones, and whether any is on a stack."""
    foreign = triage.foreign()
    said: list[str] = []
    letters = ", ".join(letter for letter in "PFOE" if letter in triage.taint)
    if not triage.modules_listed and letters:
        which = "from outside the kernel" if triage.outside else "unsigned, or loaded by force,"
        said.append(
            f"modules {which} were loaded (taint {letters}); the log does not have the list of"
            " modules, so it does not name them"
        )
    elif not triage.modules_listed and (triage.weight or 0) > Weight.OTHER:
        said.append("the log does not have the list of the loaded modules")
    if triage.modules and not foreign and not triage.modules_cut:
        before = "; the taint says that one had been loaded before" if triage.outside else ""
        said.append(f"{len(triage.modules)} loaded, none of them out of tree{before}")
    if foreign:
        names = ", ".join(module.listed for module in foreign)
        said.append(f"out of tree: {names}. They are suspects, not culprits")
    names_at_work = {name for name in triage.at_work if name in {m.name for m in foreign}}
    for name, how in accused(triage):
        said.append(f"{name} {how}")
        names_at_work.discard(name)
    if names_at_work:
        listed = ", ".join(sorted(names_at_work))
        said.append(f"on a stack of a report, which does not say that it did it: {listed}")
    elif foreign and not triage.at_work & {module.name for module in foreign}:
        said.append(
            "none of them is on a stack in this log: that they are loaded is all that it says, and"
            " who freed first is not in it"
        )
    if triage.modules_cut:
        said.append("the list of modules was cut or mixed with other lines: there may be more")
    return said


def next_steps(triage: Triage) -> list[str]:
    """Steps in the order in which to take them."""
    steps = _get_the_rest(triage)
    if triage.verdict == "nothing_found":
        return [WHERE, *steps] if triage.may_be_no_log else steps or [WHERE]
    if triage.hardware_first:
        steps.insert(
            0,
            "look at the hardware first: test the memory (memtest86+), read `ras-mc-ctl --errors`"
            " or the machine's own log; a flipped bit in a pointer looks like this bug",
        )
    if triage.verdict == "not_this_bug":
        return [*steps, _OTHER_CAUSE]
    steps += _vmcore(triage)
    if triage.traced:
        steps.append(
            "name the addresses that ebpfwatch printed: its next start on that machine does it by"
            " itself, and `ebpfwatch report` shows what reached the disk"
        )
    steps += _first_free(triage)
    if triage.foreign() or triage.outside:
        steps.append(
            "leave the out-of-tree modules out, half of them at a time, those that hook into files"
            " first; if the machine still crashes without them, they are not the cause"
        )
    steps.append(
        "on a test machine boot with slub_debug=FZPU,ext4_inode_cache,dentry: a second free is"
        " caught as it happens, as long as the object was not handed out again in between; it costs"
        " memory and time on every inode and dentry"
    )
    steps.append(
        "keep the next crash whole: kdump loaded, kernel.panic_on_oops=1; `ebpfwatch check` says"
        " what of it is missing"
    )
    return steps


def _get_the_rest(triage: Triage) -> list[str]:
    """Where the log is not whole."""
    counts = triage.counts
    if counts.behind and not counts.learned:
        return ["cut the unknown prefix off and read the log again, or report its form"]
    if triage.missing or counts.upside_down:
        return [
            "get the whole log of that boot: `journalctl -k -b -1 -o export`, vmcore-dmesg of the"
            " dump, or the records in /var/lib/systemd/pstore"
        ]
    return []


def _first_free(triage: Triage) -> list[str]:
    if triage.findings:
        return ["read the findings whole: `ebpfwatch report`, or state_directory/findings"]
    if any(heading == "freed" for heading, _ in triage.first_freer):
        return ["look at the stack of the free before, which this log has, and at who called it"]
    return [
        "find who was first: no stack of a first free is in this log. Set `first_stacks: true`"
        " below `evidence:` in /etc/ebpfwatch/config.yaml, let `ebpfwatch run` watch, and do again"
        " what users did; a finding names both contexts and the module of each frame"
    ]


_AUDIT = (
    "if there is a vmcore, keep it with its vmlinux, and count its references: `ebpfwatch audit"
    " VMCORE --vmlinux VMLINUX` names what was given back too often"
)


def _vmcore(triage: Triage) -> list[str]:
    proven = triage.heaviest(Weight.PROVEN)
    found = fault.object_register(proven.report) if proven else None
    if found is None:
        return [_AUDIT]
    return [
        _AUDIT,
        f"if there is a vmcore, look in crash: `kmem {found[1]:x}` says what the object's page is"
        " now (free, or whose)",
    ]
