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
from collections.abc import Iterator, Sequence

from ebpfwatch.catalogue.ladder import UNITS, Attachment, Rung, Unit
from ebpfwatch.errors import EbpfwatchError, Exit, Failure
from ebpfwatch.kernel import handoff, tracebuffer
from ebpfwatch.kernel.attach import attach_or_fail
from ebpfwatch.kernel.dry_run import DryRun, Program
from ebpfwatch.kernel.hook import LoadedHook
from ebpfwatch.kernel.protocol import (
    Examined,
    Features,
    Learned,
    Loaded,
    LoadRequest,
    Place,
)
from ebpfwatch.loader import offsets, trap_cost
from ebpfwatch.loader.btf import Btf, BtfError
from ebpfwatch.loader.choice import Chooser, configure, insist, rung_of
from ebpfwatch.loader.compiler import Compiler, Module
from ebpfwatch.loader.learn import Source, learn
from ebpfwatch.loader.offsets import headers
from ebpfwatch.loader.prober import Prober
from ebpfwatch.loader.running import capabilities_missing, find_symbols, lockdown, version_code
from ebpfwatch.loader.ticks import Ticks
from ebpfwatch.loader.verify import STAND_INS, Examiner, step_down
from ebpfwatch.paths import Paths
from ebpfwatch.system.files import open_regular, resolved

__all__ = ["main"]

_CLONE_NEWNS = 0x20000
_PR_SET_PDEATHSIG = 1
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000


def main(argv: list[str]) -> int:
    """Serve one request and exit; errors travel as a message."""
    if not _belong_to(int(argv[1])):
        return int(Exit.OSERR)
    connection = socket.socket(fileno=int(argv[0]))
    reply: Loaded | Examined | Failure
    fds: list[int] = []
    with open(os.memfd_create("loader-stderr"), "w+", encoding="utf-8") as log:
        try:
            request, _ = handoff.receive(connection, LoadRequest)
            if not request.verbose:
                # clang's diagnostics: shown only when the compilation failed.
                os.dup2(log.fileno(), 2)
            reply, fds = _serve(request)
        except EbpfwatchError as error:
            reply = Failure.of(error)
        except Exception as error:
            log.seek(0)
            said = [line.strip() for line in log if "error" in line.lower()]
            reply = Failure(
                f"loading the probes failed: {error}"
                + (f" ({'; '.join(said[:3])})" if said else ""),
                "this is a defect of ebpfwatch: report it with the output of"
                " `ebpfwatch run --verbose`; `ebpfwatch check` says whether it can do without",
                Exit.SOFTWARE,
            )
        handoff.send(connection, reply, tuple(fds))
    return 0


def _belong_to(parent: int) -> bool:
    """Ignore SIGTERM and SIGINT, which reach the whole process group, and die with the daemon
    (PR_SET_PDEATHSIG).

    False if the daemon had ended before that.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return os.getppid() == parent


def _serve(request: LoadRequest) -> tuple[Loaded | Examined, list[int]]:
    missing = capabilities_missing()
    if missing:
        raise EbpfwatchError(f"loading BPF programs needs {missing}", "run it as root", Exit.NOPERM)
    if lockdown() == "confidentiality":
        # bpf_probe_read_kernel and kprobes are refused (LOCKDOWN_BPF_READ_KERNEL, LOCKDOWN_KPROBES
        # in include/linux/security.h), by words of the verifier's that do not say so.
        raise EbpfwatchError(
            "the kernel is locked down (confidentiality): no program may read its memory",
            "boot with lockdown=integrity, or without it (some kernels set it with Secure Boot)",
            Exit.UNAVAILABLE,
        )
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

    def __init__(self, request: LoadRequest) -> None:
        self.request = request
        self.unit: Unit = UNITS[request.unit]
        targets = {
            attachment.target
            for rungs in self.unit.ladder.values()
            for rung in rungs
            for attachment in rung.attachments
        }
        self.btf, self.why_no_btf = self._open_btf(request.btf)
        # A detached BTF tells offsets; only the kernel's own makes it take fentry programs.
        own = None if request.btf else self.btf
        self.prober = Prober(version_code(), find_symbols(targets), own)
        self.have = self.prober.features()
        self.features = Features(**self.have, btf=self.btf is not None)
        self.ticks = Ticks(self.prober.version)
        self.chooser = Chooser(self.prober, self.btf, request.rungs)
        self.found_offsets: dict[str, int] = {}

    @functools.cached_property
    def _tick_flags(self) -> Sequence[str]:
        """Asked for once, and late: the longer between the two looks, the truer the tick."""
        return self.ticks.flags()

    @property
    def _source(self) -> Source:
        if self.request.btf:
            return Source(f"hooks.btf ({self.request.btf})", own=False)
        own = self.btf is not None
        return Source("the kernel's BTF" if own else f"what lies in {headers()}", own)

    def _open_btf(self, file: str) -> tuple[Btf | None, str]:
        try:
            if file:
                # libbpf will read it as root: in nobody else's hands, and no FIFO.
                file = resolved(file)
                os.close(open_regular(file))
            return Btf(file=file), ""
        except (BtfError, OSError) as error:
            if file:
                raise EbpfwatchError(
                    f"hooks.btf: {getattr(error, 'strerror', None) or error}",
                    "it must be BTF of this very kernel, raw or in an ELF file",
                    Exit.CONFIG,
                ) from None
            return None, str(error)

    def serve(self) -> tuple[Loaded | Examined, list[int]]:
        """The reply, and the fds in its order: maps, programs, links."""
        hooks, learning_rungs = self._choose(self.chooser)
        if self.request.verify:
            return Examined(hooks, self.features, self._verify(hooks, learning_rungs)), []
        insist(self.unit, hooks, self.why_no_btf)
        compiler = Compiler(self.prober.version, self.have)
        offsets = self.found_offsets = self._offsets(compiler)
        flags = [f"-D{name}={value}" for name, value in offsets.items()]
        learned = Learned()
        if self.unit.learns:
            teach = self._teach(learning_rungs, flags)
            mounts, source = self.request.mounts, self._source
            learned = learn(compiler, self.prober, learning_rungs, teach, mounts, source)
            offsets["OFF_VFS_INODE"] = learned.vfs_inode
            flags += _learned_flags(learned)
        flags += self._sizes(self.chooser, hooks)
        dump = self._prepare_dump()
        maps = (*self.unit.maps, *(["stacks"] if self.request.first_stacks else []))
        # Kept in self: its fds are closed with it, and they have to be sent first.
        self.module = compiler.compile(self.request.unit, flags)
        attached = self._attach_all(self.module, hooks)
        fds = [*(self.module.map(name) for name in maps), *attached.program_fds, *attached.links]
        return Loaded(
            hooks,
            self.features,
            offsets,
            learned,
            maps,
            tuple(attached.programs),
            tuple(attached.places),
            attached.slab_free_ns,
            dump,
        ), fds

    def _prepare_dump(self) -> tracebuffer.Dump:
        if not self.request.trace:
            return tracebuffer.Dump(False, "off")
        paths = Paths()
        sysctl = paths.proc / tracebuffer.SYSCTL
        return tracebuffer.prepare(paths.sys / "kernel/tracing", sysctl, self.request.dump_on_oops)

    def _choose(self, chooser: Chooser) -> tuple[tuple[LoadedHook, ...], list[Rung]]:
        """What each role gets, and the rungs that probes/learn.c takes."""
        hooks = [chooser.choose(role, rungs) for role, rungs in self.unit.ladder.items()]
        learning = [h for h in hooks if self.unit.learns and h.role in ("evict", "any_free")]
        found = [chooser.learning_rung(hook, self.unit.ladder[hook.role]) for hook in learning]
        learning_rungs = [rung for rung in found if rung is not None]
        request = dataclasses.replace(self.request, rungs=chooser.rungs)
        return configure(hooks, request), learning_rungs

    def _verify(self, hooks: Sequence[LoadedHook], learning_rungs: list[Rung]) -> DryRun:
        """Load all that would be attached, attach none of it; where some is refused, once more
        without that.
        """
        try:
            programs = self._examine(self.chooser, hooks, learning_rungs)
        except EbpfwatchError as error:
            return DryRun(failure=Failure.of(error))
        refused = [program for program in programs if program.refusal]
        rungs = self.chooser.rungs
        instead = step_down(self.chooser, hooks, refused, rungs) if refused else ""
        if instead:
            chooser = Chooser(self.prober, self.btf, instead)
            try:
                again = self._examine(chooser, *self._choose(chooser))
            except EbpfwatchError:
                instead = ""
            else:
                instead = "" if any(program.refusal for program in again) else instead
        return DryRun(tuple(programs), instead)

    def _examine(
        self, chooser: Chooser, hooks: Sequence[LoadedHook], learning_rungs: list[Rung]
    ) -> list[Program]:
        insist(self.unit, hooks, self.why_no_btf)
        compiler = Compiler(self.prober.version, self.have)
        flags = [f"-D{name}={value}" for name, value in self._offsets(compiler).items()]
        examiner = Examiner(self.prober, self.request.verbose)
        module = compiler.compile("learn.c", self._teach(learning_rungs, flags))
        programs = examiner.learner(module, learning_rungs)
        module.close()
        flags += _learned_flags(STAND_INS) + self._sizes(chooser, hooks)
        module = compiler.compile(self.request.unit, flags)
        programs += examiner.roles(module, hooks, self.unit.ladder)
        programs += examiner.unattached(module, self.unit.unattached)
        module.close()
        return programs

    def _offsets(self, compiler: Compiler) -> dict[str, int]:
        if self.btf is not None:
            return offsets.from_btf(self.btf)
        return offsets.from_headers(compiler, self.why_no_btf)

    def _sizes(self, chooser: Chooser, hooks: Sequence[LoadedHook]) -> list[str]:
        """The flags that the configuration and the rungs make."""
        request, page = self.request, os.sysconf("SC_PAGE_SIZE")
        ladder = self.unit.ladder
        return [
            *(flag for hook in hooks for flag in chooser.hook_defines(hook, ladder)),
            f"-DTABLE_BUCKETS={max(1, request.table_slots // 4)}",
            f"-DNOTE_SLOTS={request.note_slots}",
            f"-DRING_PAGES={max(1, request.ring_bytes // page)}",
            *self._tick_flags,
            *(["-DTRACE_VERDICTS"] if request.trace else []),
            *([] if request.names else ["-DNO_NAMES"]),
            *(["-DFIRST_STACKS"] if request.first_stacks else []),
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

    def _attach_all(self, module: Module, hooks: Sequence[LoadedHook]) -> _Attached:
        found = _Attached()
        slab_free = any(hook.role == "any_free" and hook.kind == "kprobe" for hook in hooks)
        costs_a_trap = self.request.attach and slab_free
        before_ns = trap_cost.call_ns() if costs_a_trap else 0.0
        # In the ladder's order: alloc before evict, evict before the frees, so that no life is
        # seen to end that was not seen to begin.
        # Those that wait for a reason come last: what is not attached has no link (kernel.links).
        for hook in sorted(hooks, key=lambda hook: hook.armed):
            rung = rung_of(hook, self.unit.ladder)
            # Within a role the end comes first: a task that was seen to enter ext4_unlink or
            # shrink_slab, but not to leave, would be in there for ever.
            for attachment in reversed(rung.attachments if rung else ()):
                self._attach(module, hook, attachment, found)
        if costs_a_trap:
            with _for_a_moment(found, "any_free"):
                found.slab_free_ns = max(0.0, trap_cost.call_ns() - before_ns)
        for name in self.unit.unattached:
            found.programs.append(name)
            found.program_fds.append(module.load("raw_tracepoint", name))
        return found

    def _attach(
        self, module: Module, hook: LoadedHook, attachment: Attachment, found: _Attached
    ) -> None:
        symbol = self.prober.symbol(hook.kind, attachment)
        function = self.prober.function(hook.kind, symbol)
        program = module.load(hook.kind, attachment.function, function)
        if attachment.unless in self.found_offsets:
            found.programs.append(attachment.function)
            found.program_fds.append(program)
            return
        try:
            # A model test runs them by hand; those that are armed wait for a reason.
            if self.request.attach and not hook.armed:
                found.links.append(attach_or_fail(hook.kind, program, attachment, symbol))
        except EbpfwatchError:
            if not attachment.optional:
                raise
            return
        found.programs.append(attachment.function)
        found.program_fds.append(program)
        found.places.append(Place(hook.role, hook.kind, symbol, attachment))


@dataclasses.dataclass
class _Attached:
    """What was loaded and attached so far; ``links`` and ``places`` are in the same order."""

    programs: list[str] = dataclasses.field(default_factory=list)
    program_fds: list[int] = dataclasses.field(default_factory=list)
    places: list[Place] = dataclasses.field(default_factory=list)
    links: list[int] = dataclasses.field(default_factory=list)
    slab_free_ns: float = 0.0


@contextlib.contextmanager
def _for_a_moment(found: _Attached, role: str) -> Iterator[None]:
    """Attached inside, where the role waits for a reason."""
    waiting = [place for place in found.places[len(found.links) :] if place.role == role]
    links = []
    try:
        for place in waiting:
            program = found.program_fds[found.programs.index(place.attachment.function)]
            links.append(attach_or_fail(place.kind, program, place.attachment, place.symbol))
        yield
    finally:
        for link in links:
            os.close(link)


def _learned_flags(learned: Learned) -> list[str]:
    return [
        f"-DOFF_VFS_INODE={learned.vfs_inode}",
        f"-DEXT4_INODE_CACHE={learned.cache:#x}ULL",
        f"-DDEAD_STATE={learned.dead_state:#x}u",
        f"-DEXT4_FREE_SITE={learned.call_site:#x}ULL",
    ]


if __name__ == "__main__":
    # Not sys.exit: bcc's cleanup at exit would detach what has just been handed over.
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)
