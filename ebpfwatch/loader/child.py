"""The loader child: learns, loads, attaches, hands the fds over, exits.

It takes what an earlier start has compiled (``prepared``); else it tries the ladder and compiles
(``prepare``).

Run as ``python3 -m ebpfwatch.loader.child FD PARENT LOG``: one end of a socketpair, the pid of who
has the other end (``session``), and the file that is stderr while it loads.  LLVM lives and dies
here: some 120 MB that the daemon never has.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ebpfwatch.catalogue.ladder import UNITS, Attachment, Unit
from ebpfwatch.errors import EbpfwatchError, Exit, Failure
from ebpfwatch.kernel import handoff, tracebuffer
from ebpfwatch.kernel.attach import attach_or_fail
from ebpfwatch.kernel.dry_run import DryRun
from ebpfwatch.kernel.hook import LoadedHook
from ebpfwatch.kernel.protocol import Examined, Go, Learned, Loaded, LoadRequest, Origin, Place
from ebpfwatch.loader import trap_cost
from ebpfwatch.loader.bpf import Function
from ebpfwatch.loader.image import Module
from ebpfwatch.loader.learn import NO_PLACE, learn
from ebpfwatch.loader.places import rung_of
from ebpfwatch.loader.prepared import (
    MadeFor,
    Prepared,
    Unusable,
    made_for,
    path_of,
    read,
    write,
)
from ebpfwatch.loader.running import capabilities_missing, lockdown, version_code
from ebpfwatch.loader.ticks import Ticks
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
    reply: Loaded | Examined | Failure
    fds: list[int] = []
    with open(int(argv[2]), "w+", encoding="utf-8", errors="replace") as log:
        try:
            request, _ = handoff.receive(connection, LoadRequest)
            if not request.verbose:
                # clang's diagnostics: shown only when the compilation failed.
                os.dup2(log.fileno(), 2)
            may_attach = functools.cache(lambda: handoff.receive(connection, Go))
            reply, fds = _serve(request, may_attach)
        except EOFError:
            return 0  # the start failed elsewhere
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
        # Until the other side has read it: one that ends with something unread in its own queue
        # (Go) takes the answer away (ECONNRESET: unix_release_sock() in net/unix/af_unix.c).
        with contextlib.suppress(OSError):
            while connection.recv(1):
                pass
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


def _serve(
    request: LoadRequest, may_attach: Callable[[], object]
) -> tuple[Loaded | Examined, list[int]]:
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
    if request.verify:
        return _verify(request), []
    if request.build:
        return _build(request), []
    return _load(request, may_attach)


def _mount_tracefs() -> None:
    """Tracepoints are attached by the numbers in tracefs; where it is not mounted, for us alone."""
    if os.path.exists("/sys/kernel/tracing/events"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) == 0:
        libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
        libc.mount(b"tracefs", b"/sys/kernel/tracing", b"tracefs", 0, None)


def _verify(request: LoadRequest) -> Examined:
    from ebpfwatch.loader.prepare import Preparation

    preparation = Preparation(request)
    hooks, dry_run = preparation.verify()
    return Examined(
        hooks,
        preparation.features,
        dry_run,
        members=preparation.members,
        offsets_from=preparation.source.name,
    )


def _build(request: LoadRequest) -> Examined:
    from ebpfwatch.loader.prepare import Preparation

    wanted, path = made_for(request), path_of(Path(request.keep), request.unit)
    preparation = Preparation(request)
    prepared = preparation.prepare()
    programs = tuple(preparation.examine(prepared))
    origin = Origin(compiled="that was asked for", not_kept="the kernel refuses a program")
    if not any(program.refusal for program in programs):
        origin = _keep(path, wanted, prepared, origin.compiled)
    return Examined(prepared.hooks, prepared.features, DryRun(programs), origin)


def _keep(path: Path, wanted: MadeFor, prepared: Prepared, why: str) -> Origin:
    try:
        write(path, wanted, prepared)
    except OSError as error:
        return Origin("", why, f"{path} cannot be written: {error.strerror}")
    return Origin(str(path), why)


def _load(request: LoadRequest, may_attach: Callable[[], object]) -> tuple[Loaded, list[int]]:
    """From what is kept, else from what is compiled now; that is kept then."""
    wanted, path, why = None, Path(), ""
    if request.keep:
        path = path_of(Path(request.keep), request.unit)
        try:
            wanted = made_for(request)
            start = _Start(request, read(path, wanted), may_attach, kept=True)
        except (Unusable, OSError) as error:
            why = f"{path} {error}"
        else:
            try:
                return start.run(Origin(str(path)))
            except (EbpfwatchError, OSError, KeyError) as error:
                start.undo()
                why = f"{path} does not load here: {error}"
    from ebpfwatch.loader.prepare import Preparation

    preparation = Preparation(request)
    prepared = preparation.prepare()
    start = _Start(request, prepared, may_attach)
    try:
        loaded, fds = start.run(Origin(compiled=why))
    except OSError as error:
        start.undo()
        if not start.values:
            raise
        prepared = preparation.prepare(start.values)
        not_kept = f"only with this boot's addresses compiled in do they load: {error.strerror}"
        return _Start(request, prepared, may_attach).run(Origin("", why, not_kept))
    if wanted is not None:
        # After the load, so that what the kernel refuses is not kept.
        prepared = dataclasses.replace(prepared, unproven=loaded.unproven)
        origin = _keep(path, wanted, prepared, why)
        loaded = dataclasses.replace(loaded, origin=origin)
    return loaded, fds


class _Start:
    """What was prepared, brought into the kernel: from the learner to the fds."""

    def __init__(
        self,
        request: LoadRequest,
        prepared: Prepared,
        may_attach: Callable[[], object],
        kept: bool = False,
    ) -> None:
        self.request, self.prepared, self.may_attach = request, prepared, may_attach
        self.kept = kept
        self.unit: Unit = UNITS[request.unit]
        self.version = version_code()
        #: Kept: its fds are closed with it, and they have to be sent first.
        self.module: Module | None = None
        self.found = _Attached()
        #: For the holes of the unit's programs; empty until they are known.
        self.values: dict[str, int] = {}

    def run(self, origin: Origin) -> tuple[Loaded, list[int]]:
        """The reply, and the fds in its order: maps, programs, links."""
        prepared = self.prepared
        learned, unproven, offsets = Learned(), "", dict(prepared.offsets)
        tick = prepared.tick_ns
        values = {"TICK_NS": tick}
        if tick:
            values["TICK_OFFSET_NS"] = Ticks(self.version).offset(tick)
        if self.unit.learns:
            learned, unproven = self._learn()
            offsets["OFF_VFS_INODE"] = learned.vfs_inode
            values.update(learned.values)
        maps = (*self.unit.maps, *(["stacks"] if self.request.first_stacks else []))
        self.values = values
        self.module = module = Module(prepared.unit, self.version, values)
        module.load_together(
            [(one.hook.kind, one.attachment.function, one.function) for one in self._pieces()]
        )
        self.may_attach()
        dump = self._prepare_dump()
        self._attach_all(module)
        attached = self.found
        fds = [*(module.map(name) for name in maps), *attached.program_fds, *attached.links]
        return Loaded(
            prepared.hooks,
            prepared.features,
            offsets,
            learned,
            maps,
            tuple(attached.programs),
            tuple(attached.places),
            attached.slab_free_ns,
            dump,
            origin,
            prepared.source.name,
            unproven,
        ), fds

    def undo(self) -> None:
        """Detach and unload what there is."""
        while self.found.links:
            os.close(self.found.links.pop())
        if self.module is not None:
            self.module.close()

    def _learn(self) -> tuple[Learned, str]:
        """At every start, of kept programs, too: the learner is kept with them, so this needs no
        compiler.
        """
        prepared = self.prepared
        module = Module(prepared.learner, self.version, {"LEARNER_TGID": os.getpid()})
        rungs = [rung_of(hook, self.unit.ladder) for hook in prepared.learning]
        source = prepared.source
        if self.kept:
            source = dataclasses.replace(source, name="what was compiled before")
        try:
            learned, unproven = learn(
                module,
                prepared.places,
                [rung for rung in rungs if rung is not None],
                self.request.mounts,
                source,
                prepared.offsets,
            )
        finally:
            module.close()
        if self.kept and unproven not in ("", NO_PLACE, prepared.unproven):
            # The kernel's own offsets are believed (``learn``), but these are from a file: what
            # agreed when they were compiled must agree now.
            raise EbpfwatchError(unproven, "it is compiled anew", Exit.CONFIG)
        return learned, unproven

    def _prepare_dump(self) -> tracebuffer.Dump:
        if not self.request.trace:
            return tracebuffer.Dump(False, "off")
        paths = Paths()
        sysctl = paths.proc / tracebuffer.SYSCTL
        return tracebuffer.prepare(paths.sys / "kernel/tracing", sysctl, self.request.dump_on_oops)

    def _attach_all(self, module: Module) -> None:
        found, hooks = self.found, self.prepared.hooks
        slab_free = any(hook.role == "any_free" and hook.kind == "kprobe" for hook in hooks)
        costs_a_trap = self.request.attach and slab_free
        before_ns = trap_cost.call_ns() if costs_a_trap else 0.0
        # In the ladder's order: alloc before evict, evict before the frees, so that no life is
        # seen to end that was not seen to begin.
        # Those that wait for a reason come last: what is not attached has no link (kernel.links).
        for piece in sorted(self._pieces(), key=lambda piece: piece.hook.armed):
            self._attach(module, piece)
        if costs_a_trap:
            with _for_a_moment(found, "any_free"):
                found.slab_free_ns = max(0.0, trap_cost.call_ns() - before_ns)
        for name in self.unit.unattached:
            found.programs.append(name)
            found.program_fds.append(module.load("raw_tracepoint", name))

    def _pieces(self) -> Iterator[_Piece]:
        """What will be loaded, in the ladder's order."""
        places = self.prepared.places
        for hook in self.prepared.hooks:
            rung = rung_of(hook, self.unit.ladder)
            # Within a role the end comes first: a task that was seen to enter ext4_unlink or
            # shrink_slab, but not to leave, would be in there for ever.
            for attachment in reversed(rung.attachments if rung else ()):
                symbol = places.symbol(hook.kind, attachment)
                yield _Piece(hook, attachment, symbol, places.function(hook.kind, symbol))

    def _attach(self, module: Module, piece: _Piece) -> None:
        found, hook, attachment, symbol, function = self.found, *piece
        program = module.load(hook.kind, attachment.function, function)
        if attachment.unless in self.prepared.offsets:
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


class _Piece(NamedTuple):
    """One program of a role; ``function``: what it stands in, where it is a fentry program."""

    hook: LoadedHook
    attachment: Attachment
    symbol: str
    function: Function | None


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


if __name__ == "__main__":
    # Not sys.exit: bcc's cleanup at exit would detach what has just been handed over.
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)
