"""The loader child: tries the ladder, learns, compiles, attaches, hands the fds over, exits.

Run as ``python3 -m ebpfwatch.loader.child FD PARENT``: one end of a socketpair, and the pid of who
has the other end (``session``).  LLVM lives and dies here: some 120 MB that the daemon never has.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ebpfwatch.catalogue.ladder import UNITS, Rung, Unit
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.kernel import handoff, tracebuffer
from ebpfwatch.kernel.attach import attach_or_fail
from ebpfwatch.kernel.dry_run import DryRun, Program
from ebpfwatch.loader import offsets, trap_cost
from ebpfwatch.loader.btf import Btf, BtfError
from ebpfwatch.loader.choice import Choice, Chooser, configure, insist
from ebpfwatch.loader.compiler import Compiler, Module
from ebpfwatch.loader.learn import learn
from ebpfwatch.loader.prober import Prober
from ebpfwatch.loader.running import capabilities_missing, find_symbols, version_code
from ebpfwatch.loader.ticks import Ticks
from ebpfwatch.loader.verify import STAND_INS, Examiner, step_down
from ebpfwatch.paths import Paths

__all__ = ["main"]

_CLONE_NEWNS = 0x20000
_PR_SET_PDEATHSIG = 1
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000


def main(argv: list[str]) -> int:
    """Serve one request and exit; errors travel as a message."""
    if not _belong_to(int(argv[1])):
        return int(Exit.OSERR)
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
                " `ebpfwatch run --verbose`; `ebpfwatch check` says whether it can do without",
                "exit": int(Exit.SOFTWARE),
            }
            fds = []
        handoff.send(connection, reply, tuple(fds))
    return 0


def _belong_to(parent: int) -> bool:
    """Who stops the daemon stops its whole group: it decides for both, and we end with it.

    False if it has ended before we could say so.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return os.getppid() == parent


def _serve(request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    missing = capabilities_missing()
    if missing:
        raise EbpfwatchError(f"loading BPF programs needs {missing}", "run it as root", Exit.NOPERM)
    with contextlib.suppress(ValueError, OSError):
        # Before Linux 5.11 maps count as locked memory; since then as the cgroup's.
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)
    _mount_tracefs()
    return _Loading(request).serve()


def _mount_tracefs() -> None:
    """Tracepoints are attached by the numbers in tracefs; where it is not mounted, for us alone."""
    if os.path.exists("/sys/kernel/tracing/events"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) == 0:
        libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
        libc.mount(b"tracefs", b"/sys/kernel/tracing", b"tracefs", 0, None)


class _Loading:
    """One request, from the ladder to the fds."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.unit: Unit = UNITS[request["unit"]]
        targets = {
            attachment.target
            for rungs in self.unit.ladder.values()
            for rung in rungs
            for attachment in rung.attachments
        }
        self.btf, self.why_no_btf = self._open_btf(request.get("btf", ""))
        # A detached BTF tells offsets; only the kernel's own makes it take fentry programs.
        own = None if request.get("btf") else self.btf
        self.prober = Prober(version_code(), find_symbols(targets), own)
        self.features = self.prober.features()
        self.ticks = Ticks(self.prober.version)
        self.chooser = Chooser(self.prober, self.btf, request.get("rungs", ""))

    @functools.cached_property
    def _tick_flags(self) -> Sequence[str]:
        """Asked for once, and late: the longer between the two looks, the truer the tick."""
        return self.ticks.flags()

    def _open_btf(self, file: str) -> tuple[Btf | None, str]:
        try:
            return Btf(file=file), ""
        except BtfError as error:
            if file:
                raise EbpfwatchError(
                    f"hooks.btf: {error}",
                    "it must be BTF of this very kernel, raw or in an ELF file",
                    Exit.CONFIG,
                ) from None
            return None, str(error)

    def serve(self) -> tuple[dict[str, Any], list[int]]:
        """The reply, and the fds in its order: maps, programs, links."""
        choices, learning_rungs = self._choose(self.chooser)
        reply: dict[str, Any] = {
            "hooks": [
                {"role": c.role, "rung": c.name if c.rung else "", "reason": c.reason}
                for c in choices
            ],
            "features": {**self.features, "btf": self.btf is not None},
        }
        if self.request.get("verify"):
            reply["dry_run"] = self._verify(choices, learning_rungs).to_json()
            return reply, []
        insist(self.unit, choices, self.why_no_btf)
        compiler = Compiler(self.prober.version, self.features)
        reply["offsets"] = self._offsets(compiler)
        flags = [f"-D{name}={value}" for name, value in reply["offsets"].items()]
        if self.unit.learns:
            flags += self._learn(compiler, learning_rungs, flags, reply)
        flags += self._sizes([choice.rung for choice in choices if choice.rung])
        reply["features"]["ticks"] = bool(self._tick_flags)
        names = self.unit.maps
        if self.request.get("trace"):
            paths, wanted = Paths(), bool(self.request.get("dump_on_oops"))
            sysctl = paths.proc / tracebuffer.SYSCTL
            dump = tracebuffer.prepare(paths.sys / "kernel/tracing", sysctl, wanted)
            reply["dump"] = dataclasses.asdict(dump)
        if self.request.get("first_stacks"):
            names = (*names, "stacks")
        module = compiler.compile(self.request["unit"], flags)
        reply["maps"] = names
        return reply, self._attach_all(module, choices, reply)

    def _choose(self, chooser: Chooser) -> tuple[list[Choice], list[Rung]]:
        """What each role gets, and the rungs that probes/learn.c takes."""
        choices = [chooser.choose(role, rungs) for role, rungs in self.unit.ladder.items()]
        learning = [c for c in choices if self.unit.learns and c.role in ("evict", "any_free")]
        found = [
            chooser.learning_rung(choice, self.unit.ladder[choice.role]) for choice in learning
        ]
        learning_rungs = [rung for rung in found if rung is not None]
        configure(choices, {**self.request, "rungs": chooser.rungs})
        return choices, learning_rungs

    def _verify(self, choices: list[Choice], learning_rungs: list[Rung]) -> DryRun:
        """Load all that would be attached, attach none of it; where some is refused, once more
        without that.
        """
        left_out = {c.role: c.name for c in choices if c.name and c.rung is None}
        try:
            programs = self._examine(choices, learning_rungs)
        except EbpfwatchError as error:
            return DryRun(left_out=left_out, error=error)
        refused = [program for program in programs if program.refusal]
        rungs = self.chooser.rungs
        instead = step_down(self.chooser, choices, refused, rungs) if refused else ""
        if instead:
            try:
                again = self._examine(*self._choose(Chooser(self.prober, self.btf, instead)))
            except EbpfwatchError:
                instead = ""
            else:
                instead = "" if any(program.refusal for program in again) else instead
        return DryRun(tuple(programs), left_out, instead)

    def _examine(self, choices: list[Choice], learning_rungs: list[Rung]) -> list[Program]:
        insist(self.unit, choices, self.why_no_btf)
        compiler = Compiler(self.prober.version, self.features)
        flags = [f"-D{name}={value}" for name, value in self._offsets(compiler).items()]
        examiner = Examiner(self.prober, bool(self.request.get("verbose")))
        module = compiler.compile("learn.c", self._teach(learning_rungs, flags))
        programs = examiner.learner(module, learning_rungs)
        module.close()
        flags += _learned(STAND_INS) + self._sizes([c.rung for c in choices if c.rung])
        module = compiler.compile(self.request["unit"], flags)
        programs += examiner.roles(module, choices)
        programs += examiner.unattached(module, self.unit.unattached)
        module.close()
        return programs

    def _offsets(self, compiler: Compiler) -> dict[str, int]:
        if self.btf is not None:
            return offsets.from_btf(self.btf)
        return offsets.from_headers(compiler, self.why_no_btf)

    def _sizes(self, rungs: list[Rung]) -> list[str]:
        """The flags that the configuration and the rungs make."""
        request, page = self.request, os.sysconf("SC_PAGE_SIZE")
        flags = [flag for rung in rungs for flag in self.chooser.defines(rung)]
        return [
            *flags,
            f"-DTABLE_BUCKETS={max(1, request['table_slots'] // 4)}",
            f"-DNOTE_SLOTS={request['note_slots']}",
            f"-DRING_PAGES={max(1, request['ring_bytes'] // page)}",
            *self._tick_flags,
            *(["-DTRACE_VERDICTS"] if request.get("trace") else []),
            *([] if request.get("names", True) else ["-DNO_NAMES"]),
            *(["-DFIRST_STACKS"] if request.get("first_stacks") else []),
        ]

    def _teach(self, learning_rungs: list[Rung], flags: list[str]) -> list[str]:
        """The flags of probes/learn.c."""
        if len(learning_rungs) < 2:
            raise EbpfwatchError(
                "kmem_cache_free cannot be hooked, so ext4's inode cache cannot be found",
                "see `ebpfwatch check`",
                Exit.UNAVAILABLE,
            )
        defines = [flag for rung in learning_rungs for flag in self.chooser.defines(rung)]
        return [*flags, *defines, f"-DLEARNER_TGID={os.getpid()}"]

    def _learn(
        self,
        compiler: Compiler,
        learning_rungs: list[Rung],
        flags: list[str],
        reply: dict[str, Any],
    ) -> list[str]:
        how = self._teach(learning_rungs, flags)
        learned = learn(compiler, self.prober, learning_rungs, how, self.request["mounts"])
        reply["learned"] = learned
        reply["offsets"]["OFF_VFS_INODE"] = learned["vfs_inode"]
        return _learned(learned)

    def _attach_all(
        self, module: Module, choices: list[Choice], reply: dict[str, Any]
    ) -> list[int]:
        fds = [module.map(name) for name in reply["maps"]]
        costs_a_trap = self.request.get("attach", True) and any(
            c.role == "any_free" and c.rung and c.rung.kind == "kprobe" for c in choices
        )
        before_ns = trap_cost.call_ns() if costs_a_trap else 0.0
        programs: list[str] = []
        links: list[int] = []
        # In the ladder's order: alloc before evict, evict before the frees, so that no life is
        # seen to end that was not seen to begin.
        reply["links"] = []
        for choice, rung in [(choice, choice.rung) for choice in choices if choice.rung]:
            # Within a role the end comes first: a task that was seen to enter ext4_unlink or
            # shrink_slab, but not to leave, would be in there for ever.
            for attachment in reversed(rung.attachments):
                symbol = self.prober.symbol(rung.kind, attachment)
                program = module.load(
                    rung.kind, attachment.function, self.prober.btf_id(rung.kind, symbol)
                )
                try:
                    if self.request.get("attach", True):  # a model test runs them by hand
                        links.append(attach_or_fail(rung.kind, program, attachment, symbol))
                except EbpfwatchError:
                    if not attachment.optional:
                        raise
                    continue
                programs.append(attachment.function)
                fds.append(program)
                where = {"role": choice.role, "kind": rung.kind, "symbol": symbol}
                reply["links"].append({**where, **dataclasses.asdict(attachment)})
        if costs_a_trap:
            reply["slab_free_ns"] = max(0.0, trap_cost.call_ns() - before_ns)
        for name in self.unit.unattached:
            programs.append(name)
            fds.append(module.load("raw_tracepoint", name))
        reply["programs"] = programs
        # The module must not be collected before its fds are sent.
        self.module = module
        return fds + links


def _learned(values: Mapping[str, int]) -> list[str]:
    return [
        f"-DOFF_VFS_INODE={values['vfs_inode']}",
        f"-DEXT4_INODE_CACHE={values['cache']:#x}ULL",
        f"-DDEAD_STATE={values['dead_state']:#x}u",
        f"-DEXT4_FREE_SITE={values['call_site']:#x}ULL",
    ]


if __name__ == "__main__":
    # Not sys.exit: bcc's cleanup at exit would detach what has just been handed over.
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)
