"""Which rung each role takes here: the ladder, tried rung by rung, under the configured wishes.

Runs in the loader child.  A wish (``hooks.rungs``) that the kernel cannot grant is an error, never
a silent step down.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from ebpfwatch.catalogue.ladder import NONE, SHARED, SHARED_FREE, Rung, Unit, Wish, wishes
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.loader.btf import Btf, BtfError
from ebpfwatch.loader.prober import Prober

__all__ = ["Choice", "Chooser", "configure", "insist"]


@dataclasses.dataclass
class Choice:
    """What became of one role: the rung it got (or None), why no better one, and at what price."""

    role: str
    rung: Rung | None
    name: str
    reason: str


class Chooser:
    """Climbs down each role's ladder until a rung holds; ``rungs`` is the text of hooks.rungs."""

    def __init__(self, prober: Prober, btf: Btf | None, rungs: str) -> None:
        self._prober = prober
        self._btf = btf
        self.rungs = rungs
        self._wishes = wishes(rungs)

    def choose(self, role: str, rungs: tuple[Rung, ...]) -> Choice:
        """The best rung that holds; raises ``EbpfwatchError`` if a wished one does not."""
        wish = self._wishes.get(role)
        refused: list[tuple[Rung, str]] = []
        for rung in rungs:
            why_not = self._why_not(rung, wish)
            if not why_not:
                price = f"it {rung.note}" if rung.note else ""
                reason = "; ".join(filter(None, (_words(refused), price)))
                return Choice(role, rung, rung.name, reason)
            refused.append((rung, why_not))
        if wish is not None and wish.kind != NONE:
            wished = [pair for pair in refused if wish.grants(pair[0])]
            raise EbpfwatchError(
                f"hooks.rungs wishes {role}={wish}, and it does not hold here: {_words(wished)}",
                "see `ebpfwatch check`",
                Exit.UNAVAILABLE,
            )
        return Choice(role, None, "", _words(refused))

    def below(self, rung: Rung, rungs: tuple[Rung, ...]) -> Rung | None:
        """The next of a role's rungs that holds, whatever was wished; None if there is none.

        Never one with a note: what costs so much that it has one is for the configuration to take.
        """
        later = rungs[rungs.index(rung) + 1 :]
        holding = (one for one in later if not one.note and not self._why_not(one, None))
        return next(holding, None)

    def learning_rung(self, choice: Choice, rungs: tuple[Rung, ...]) -> Rung | None:
        """The rung to learn on for a moment at start: the one that was taken, else, where none was
        wished, the first that holds.
        """
        if choice.rung is not None:
            return choice.rung
        return next((rung for rung in rungs if not self._why_not(rung, None)), None)

    def _why_not(self, rung: Rung, wish: Wish | None) -> str:
        if wish is not None and not wish.grants(rung):
            return "not wished by hooks.rungs"
        return self._prober.why_not(rung) or self._why_no_cache(rung)

    def _why_no_cache(self, rung: Rung) -> str:
        tracepoint, _ = rung.cache_argument
        if not tracepoint or self._cache_index(rung) is not None:
            return ""
        if self._btf is None:
            return "without BTF nobody knows the arguments of this tracepoint"
        return "this tracepoint does not carry the cache on this kernel"

    def _cache_index(self, rung: Rung) -> int | None:
        if self._btf is None:
            return None
        try:
            arguments = self._btf.raw_tracepoint_arguments(rung.cache_argument[0])
            return arguments.index("kmem_cache")
        except (BtfError, ValueError):
            return None

    def defines(self, rung: Rung) -> list[str]:
        """The compiler's flags that select a rung's code."""
        flags = [f"-D{define}" for define in rung.defines]
        if rung.cache_argument[0]:
            flags.append(f"-D{rung.cache_argument[1]}={self._cache_index(rung)}")
        return flags


def _words(refused: list[tuple[Rung, str]]) -> str:
    """One clause for neighbours of one kind that failed for one reason."""
    groups = itertools.groupby(refused, lambda pair: (pair[0].kind, pair[1]))
    return "; ".join(
        f"{kind} {', '.join(rung.attachments[0].target for rung, _ in pairs)}: {why_not}"
        for (kind, why_not), pairs in groups
    )


def insist(unit: Unit, choices: list[Choice], why_no_btf: str) -> None:
    """Raise unless the roles that nothing works without have a rung."""
    by_role = {choice.role: choice for choice in choices}
    needed = [by_role[role] for role in unit.required if by_role[role].rung is None]
    if "rcu_free" in by_role and by_role["rcu_free"].rung is None:
        needed.append(by_role["rcu_free"])
    for choice in needed:
        raise EbpfwatchError(
            f"no way to hook {choice.role} on this kernel: {choice.reason}"
            + (f"; {why_no_btf}" if why_no_btf else ""),
            "see `ebpfwatch check`; Linux 4.17 or later with ext4 tracepoints is needed",
            Exit.UNAVAILABLE,
        )


def _choose_alloc(alloc: Choice, wanted: str) -> None:
    """Without it the object itself tells a new life: its i_state and i_count (probes/free.h)."""
    if wanted == "never":
        alloc.rung, alloc.reason = None, "switched off: hooks.alloc is never"
    elif wanted == "auto" and alloc.rung and alloc.rung.kind == "raw_tracepoint":
        alloc.rung = None
        alloc.reason = (
            "left out: it would run on every slab allocation, and the object itself tells a new"
            " life; hooks.alloc: always takes it"
        )


def configure(choices: list[Choice], request: dict[str, Any]) -> None:
    """Apply hooks.alloc and hooks.strict; a free without a hook of its own shares the strict."""
    by_role = {choice.role: choice for choice in choices}
    if "alloc" in by_role and "alloc" not in wishes(request.get("rungs", "")):
        _choose_alloc(by_role["alloc"], request["alloc"])
    if "any_free" not in by_role:
        return
    rcu, strict = by_role["rcu_free"], by_role["any_free"]
    if rcu.rung is None and strict.rung is not None:
        rcu.rung = Rung(strict.rung.kind, (), (SHARED_FREE,))
        rcu.name = f"{strict.name} {SHARED}"
    elif not request["strict"]:
        strict.rung = None
        strict.reason = "switched off: hooks.strict is false"
