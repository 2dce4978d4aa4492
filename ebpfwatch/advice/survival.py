"""Would a crash of this machine leave evidence, and would the machine come back?"""

from __future__ import annotations

from ebpfwatch.advice import Advice, Level, boot_with, size
from ebpfwatch.host.crash import SLUB_FLAGS, CrashReadiness
from ebpfwatch.host.state import HostState

__all__ = ["advise"]

_SECTION = "survival"


def advise(host: HostState) -> list[Advice]:
    """One line an item; a single UNKNOWN where nothing could be read."""
    crash = host.crash
    if crash is None:
        why = host.problems.get("crash", "not read")
        return [Advice(_SECTION, "crash readiness", Level.UNKNOWN, why, "nothing was readable")]
    return [
        _record(crash),
        _crashkernel(crash),
        _panic_on_oops(crash),
        _panic(crash),
        _panic_on_warn(crash),
        _ftrace(crash),
        _slub(crash),
        _kfence(crash),
    ]


def _line(item: str, level: Level, value: str, why: str, command: str = "") -> Advice:
    return Advice(_SECTION, item, level, value, why, command)


def _record(crash: CrashReadiness) -> Advice:
    """Whether anything of the kernel's own last words survives."""
    have = [
        name for name, yes in (("kdump", crash.kdump_loaded), (crash.pstore, crash.pstore)) if yes
    ]
    why = (
        "the second free may kill the kernel before user space runs: then only a dump or pstore has"
        " the verdict that the probe printed"
    )
    if have:
        return _line("crash record", Level.OK, " and ".join(map(str, have)), why)
    return _line(
        "crash record",
        Level.FAIL,
        "neither kdump nor a pstore backend",
        why,
        "apt-get install kdump-tools   # or ramoops, on the kernel command line"
        if crash.crashkernel_bytes is not None
        else "# this kernel has no kexec, so no kdump: ramoops, on the kernel command line",
    )


def _crashkernel(crash: CrashReadiness) -> Advice:
    reserved, asked = crash.crashkernel_bytes, crash.crashkernel
    why = "kdump's own kernel runs in memory that was set aside at boot"
    if reserved:
        value = (
            f"{size(reserved)} reserved, kdump {'loaded' if crash.kdump_loaded else 'NOT loaded'}"
        )
        level = Level.OK if crash.kdump_loaded else Level.WARN
        return _line(
            "crashkernel", level, value, why, "" if crash.kdump_loaded else "kdump-config load"
        )
    if crash.kdump_loaded:
        return _line("crashkernel", Level.OK, "kdump loaded; the size is not told", why)
    if reserved is None:
        return _line("crashkernel", Level.WARN, "this kernel has no kexec", why + "; use pstore")
    if asked:
        return _line(
            "crashkernel",
            Level.FAIL,
            f"crashkernel={asked} was asked for and nothing is reserved",
            "the kernel found no free block of that size; before Linux 6.0 arm64 looks only below"
            " 4 GiB",
            "dmesg | grep -i crashkernel   # then boot with a smaller one",
        )
    return _line(
        "crashkernel",
        Level.WARN,
        "nothing reserved",
        why,
        "# its size: see plans",
    )


def _panic_on_oops(crash: CrashReadiness) -> Advice:
    if crash.panic_on_oops is None:
        return _line("panic_on_oops", Level.UNKNOWN, "not told", "")
    dies = bool(crash.panic_on_oops)
    recorded = crash.kdump_loaded or crash.pstore
    if dies and recorded:
        return _line(
            "panic_on_oops",
            Level.OK,
            "1",
            "the dump is taken at the first oops, soon after the mistake",
        )
    if dies:
        return _line(
            "panic_on_oops",
            Level.WARN,
            "1, and no record of the crash",
            "the machine dies at the first oops and takes the evidence with it",
            "# first make kdump or pstore work",
        )
    return _line(
        "panic_on_oops",
        Level.WARN,
        "0",
        "after the oops the machine goes on with a corrupt slab: what it writes to disk cannot be"
        " trusted, and later dumps show victims instead of the culprit",
        "sysctl -w kernel.panic_on_oops=1"
        + ("" if recorded else "   # after kdump or pstore works"),
    )


def _panic(crash: CrashReadiness) -> Advice:
    if crash.panic is None:
        return _line("panic", Level.UNKNOWN, "not told", "")
    why = "seconds from a panic to the reboot; 0 stands still for ever"
    if crash.panic:
        return _line("panic", Level.OK, str(crash.panic), why)
    if crash.kdump_loaded:
        return _line(
            "panic",
            Level.WARN,
            "0",
            why + "; kdump comes first, so this decides only if the dump fails",
            "sysctl -w kernel.panic=30",
        )
    return _line("panic", Level.WARN, "0", why, "sysctl -w kernel.panic=30")


def _panic_on_warn(crash: CrashReadiness) -> Advice:
    if crash.panic_on_warn is None:
        return _line("panic_on_warn", Level.UNKNOWN, "not told", "")
    if not crash.panic_on_warn:
        return _line(
            "panic_on_warn",
            Level.OK,
            "0",
            "1 would stop the machine at the first dentry_free warning, before the damage: the best"
            " dump of this bug, on a machine that may be lost",
        )
    return _line(
        "panic_on_warn",
        Level.OK if crash.kdump_loaded else Level.WARN,
        "1",
        "the machine stops at the first dentry_free warning, and at every other WARN as well",
        "" if crash.kdump_loaded else "sysctl -w kernel.panic_on_warn=0   # until kdump works",
    )


def _ftrace(crash: CrashReadiness) -> Advice:
    value = crash.ftrace_dump_on_oops
    why = "an oops then prints the probe's verdicts to the console, into pstore and the dump"
    if value is None:
        return _line("ftrace_dump_on_oops", Level.WARN, "this kernel has no ftrace", why)
    if value.strip() != "0":
        return _line("ftrace_dump_on_oops", Level.OK, value.strip(), why)
    return _line(
        "ftrace_dump_on_oops",
        Level.WARN,
        "0",
        why + "; `ebpfwatch run` sets it to 1 while it runs (evidence.dump_on_oops)",
        "sysctl -w kernel.ftrace_dump_on_oops=1",
    )


def _slub(crash: CrashReadiness) -> Advice:
    why = (
        "slub_debug reports a second free with both stacks, but only while nobody has the object"
        " again: after reuse it is a legal free to SLUB, and to the probes it is free_while_alive"
    )
    if crash.slub_debug is None:
        return _line(
            "slub_debug",
            Level.UNKNOWN,
            "only root sees it, or the kernel has no CONFIG_SLUB_DEBUG",
            why,
        )
    if not crash.slub_debug:
        return _line("slub_debug", Level.OK, "off for ext4_inode_cache", why + "; see plans")
    names = ", ".join(SLUB_FLAGS[letter] for letter in crash.slub_debug)
    return _line("slub_debug", Level.OK, f"{crash.slub_debug} ({names}) for ext4_inode_cache", why)


def _kfence(crash: CrashReadiness) -> Advice:
    why = "KFENCE catches a double free of the few objects it guards, with both stacks, for free"
    if crash.kfence_ms is None:
        return _line("kfence", Level.OK, "not in this kernel (Linux 5.12, CONFIG_KFENCE)", why)
    if crash.kfence_ms:
        return _line("kfence", Level.OK, f"one allocation guarded every {crash.kfence_ms} ms", why)
    return _line("kfence", Level.WARN, "off", why, boot_with("kfence.sample_interval=100"))
