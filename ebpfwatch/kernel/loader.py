"""The loader child: imports bcc (LLVM, some 120 MB), compiles, attaches, hands the fds over, exits.

The only module that imports ``bcc``.  Run as ``python3 -m ebpfwatch.kernel.loader FD``, where FD
is one end of a socketpair; see ``session`` for the other end.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import resource
import socket
import struct
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.kernel import handoff, source
from ebpfwatch.kernel.btf import Btf, BtfError
from ebpfwatch.kernel.ladder import SHARED_FREE, UNITS, Rung, Unit
from ebpfwatch.kernel.libbpf import map_lookup
from ebpfwatch.kernel.prober import PROGRAM_TYPES, Prober, attach
from ebpfwatch.kernel.running import capabilities_missing, find_symbols, version_code
from ebpfwatch.paths import PROBES

__all__ = ["main"]

_LEARN_SECONDS = 5.0
_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000

#: define: (struct, member) in the kernel's types.
_OFFSETS = {
    "OFF_I_INO": ("inode", "i_ino"),
    "OFF_I_GENERATION": ("inode", "i_generation"),
    "OFF_I_NLINK": ("inode", "i_nlink"),
    "OFF_I_STATE": ("inode", "i_state"),
    "OFF_I_COUNT": ("inode", "i_count"),
    "OFF_I_SB": ("inode", "i_sb"),
    "OFF_I_SB_LIST": ("inode", "i_sb_list"),
    "OFF_I_RCU": ("inode", "i_rcu"),
    "OFF_S_DEV": ("super_block", "s_dev"),
    "OFF_D_INODE": ("dentry", "d_inode"),
    "OFF_CACHE_NAME": ("kmem_cache", "name"),
}


@dataclasses.dataclass
class Choice:
    """What became of one role: the rung it got (or None), and why no better one."""

    role: str
    rung: Rung | None
    name: str
    reason: str


def main(argv: list[str]) -> int:
    """Serve one request and exit; errors travel as a message."""
    connection = socket.socket(fileno=int(argv[0]))
    request, _ = handoff.receive(connection)
    with open(os.memfd_create("loader-stderr"), "w+", encoding="utf-8") as log:
        if not request.get("verbose"):
            # clang's diagnostics: shown only when the compilation failed.
            os.dup2(log.fileno(), 2)
        try:
            reply, fds = _serve(request)
        except EbpfwatchError as error:
            reply = {"error": error.message, "hint": error.hint, "exit": int(error.exit_code)}
            fds = []
        except Exception as error:
            log.seek(0)
            said = [line.strip() for line in log if "error" in line.lower()]
            reply = {
                "error": f"loading the probes failed: {error}"
                + (f" ({'; '.join(said[:3])})" if said else ""),
                "hint": "this is a defect of ebpfwatch: report it with the output of"
                " `ebpfwatch check --verbose`",
                "exit": int(Exit.SOFTWARE),
            }
            fds = []
        handoff.send(connection, reply, tuple(fds))
    return 0


def _serve(request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    missing = capabilities_missing()
    if missing:
        raise EbpfwatchError(f"loading BPF programs needs {missing}", "run it as root", Exit.NOPERM)
    with contextlib.suppress(ValueError, OSError):
        # Before Linux 5.11 maps count as locked memory; since then as the cgroup's.
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)
    unit = UNITS[request["unit"]]
    _mount_tracefs()
    btf = _open_btf()
    offsets = _offsets(btf)
    targets = {
        a.target for rungs in unit.ladder.values() for rung in rungs for a in rung.attachments
    }
    prober = Prober(version_code(), find_symbols(targets))
    choices = [_choose_role(role, rungs, prober, btf) for role, rungs in unit.ladder.items()]
    teacher = next((choice.rung for choice in choices if choice.role == "any_free"), None)
    _configure(choices, request)
    reply: dict[str, Any] = {
        "hooks": [
            {"role": c.role, "rung": c.name if c.rung else "", "reason": c.reason} for c in choices
        ],
        "features": {"ringbuf": prober.has_ringbuf(), "cmpxchg": prober.has_cmpxchg()},
        "offsets": offsets,
    }
    if request.get("probe_only"):
        return reply, []
    _insist(unit, choices)
    return _load(request, reply, choices, prober, btf, teacher)


def _insist(unit: Unit, choices: list[Choice]) -> None:
    """Raise unless the roles that nothing works without have a rung."""
    by_role = {choice.role: choice for choice in choices}
    needed = [by_role[role] for role in unit.required if by_role[role].rung is None]
    if "rcu_free" in by_role and by_role["rcu_free"].rung is None:
        needed.append(by_role["rcu_free"])
    for choice in needed:
        raise EbpfwatchError(
            f"no way to hook {choice.role} on this kernel: {choice.reason}",
            "see `ebpfwatch check`; Linux 4.17 or later with ext4 tracepoints is needed",
            Exit.UNAVAILABLE,
        )


def _mount_tracefs() -> None:
    """Tracepoints are attached by the numbers in tracefs; where it is not mounted, for us alone."""
    if os.path.exists("/sys/kernel/tracing/events"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) == 0:
        libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
        libc.mount(b"tracefs", b"/sys/kernel/tracing", b"tracefs", 0, None)


def _open_btf() -> Btf:
    try:
        return Btf()
    except BtfError as error:
        raise EbpfwatchError(
            str(error),
            "a kernel with CONFIG_DEBUG_INFO_BTF=y is needed: all of Debian's since 5.10 have it",
            Exit.UNAVAILABLE,
        ) from None


def _offsets(btf: Btf) -> dict[str, int]:
    """Every OFF_* that probes/inode.h and learn.c use."""
    try:
        offsets = {define: btf.offset(*where) for define, where in _OFFSETS.items()}
        offsets["OFF_D_NAME"] = btf.offset("dentry", "d_name") + btf.offset("qstr", "name")
        offsets["OFF_VFS_INODE"] = _ext4_btf(btf).offset("ext4_inode_info", "vfs_inode")
    except BtfError as error:
        raise EbpfwatchError(
            f"the kernel's types are not what the probes know: {error}",
            "report it with the output of `uname -a`",
            Exit.UNAVAILABLE,
        ) from None
    return offsets


def _ext4_btf(btf: Btf) -> Btf:
    """Where ext4's own structs are: in the kernel, or in its module's BTF."""
    return Btf(module="ext4") if os.path.exists("/sys/kernel/btf/ext4") else btf


def _configure(choices: list[Choice], request: dict[str, Any]) -> None:
    """Apply hooks.alloc and hooks.strict; a free without a hook of its own shares the strict
    one's.
    """
    by_role = {choice.role: choice for choice in choices}
    if "alloc" in by_role and not request["alloc"]:
        by_role["alloc"].rung = None
        by_role["alloc"].reason = "switched off: hooks.alloc is false"
    if "any_free" not in by_role:
        return
    rcu, strict = by_role["rcu_free"], by_role["any_free"]
    if rcu.rung is None and strict.rung is not None:
        rcu.rung = Rung(strict.rung.kind, (), (SHARED_FREE,))
        rcu.name = strict.name + " (shared with any_free)"
    elif not request["strict"]:
        strict.rung = None
        strict.reason = "switched off: hooks.strict is false"


def _choose_role(role: str, rungs: tuple[Rung, ...], prober: Prober, btf: Btf) -> Choice:
    reasons: list[str] = []
    for rung in rungs:
        why_not = prober.why_not(rung) or _why_no_cache(rung, btf)
        if not why_not:
            return Choice(role, rung, rung.name, "; ".join(reasons) or rung.note)
        reasons.append(f"{rung.name}: {why_not}")
    return Choice(role, None, "", "; ".join(reasons))


def _why_no_cache(rung: Rung, btf: Btf) -> str:
    tracepoint, _ = rung.cache_argument
    if tracepoint and _cache_index(rung, btf) is None:
        return f"the tracepoint {tracepoint} does not carry the cache on this kernel"
    return ""


def _cache_index(rung: Rung, btf: Btf) -> int | None:
    try:
        return btf.raw_tracepoint_arguments(rung.cache_argument[0]).index("kmem_cache")
    except (BtfError, ValueError):
        return None


def _defines(rung: Rung, btf: Btf) -> list[str]:
    flags = [f"-D{define}" for define in rung.defines]
    if rung.cache_argument[0]:
        flags.append(f"-D{rung.cache_argument[1]}={_cache_index(rung, btf)}")
    return flags


class _Compiler:
    """bcc with our flags; ``bpf`` objects must stay referenced until their fds are sent."""

    def __init__(self, prober: Prober, reply: dict[str, Any]) -> None:
        shim = PROBES / "shim"
        os.environ["BCC_KERNEL_SOURCE"] = str(shim)
        # bcc warns on stderr of what it cannot find under /lib/modules; it need not look there.
        import bcc

        self._bcc = bcc
        triplet = sysconfig.get_config_var("MULTIARCH") or ""
        if not Path("/usr/include/linux/bpf.h").exists():
            raise EbpfwatchError(
                "no /usr/include/linux/bpf.h",
                "install it: apt-get install linux-libc-dev",
                Exit.UNAVAILABLE,
            )
        self.flags = [
            "-I/usr/include",
            f"-I/usr/include/{triplet}",
            f"-DLINUX_VERSION_CODE={prober.version:#x}",
        ]
        self.flags += [f"-D{name}={value}" for name, value in reply["offsets"].items()]
        self.flags += [f"-DHAVE_{name.upper()}" for name, on in reply["features"].items() if on]

    def compile(self, unit: str, flags: list[str]) -> Any:
        text = source.unit(PROBES, unit)
        return self._bcc.BPF(text=text.encode(), cflags=self.flags + flags)


def _load(
    request: dict[str, Any],
    reply: dict[str, Any],
    choices: list[Choice],
    prober: Prober,
    btf: Btf,
    teacher: Rung | None,
) -> tuple[dict[str, Any], list[int]]:
    compiler = _Compiler(prober, reply)
    unit = UNITS[request["unit"]]
    flags = [
        f"-DTABLE_BUCKETS={max(1, request['table_slots'] // 4)}",
        f"-DNOTE_SLOTS={request['note_slots']}",
        f"-DRING_PAGES={max(1, request['ring_bytes'] // os.sysconf('SC_PAGE_SIZE'))}",
    ]
    rungs = [choice.rung for choice in choices if choice.rung]
    for rung in rungs:
        flags += _defines(rung, btf)
    if unit.learns:
        learned = _learn(compiler, prober, btf, teacher, request["mounts"])
        reply["learned"] = learned
        flags.append(f"-DEXT4_INODE_CACHE={learned['cache']:#x}ULL")
        flags.append(f"-DDEAD_STATE={learned['dead_state']:#x}u")
    bpf = compiler.compile(request["unit"], flags)
    return reply, _attach_all(bpf, unit, reply, rungs, prober)


def _attach_all(
    bpf: Any, unit: Unit, reply: dict[str, Any], rungs: list[Rung], prober: Prober
) -> list[int]:
    fds: list[int] = [bpf[name.encode()].map_fd for name in unit.maps]
    programs: list[dict[str, str]] = []
    links: list[int] = []
    # dict order: alloc is attached before evict, evict before the frees, so that no life is seen
    # to end that was not seen to begin.
    for rung in rungs:
        for attachment in rung.attachments:
            function = bpf.load_func(attachment.function.encode(), PROGRAM_TYPES[rung.kind])
            symbol = prober.symbol(rung.kind, attachment)
            link = attach(rung.kind, function.fd, attachment, symbol)
            if link < 0 and attachment.optional:
                continue
            if link < 0:
                raise EbpfwatchError(
                    f"attaching {attachment.function} to {symbol}: {os.strerror(-link)}",
                    "see `ebpfwatch check`",
                    Exit.OSERR,
                )
            programs.append({"name": attachment.function, "target": attachment.target})
            fds.append(function.fd)
            links.append(link)
    for name in unit.unattached:
        fds.append(bpf.load_func(name.encode(), PROGRAM_TYPES["raw_tracepoint"]).fd)
        programs.append({"name": name, "target": ""})
    reply["maps"] = unit.maps
    reply["programs"] = programs
    return fds + links


def _learn(
    compiler: _Compiler, prober: Prober, btf: Btf, teacher: Rung | None, mounts: list[str]
) -> dict[str, int]:
    """The address of ext4's inode cache, from the first free of one of its objects.

    A nameless file of our own on each writable mount makes sure that there is one.
    """
    if teacher is None:
        raise EbpfwatchError(
            "kmem_cache_free cannot be hooked, so ext4's inode cache cannot be found",
            "see `ebpfwatch check`",
            Exit.UNAVAILABLE,
        )
    bpf = compiler.compile("learn.c", _defines(teacher, btf))
    attachment = teacher.attachments[0]
    function = bpf.load_func(attachment.function.encode(), PROGRAM_TYPES[teacher.kind])
    symbol = prober.symbol(teacher.kind, attachment)
    link = attach(teacher.kind, function.fd, attachment, symbol)
    if link < 0:
        raise EbpfwatchError(
            f"attaching to {symbol}: {os.strerror(-link)}", "see `ebpfwatch check`", Exit.OSERR
        )
    fd = bpf[b"learned"].map_fd
    try:
        deadline = time.monotonic() + _LEARN_SECONDS
        while time.monotonic() < deadline:
            for mount in mounts:
                _die_young(mount)
            for _ in range(100):
                answer = struct.unpack("4Q", map_lookup(fd, 0, 32))
                if answer[0]:
                    return dict(zip(("cache", "call_site", "object", "dead_state"), answer))
                time.sleep(0.002)
    finally:
        os.close(link)
        bpf.cleanup()
    raise EbpfwatchError(
        f"no ext4 inode was freed within {_LEARN_SECONDS:.0f} s, so ext4's cache is not known",
        "mount an ext4 filesystem read-write",
        Exit.UNAVAILABLE,
    )


def _die_young(directory: str) -> None:
    """Allocate an inode that has no name and let it die at once."""
    try:
        os.close(os.open(directory, os.O_TMPFILE | os.O_WRONLY, 0o600))
    except OSError:
        return  # read-only or full: another mount will do


if __name__ == "__main__":
    # Not sys.exit: bcc's cleanup at exit would detach what has just been handed over.
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)
