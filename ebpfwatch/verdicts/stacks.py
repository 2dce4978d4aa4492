"""From addresses to frames, and which of them have to do with the matter. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Callable

from ebpfwatch.catalogue.functions import INODE_FREERS, SOFTIRQ_ENTRY, TRACERS
from ebpfwatch.verdicts.finding import Frame

__all__ = [
    "behind_tracer",
    "frame",
    "in_softirq",
    "is_own_caller",
    "is_tracer",
    "own_frames",
    "resolve",
]

#: The probe itself and the tracepoint that called it are not the kernel's doing.
_PROBES = ("bpf_prog_", "bpf_trace_run", "__bpf_trace_", "__traceiter_", "bpf_trampoline_")

_NAME = re.compile(r"(?P<symbol>[^+]+)\+(?P<offset>0x[0-9a-f]+)(?: \[(?P<module>[^]]+)\])?")


def frame(address: int, name: str, taints: Callable[[str], str]) -> Frame:
    """The frame of an address whose name is "symbol+0x10 [module]" or "" (``kernel/symbols.py``);
    ``taints`` tells a module's.
    """
    found = _NAME.fullmatch(name)
    if not found:
        return Frame(address)
    module = found["module"] or ""
    marks = taints(module) if module else ""
    return Frame(address, found["symbol"], int(found["offset"], 16), module, marks)


def resolve(
    addresses: Sequence[int], call_site: int, name: Callable[[int], Frame]
) -> tuple[Frame, ...]:
    """The frames, innermost first, without the probe's own.

    A probe stands at a function's first instruction, before it has a frame of its own: the
    unwinder then leaves out its caller, who may be the culprit; the call site has it.  In a dump
    the probes' code has no name; what stands before the first frame that has one is theirs.
    """
    frames = [name(address) for address in addresses]
    named = next((i for i, f in enumerate(frames) if f.symbol), 0)
    del frames[:named]
    own = max((i for i, f in enumerate(frames[:8]) if f.symbol.startswith(_PROBES)), default=-1)
    del frames[: own + 1]
    if call_site and call_site not in addresses:
        frames.insert(1 if frames else 0, name(call_site))
    return tuple(frames)


def in_softirq(frames: Sequence[Frame]) -> bool:
    """Whether these ran in a softirq, an interrupt or RCU's thread: the task is a bystander."""
    return any(SOFTIRQ_ENTRY.fullmatch(f.symbol) for f in frames)


def is_own_caller(caller: Frame) -> bool:
    """Whether it is the kernel's or ext4's own code that frees inodes; foreign code may have a
    function of the same name.

    A compiler names what it made of a function ``NAME.isra.0`` or ``NAME.llvm.123``, and a
    livepatch is a module of its own that has ext4's functions (taint K: kernel/livepatch/core.c).
    """
    if caller.symbol.partition(".")[0] not in INODE_FREERS:
        return False
    return caller.module in ("", "ext4") or "K" in caller.taints


def is_tracer(caller: Frame) -> bool:
    """Whether a tracer stands between the function and its caller."""
    return bool(TRACERS.fullmatch(caller.symbol))


def behind_tracer(frames: Sequence[Frame]) -> Frame | None:
    """Who called kmem_cache_free, by its stack (``resolve``), where a tracer hides it in the return
    address; None where the stack does not tell.
    """
    for f in frames:
        if not f.symbol:
            return None
        if not is_tracer(f) and not f.symbol.startswith("kmem_cache_free"):
            return f
    return None


def own_frames(frames: Sequence[Frame]) -> tuple[Frame, ...]:
    """Only what was called by the step itself: an interrupted task's frames are not its doing."""
    for index, f in enumerate(frames):
        if SOFTIRQ_ENTRY.fullmatch(f.symbol):
            return tuple(frames[:index])
    return tuple(frames)
