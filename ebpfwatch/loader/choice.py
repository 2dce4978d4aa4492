"""Which rung each role takes here: the ladder, tried rung by rung, under the configured wishes.

Runs in the loader child.  A wish (``hooks.rungs``) that the kernel cannot grant is an error, never
a silent step down.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from ebpfwatch.catalogue.ladder import NONE, SHARED_FREE, Rung, Unit, Wish, wishes
from ebpfwatch.catalogue.roles import ARMED, Hook
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.kernel.hook import LoadedHook
from ebpfwatch.kernel.protocol import LoadRequest
from ebpfwatch.loader.btf import Btf, BtfError
from ebpfwatch.loader.places import rung_of
from ebpfwatch.loader.prober import Prober

__all__ = ["Chooser", "configure", "insist", "object_size"]


#: Linux 5.16: "mm: emit the "free" trace report before freeing memory in kmem_cache_free()"; no
#: name and no type in the kernel tells the order.
_FREES_AFTER = 0x51000

_SLAB = Path("/sys/kernel/slab/ext4_inode_cache/object_size")


def object_size(file: Path = _SLAB) -> int:
    """Of an object of ext4's inode cache, as SLUB tells it; 0 if it does not."""
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


class Chooser:
    """Climbs down each role's ladder until a rung holds; ``rungs`` is the text of hooks.rungs."""

    def __init__(self, prober: Prober, btf: Btf | None, rungs: str) -> None:
        self._prober = prober
        self._btf = btf
        self.rungs = rungs
        self._wishes = wishes(rungs)

    def choose(self, role: str, rungs: tuple[Rung, ...]) -> LoadedHook:
        """The best rung that holds; raises ``EbpfwatchError`` if a wished one does not."""
        wish = self._wishes.get(role)
        refused: list[tuple[Rung, str]] = []
        for rung in rungs:
            why_not = self._why_not(rung, wish)
            if not why_not:
                return _on(role, rung, _words(refused))
            refused.append((rung, why_not))
        if wish is not None and wish.kind != NONE:
            wished = [pair for pair in refused if wish.grants(pair[0])]
            raise EbpfwatchError(
                f"hooks.rungs asks for {role}={wish}, which does not work here: {_words(wished)}",
                "see `ebpfwatch check`",
                Exit.UNAVAILABLE,
            )
        return LoadedHook(role, reason=_words(refused))

    def below(self, rung: Rung, rungs: tuple[Rung, ...]) -> Rung | None:
        """The next of a role's rungs that holds, whatever was wished; None if there is none.

        Never one with a note: what costs so much that it has one is for the configuration to take.
        """
        later = rungs[rungs.index(rung) + 1 :]
        holding = (one for one in later if not one.note and not self._why_not(one, None))
        return next(holding, None)

    def learning_rung(self, hook: LoadedHook, rungs: tuple[Rung, ...]) -> Rung | None:
        """The rung to learn on for a moment at start: the one that was taken, else, where none was
        wished, the first that holds.
        """
        taken = rung_of(hook, {hook.role: rungs})
        return taken or next((rung for rung in rungs if not self._why_not(rung, None)), None)

    def _why_not(self, rung: Rung, wish: Wish | None) -> str:
        if wish is not None and not wish.grants(rung):
            return "hooks.rungs asks for another way"
        return self._prober.why_not(rung) or self._why_no_cache(rung)

    def _why_no_cache(self, rung: Rung) -> str:
        tracepoint, _ = rung.cache_argument
        if not tracepoint or self._cache_index(rung, "kmem_cache") is not None:
            return ""
        if self._btf is None:
            return "without BTF nobody knows the arguments of this tracepoint"
        if not rung.cache_name or self._cache_index(rung, "char") is None:
            return "this tracepoint does not carry the cache on this kernel"
        if self._prober.version < _FREES_AFTER:
            return "this tracepoint comes after the free on this kernel"
        return (
            "" if object_size() else "the size of ext4's inode objects is not in /sys/kernel/slab"
        )

    def _cache_index(self, rung: Rung, kind: str) -> int | None:
        if self._btf is None:
            return None
        try:
            return self._btf.raw_tracepoint_arguments(rung.cache_argument[0]).index(kind)
        except (BtfError, ValueError):
            return None

    def defines(self, rung: Rung) -> list[str]:
        """The compiler's flags that select a rung's code."""
        flags = [f"-D{define}" for define in rung.defines]
        if rung.cache_argument[0]:
            index = self._cache_index(rung, "kmem_cache")
            if index is None:
                index = self._cache_index(rung, "char")
                flags += [f"-D{rung.cache_name}", f"-DCACHE_OBJECT_SIZE={object_size()}"]
            flags.append(f"-D{rung.cache_argument[1]}={index}")
        return flags

    def hook_defines(self, hook: LoadedHook, ladder: Mapping[str, tuple[Rung, ...]]) -> list[str]:
        """The same for a hook as it was chosen."""
        if hook.shared:
            return [f"-D{SHARED_FREE}"]
        rung = rung_of(hook, ladder)
        return self.defines(rung) if rung else []


def _on(role: str, rung: Rung, reason: str) -> LoadedHook:
    functions = tuple(attachment.function for attachment in rung.attachments)
    target = rung.attachments[0].target
    return LoadedHook(role, rung.kind, target, functions, reason=reason, costs=rung.note)


def _words(refused: list[tuple[Rung, str]]) -> str:
    """One clause for neighbours of one kind that failed for one reason."""
    groups = itertools.groupby(refused, lambda pair: (pair[0].kind, pair[1]))
    return "; ".join(
        f"{kind} {', '.join(rung.attachments[0].target for rung, _ in pairs)}: {why_not}"
        for (kind, why_not), pairs in groups
    )


def insist(unit: Unit, hooks: Sequence[LoadedHook], why_no_btf: str) -> None:
    """Raise unless the roles that nothing works without have a rung."""
    by_role = {hook.role: hook for hook in hooks}
    needed = [by_role[role] for role in unit.required]
    needed += [by_role[role] for role in ("rcu_free",) if role in by_role]
    for hook in needed:
        if not hook.has_rung:
            raise EbpfwatchError(
                f"no way to hook {hook.role} on this kernel: {hook.why}"
                + (f"; {why_no_btf}" if why_no_btf else ""),
                "see `ebpfwatch check`; Linux 4.18 or later with ext4 tracepoints is needed",
                Exit.UNAVAILABLE,
            )


def configure(hooks: Sequence[LoadedHook], request: LoadRequest) -> tuple[LoadedHook, ...]:
    """Apply hooks.alloc, hooks.any_free, contracts.armed; where the RCU callback has no hook of its
    own, rcu_free shares the one of any_free.
    """
    by_role = {hook.role: hook for hook in hooks}
    if "alloc" in by_role and "alloc" not in wishes(request.rungs):
        by_role["alloc"] = _choose_alloc(by_role["alloc"], request.alloc)
    if "any_free" in by_role:
        rcu, any_free = by_role["rcu_free"], by_role["any_free"]
        if not rcu.has_rung and any_free.has_rung:
            by_role["rcu_free"] = dataclasses.replace(
                any_free, role="rcu_free", shared=True, reason=rcu.reason, costs=""
            )
            if request.any_free in ("armed", "never"):
                stays = f"stays on, though hooks.any_free is {request.any_free}"
                stays += ": no other hook sees a free here"
                reason = "; ".join(filter(None, (any_free.reason, stays)))
                by_role["any_free"] = dataclasses.replace(any_free, reason=reason)
        else:
            by_role["any_free"] = _choose_any_free(any_free, request.any_free)
    for role in ARMED & by_role.keys():
        if request.armed == "never" and by_role[role].has_rung:
            by_role[role] = _left_out(by_role[role], "switched off: contracts.armed is never")
        elif request.armed == "auto":
            by_role[role] = _armed(by_role[role], "contracts.armed is auto")
    return tuple(by_role.values())


def _choose_alloc(alloc: LoadedHook, wanted: str) -> LoadedHook:
    """Without it the object itself tells a new life: its i_state and i_count (probes/free.h)."""
    if wanted == "never":
        return _left_out(alloc, "switched off: hooks.alloc is never")
    if wanted == "auto" and alloc.kind == "raw_tracepoint":
        return _left_out(
            alloc,
            "not used (normal here): it would run on every slab allocation, and the object itself"
            " tells a new life; to use it, set hooks.alloc: always",
        )
    return alloc


def _choose_any_free(any_free: LoadedHook, wanted: str) -> LoadedHook:
    """A raw tracepoint on every slab free costs a comparison, a kprobe a trap, in interrupts, too:
    on arm64 a BRK and a single step each (arch/arm64/kernel/probes/kprobes.c, 4.19).
    """
    if wanted == "never":
        return _left_out(any_free, "switched off: hooks.any_free is never")
    if wanted == "armed":
        return _armed(any_free, "hooks.any_free is armed")
    if wanted == "auto" and any_free.kind == "kprobe":
        return _armed(any_free, "it would trap at every slab free; hooks.any_free: always keeps it")
    return any_free


def _armed(hook: LoadedHook, because: str) -> LoadedHook:
    if not hook.has_rung:
        return hook
    loss = Hook(hook.role).loss
    waits = f"attached only while there is a reason ({because})"
    waits += f": until then {loss}" if loss else ""
    reason = "; ".join(filter(None, (hook.reason, waits)))
    return dataclasses.replace(hook, reason=reason, armed=True)


def _left_out(hook: LoadedHook, reason: str) -> LoadedHook:
    return LoadedHook(hook.role, reason=reason, left_out=hook.name)
