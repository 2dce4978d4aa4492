"""Choosing, compiling and trying: what a start does once for each kernel and configuration.

Only this needs BTF, headers, bcc and LLVM; a start from what is kept (``prepared``) imports none of
it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

from ebpfwatch.catalogue.ladder import UNITS, Unit
from ebpfwatch.errors import EbpfwatchError, Exit, Failure
from ebpfwatch.kernel.dry_run import DryRun, Program
from ebpfwatch.kernel.hook import LoadedHook
from ebpfwatch.kernel.protocol import Features, LoadRequest
from ebpfwatch.loader import offsets
from ebpfwatch.loader.btf import Btf, BtfError
from ebpfwatch.loader.choice import Chooser, configure, insist, object_size
from ebpfwatch.loader.compiler import Compiler
from ebpfwatch.loader.image import Image, Module, defines
from ebpfwatch.loader.learn import FOUND, find
from ebpfwatch.loader.offsets import have_headers, headers
from ebpfwatch.loader.places import Source, rung_of
from ebpfwatch.loader.prepared import Prepared
from ebpfwatch.loader.prober import Prober
from ebpfwatch.loader.running import find_symbols, version_code
from ebpfwatch.loader.ticks import Ticks
from ebpfwatch.loader.verify import STAND_IN_OFFSETS, STAND_INS, Examiner, step_down
from ebpfwatch.system.files import open_regular, resolved

__all__ = ["Preparation"]

#: The holes that every program may have; probes/learn.c has one more, who the learner is.
_LEARNED = ("EXT4_INODE_CACHE", "EXT4_FREE_SITE", "OFF_VFS_INODE", "DEAD_STATE")
_TICK = ("TICK_NS", "TICK_OFFSET_NS")


class Preparation:
    """One request, from the ladder to the compiled programs."""

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
        #: Those that are told before the start.
        self.members: tuple[str, ...] = ()
        self._found: dict[str, int] = {}

    @property
    def source(self) -> Source:
        """Where the offsets are from."""
        if self.request.btf:
            return Source(f"hooks.btf ({self.request.btf})", own=False)
        if self.btf is not None:
            return Source("the kernel's BTF", own=True)
        if have_headers() or not self.unit.learns:
            return Source(f"what lies in {headers()}", own=False)
        return FOUND

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

    def prepare(self, values: Mapping[str, int] | None = None) -> Prepared:
        """Choose and compile; raises ``EbpfwatchError`` where there is no way.

        With ``values`` (by the names of ``image.HOLES``) these stand in the code for good, and
        nothing of it is of use at another start.  The compiler can calculate with them then, so
        the programs are a little shorter: Linux 4.19's verifier follows 131072 instructions
        (BPF_COMPLEXITY_LIMIT_INSNS), and the longest program is not far from that.  What made the
        verifier refuse the others may also be the reading without helpers, so these have none.
        """
        return self._prepare(self.chooser, values)

    def _prepare(self, chooser: Chooser, values: Mapping[str, int] | None = None) -> Prepared:
        hooks, learning = self._choose(chooser)
        insist(self.unit, hooks, self.why_no_btf)
        compiler = Compiler(self.prober.version, self.have)
        found = self._offsets(compiler, learning)
        self.members = () if self.source is FOUND else tuple(found)
        flags = [f"-D{name}={value}" for name, value in found.items()]
        tick = self.ticks.tick()
        holes = (*_LEARNED, *(_TICK if tick else ()))
        learner = Image()
        if self.unit.learns:
            learner = compiler.compile("learn.c", self._teach(learning, flags))
        if values is None:
            flags += defines(holes)
            flags += [f"-D{name}={value}" for name, value in self.prober.direct_read.items()]
        else:
            flags += _constants(holes, values)
        flags += self._sizes(chooser, hooks)
        return Prepared(
            hooks,
            tuple(learning),
            self.features,
            found,
            self.prober.places,
            self.source,
            tick,
            compiler.compile(self.request.unit, flags),
            learner,
        )

    def verify(self) -> tuple[tuple[LoadedHook, ...], DryRun]:
        """The hooks that were chosen, and what the kernel says of all that would be attached: it is
        loaded and not attached; where some is refused, once more without that.
        """
        hooks, _ = self._choose(self.chooser)
        try:
            programs = self.examine(self.prepare())
            if any(program.refusal for program in programs):
                programs = self.examine(self.prepare(self._stand_ins()))
        except EbpfwatchError as error:
            return hooks, DryRun(failure=Failure.of(error))
        refused = [program for program in programs if program.refusal]
        rungs = self.chooser.rungs
        instead = step_down(self.chooser, hooks, refused, rungs) if refused else ""
        if instead:
            chooser = Chooser(self.prober, self.btf, instead)
            try:
                again = self.examine(self._prepare(chooser))
            except EbpfwatchError:
                instead = ""
            else:
                instead = "" if any(program.refusal for program in again) else instead
        return hooks, DryRun(tuple(programs), instead)

    def examine(self, prepared: Prepared) -> list[Program]:
        """What the verifier says of each program, with stand-ins for what would be learned."""
        values = {**self._stand_ins(), "LEARNER_TGID": os.getpid()}
        examiner, version = Examiner(prepared.places), self.prober.version
        programs: list[Program] = []
        if self.unit.learns:
            module = Module(prepared.learner, version, values)
            rungs = [rung_of(hook, self.unit.ladder) for hook in prepared.learning]
            programs += examiner.learner(module, filter(None, rungs))
            module.close()
        module = Module(prepared.unit, version, values)
        programs += examiner.roles(module, prepared.hooks, self.unit.ladder)
        programs += examiner.unattached(module, self.unit.unattached)
        module.close()
        return programs

    def _stand_ins(self) -> dict[str, int]:
        return {**STAND_INS.values, "TICK_NS": self.ticks.tick(), "TICK_OFFSET_NS": 0}

    def _choose(self, chooser: Chooser) -> tuple[tuple[LoadedHook, ...], list[LoadedHook]]:
        """What each role gets, and the rungs that probes/learn.c takes."""
        hooks = [chooser.choose(role, rungs) for role, rungs in self.unit.ladder.items()]
        learning = []
        for hook in hooks:
            if self.unit.learns and hook.role in ("evict", "any_free"):
                rung = chooser.learning_rung(hook, self.unit.ladder[hook.role])
                if rung is not None:
                    target = rung.attachments[0].target
                    learning.append(LoadedHook(hook.role, rung.kind, target))
        request = dataclasses.replace(self.request, rungs=chooser.rungs)
        return configure(hooks, request), learning

    def _offsets(self, compiler: Compiler, learning: Sequence[LoadedHook]) -> dict[str, int]:
        if self.btf is not None:
            return offsets.from_btf(self.btf)
        if self.source is not FOUND:
            return offsets.from_headers(compiler, self.why_no_btf)
        if self.request.verify:
            return dict(STAND_IN_OFFSETS)
        # Once: what is compiled again takes the same.
        self._found = self._found or self._find(compiler, learning)
        return dict(self._found)

    def _find(self, compiler: Compiler, learning: Sequence[LoadedHook]) -> dict[str, int]:
        image = compiler.compile("learn.c", self._teach(learning, ["-DFINDING"]))
        module = Module(image, self.prober.version, {"LEARNER_TGID": os.getpid()})
        rungs = [rung for rung in (rung_of(one, self.unit.ladder) for one in learning) if rung]
        try:
            found, why_not = find(module, self.prober.places, rungs, self.request.mounts)
        finally:
            module.close()
        if not why_not and not object_size():
            why_not = "the size of ext4's inode objects is not in /sys/kernel/slab"
        if why_not:
            raise offsets.missing(self.why_no_btf, why_not)
        return found

    def _sizes(self, chooser: Chooser, hooks: Sequence[LoadedHook]) -> list[str]:
        """The flags that the configuration and the rungs make."""
        request, page = self.request, os.sysconf("SC_PAGE_SIZE")
        ladder = self.unit.ladder
        return [
            *(flag for hook in hooks for flag in chooser.hook_defines(hook, ladder)),
            f"-DTABLE_BUCKETS={max(1, request.table_slots // 4)}",
            f"-DNOTE_SLOTS={request.note_slots}",
            f"-DRING_PAGES={max(1, request.ring_bytes // page)}",
            *(["-DTRACE_VERDICTS"] if request.trace else []),
            *([] if request.names else ["-DNO_NAMES"]),
            *(["-DFIRST_STACKS"] if request.first_stacks else []),
        ]

    def _teach(self, learning: Sequence[LoadedHook], flags: list[str]) -> list[str]:
        """The flags of probes/learn.c."""
        if len(learning) < 2:
            raise EbpfwatchError(
                "kmem_cache_free cannot be hooked, so ext4's inode cache cannot be found",
                "see `ebpfwatch check`",
                Exit.UNAVAILABLE,
            )
        rungs = filter(None, (rung_of(hook, self.unit.ladder) for hook in learning))
        chosen = [flag for rung in rungs for flag in self.chooser.defines(rung)]
        if self.source is FOUND:
            chosen.append(f"-DCACHE_OBJECT_SIZE={object_size()}")
        return [*flags, *chosen, *defines(("LEARNER_TGID",))]


def _constants(names: Sequence[str], values: Mapping[str, int]) -> list[str]:
    suffix = {"OFF_VFS_INODE": "", "DEAD_STATE": "u"}
    return [f"-D{name}={values[name] % 2**64:#x}{suffix.get(name, 'ULL')}" for name in names]
