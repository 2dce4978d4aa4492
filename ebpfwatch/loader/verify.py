"""Would the verifier take the real programs here? They are loaded and dropped, attached nowhere.

Runs in the loader child, so what they occupy is gone with it.  That an empty program can be
attached proves nothing about the real one: the verifier of this kernel may refuse it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ebpfwatch.catalogue.ladder import LADDER, NONE, REQUIRED, Rung, wishes
from ebpfwatch.kernel.dry_run import LEARNER, SELFTEST, Program
from ebpfwatch.kernel.hook import LoadedHook
from ebpfwatch.kernel.protocol import Learned
from ebpfwatch.loader.choice import Chooser
from ebpfwatch.loader.image import Module
from ebpfwatch.loader.learn import PROGRAMS
from ebpfwatch.loader.places import Places, rung_of

__all__ = ["STAND_INS", "STAND_IN_OFFSETS", "Examiner", "step_down"]

#: For what probes/learn.c would find out with programs that are attached. The compiler takes them
#: as constants of the same size as the real ones, which is all that the verifier sees of them.
STAND_INS = Learned(
    cache=0xFFFF888100000000,
    call_site=0xFFFFFFFF81000000,
    dead_state=0x60,
    vfs_inode=512,
)

#: For what is found in files of ours at the start, where neither BTF nor headers tell it (Linux
#: 4.19.78 on arm64).
STAND_IN_OFFSETS = {
    "OFF_I_INO": 64,
    "OFF_I_GENERATION": 560,
    "OFF_I_NLINK": 72,
    "OFF_I_STATE": 152,
    "OFF_I_COUNT": 336,
    "OFF_I_SB": 40,
    "OFF_I_SB_LIST": 280,
    "OFF_I_RCU": 312,
    "OFF_S_DEV": 16,
    "OFF_D_INODE": 48,
    "OFF_D_NAME": 40,
    "OFF_CACHE_NAME": 88,
    "OFF_D_PARENT": 24,
    "OFF_I_DENTRY": 312,
    "OFF_I_WRITECOUNT": 344,
    "OFF_I_MMAP": 400,
    "OFF_D_COUNT": 92,
    "OFF_D_U": 176,
    "OFF_D_SB": 104,
    "OFF_S_TYPE": 40,
    "OFF_FS_NAME": 0,
    "OFF_F_DENTRY": 24,
    "OFF_I_RWSEM_OWNER": 192,
    "OFF_D_SUBDIRS": 160,
    "OFF_D_CHILD": 144,
}


class Examiner:
    """Loads programs one by one and writes down what became of each."""

    def __init__(self, places: Places) -> None:
        self._places = places

    def roles(
        self,
        module: Module,
        hooks: Iterable[LoadedHook],
        ladder: Mapping[str, tuple[Rung, ...]],
    ) -> list[Program]:
        """The programs of every role that has a rung of its own."""
        return [
            self._load(module, hook.role, rung.kind, attachment.function, attachment.target)
            for hook in hooks
            for rung in [rung_of(hook, ladder)]
            if rung is not None
            for attachment in rung.attachments
        ]

    def unattached(self, module: Module, names: Iterable[str]) -> list[Program]:
        """Those that are only ever run by hand."""
        return [self._load(module, SELFTEST, "raw_tracepoint", name) for name in names]

    def learner(self, module: Module, rungs: Iterable[Rung]) -> list[Program]:
        """The programs of probes/learn.c, on the rungs of the eviction and of the free."""
        return [
            self._load(module, LEARNER, kind, function)
            for kind, function in (
                *((rung.kind, rung.attachments[0].function) for rung in rungs),
                *(("raw_tracepoint", attachment.function) for attachment in PROGRAMS),
            )
        ]

    def _load(
        self, module: Module, role: str, kind: str, function: str, target: str = ""
    ) -> Program:
        symbol = self._places.symbols.get(target, "")
        try:
            module.load(kind, function, self._places.function(kind, symbol))
        except OSError as error:
            return Program(role, function, str(error.strerror) or type(error).__name__)
        return Program(role, function, "")


def step_down(
    chooser: Chooser, hooks: Sequence[LoadedHook], refused: Sequence[Program], rungs: str
) -> str:
    """The text of hooks.rungs that keeps each refused program's role off its rung: on the next that
    holds, else on none; "" where that cannot help.
    """
    wanted = {role: str(wish) for role, wish in wishes(rungs).items()}
    lost = {program.role for program in refused}
    for hook in hooks:
        taken = rung_of(hook, LADDER)
        if hook.role in lost and taken is not None:
            rung = chooser.below(taken, LADDER[hook.role])
            wanted[hook.role] = f"{rung.kind}:{rung.attachments[0].target}" if rung else NONE
            lost.discard(hook.role)
    if lost or any(wanted.get(role) == NONE for role in REQUIRED):
        return ""  # the learner, the self-test's program, or what nothing works without
    return " ".join(f"{role}={wish}" for role, wish in wanted.items())
