"""Where programs go on this kernel: names of functions, and types of those that fentry takes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

from ebpfwatch.catalogue.ladder import Attachment, Rung
from ebpfwatch.kernel.hook import LoadedHook
from ebpfwatch.loader.bpf import Function
from ebpfwatch.loader.btf import module_fd

__all__ = ["Places", "Source", "rung_of"]


@dataclasses.dataclass(frozen=True)
class Places:
    """What was found out about the functions of the ladder.

    ``symbols``: what each is called here (``name.isra.0``); ``types``: the BTF type by that name;
    ``of_ext4`` are those whose type is in the BTF of the module ext4, not in vmlinux's.
    """

    symbols: dict[str, str] = dataclasses.field(default_factory=dict)
    types: dict[str, int] = dataclasses.field(default_factory=dict)
    of_ext4: tuple[str, ...] = ()

    def symbol(self, kind: str, attachment: Attachment) -> str:
        """What to attach to; "" if there is nothing of that name."""
        if kind not in ("kprobe", "fentry"):
            return attachment.target
        return self.symbols.get(attachment.target, "")

    def function(self, kind: str, symbol: str) -> Function | None:
        """The function that a fentry program stands in; None for other kinds, and where no BTF
        describes it.  Raises ``OSError`` where ext4's BTF is gone.
        """
        if kind != "fentry" or symbol not in self.types:
            return None
        return Function(self.types[symbol], _ext4_fd() if symbol in self.of_ext4 else 0)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the offsets are from: its name for people; ``own``: this kernel told them itself."""

    name: str
    own: bool


def rung_of(hook: LoadedHook, ladder: Mapping[str, tuple[Rung, ...]]) -> Rung | None:
    """The row of the ladder that the hook is on; None if it has no rung of its own."""
    if not hook.has_rung or hook.shared:
        return None
    place = hook.kind, hook.target
    rungs = ladder[hook.role]
    return next(rung for rung in rungs if (rung.kind, rung.attachments[0].target) == place)


@functools.cache
def _ext4_fd() -> int:
    return module_fd("ext4")
