"""Is this the kernel that was tested? Out-of-tree modules may have made the mistake; no proof."""

from __future__ import annotations

from ebpfwatch.advice import Advice, Level
from ebpfwatch.host.openfiles import OpenFiles
from ebpfwatch.host.state import HostState
from ebpfwatch.host.taint import Taint

__all__ = ["advise"]

_SECTION = "modules"

#: What a flag says for this bug, and how bad it is.
_FLAGS = {
    "D": (Level.FAIL, "this kernel has oopsed already; nothing it does from now on can be trusted"),
    "B": (Level.FAIL, "a page was in a state that cannot be: memory is corrupt already"),
    "M": (Level.FAIL, "the hardware reported a machine check: bad memory looks like this bug"),
    "W": (Level.WARN, "the kernel has warned; if in dentry_free, that is this bug's own precursor"),
    "L": (Level.WARN, "a CPU was stuck: with this bug, what follows a corrupt list"),
    "F": (Level.WARN, "a module was loaded by force: it was built for another kernel"),
    "R": (Level.WARN, "a module was unloaded by force: its code may still be called"),
    "A": (Level.WARN, "an ACPI table was replaced"),
    "K": (Level.WARN, "the kernel is live-patched: functions may not be what their names say"),
    "C": (Level.WARN, "a driver from staging is loaded"),
}

_HELD_ITEM = "files without a process"

_DO = {
    "D": "dmesg >oops.txt; ebpfwatch triage oops.txt   # then reboot",
    "B": "dmesg >oops.txt; ebpfwatch triage oops.txt   # then reboot",
    "M": "ras-mc-ctl --errors   # and test the memory",
    "W": "dmesg | ebpfwatch triage -",
    "L": "dmesg | ebpfwatch triage -",
}


def advise(host: HostState) -> list[Advice]:
    """The flags that matter, the modules that are not of the kernel's tree, and the files that
    some code in the kernel holds.
    """
    lines = _taint(host)
    if host.open_files is not None:
        lines.append(_open_files(host.open_files))
    elif "open_files" in host.problems:
        lines.append(Advice(_SECTION, _HELD_ITEM, Level.UNKNOWN, host.problems["open_files"], ""))
    return lines


def _taint(host: HostState) -> list[Advice]:
    taint = host.taint
    if taint is None:
        why = host.problems.get("taint", "not read")
        return [Advice(_SECTION, "taint", Level.UNKNOWN, why, "")]
    lines = [_modules(taint)]
    for letter in taint.flags:
        if letter in _FLAGS:
            level, why = _FLAGS[letter]
            lines.append(
                Advice(_SECTION, f"taint {letter}", level, "set", why, _DO.get(letter, ""))
            )
    if len(lines) == 1:
        lines.append(
            Advice(
                _SECTION,
                "taint",
                Level.OK,
                taint.flags or "none",
                "no oops, no bad page, no warning since the boot",
            )
        )
    return lines


def _modules(taint: Taint) -> Advice:
    foreign = taint.out_of_tree
    if not foreign and "O" in taint.flags:
        return Advice(
            _SECTION,
            "out-of-tree modules",
            Level.WARN,
            f"none of {taint.loaded} modules, but one was loaded since the boot (taint O)",
            "what it changed in memory stays after it is gone",
            "dmesg | grep -i 'out-of-tree module'",
        )
    if not foreign:
        return Advice(
            _SECTION,
            "out-of-tree modules",
            Level.OK,
            f"none of {taint.loaded} modules",
            "whatever frees an inode twice here is of the kernel's own tree",
        )
    one = len(foreign) == 1
    return Advice(
        _SECTION,
        "out-of-tree modules",
        Level.WARN,
        f"{len(foreign)} of {taint.loaded}: {', '.join(foreign)}",
        ("it is a suspect" if one else "each is a suspect")
        + ", not a culprit: a finding names the module whose code is on the stack or made the call;"
        " on a test machine, run the same load without "
        + ("it" if one else "them, then with half of them"),
        "modprobe -r " + foreign[0] + "   # on a test machine",
    )


def _open_files(found: OpenFiles) -> Advice:
    item = _HELD_ITEM
    if found.least is None or found.most is None:
        return Advice(
            _SECTION,
            item,
            Level.UNKNOWN,
            f"{found.files} files are open, {found.descriptors} descriptors were seen:"
            f" {found.why_not}",
            "a module that opens files and never closes them would be seen by this",
        )
    value = (
        f"{found.least} to {found.most} of {found.files} open files (processes have"
        f" {found.descriptors} descriptors and {found.mapped} mapped files; the kernel's number"
        f" may be off by {found.error})"
    )
    if found.least < found.limit:
        graphics = "; a graphics driver holds its buffers as files" if found.graphics else ""
        return Advice(
            _SECTION, item, Level.OK, value, "few enough: no module keeps files open" + graphics
        )
    return Advice(
        _SECTION,
        item,
        Level.WARN,
        value,
        "code in the kernel has opened them and not closed them: an NFS or SMB server may have"
        " reason to, an out-of-tree module hardly; each keeps its inode and dentry in memory",
        "ebpfwatch suspects   # which modules can open files",
    )
