"""What the counts of one module's calls say: does it give back what it takes?

A reference that the module took before the watch explains one return too many of an object, and no
more; a reference that it still has may be given back later.  What was not counted is said, and then
that kind is not judged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from ebpfwatch.balance.calls import FUNCTIONS, KINDS, Module, Site

__all__ = ["Counts", "Held", "Judgement", "SiteCounts", "judge", "lines"]

#: So many references more than at the beginning, and fewer are nothing to speak of.
_MORE = 10


@dataclasses.dataclass(frozen=True)
class SiteCounts:
    """Of one site; see struct counts of probes/balance.c. ``where`` is its name in the kernel."""

    site: Site
    where: str
    calls: int = 0
    nothing: int = 0
    beyond: int = 0
    again: int = 0
    lost: int = 0


@dataclasses.dataclass(frozen=True)
class Held:
    """An object that has been taken more often than given back: where last, and how long ago."""

    site: int
    more: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Counts:
    """Everything that was counted.

    ``unwatched`` are sites that could not be watched, with the reason; ``missed`` are runs that the
    kernel skipped.
    """

    module: Module
    sites: tuple[SiteCounts, ...]
    held: tuple[Held, ...] = ()
    unwatched: tuple[tuple[Site, str], ...] = ()
    missed: int = 0


@dataclasses.dataclass(frozen=True)
class Judgement:
    """Of one kind of object.

    ``verdict``: "adds up", "too many given back", "not given back", "not judged", "not used".
    """

    kind: str
    verdict: str
    taken: int
    given: int
    says: tuple[str, ...]

    @property
    def bad(self) -> bool:
        """Whether something does not add up."""
        return self.verdict in ("too many given back", "not given back")


def judge(counts: Counts) -> tuple[Judgement, ...]:
    """One judgement a kind."""
    return tuple(_judge(counts, kind) for kind in KINDS)


def _judge(counts: Counts, kind: str) -> Judgement:
    sites = [one for one in counts.sites if one.site.call.kind == kind]
    taken = sum(one.calls for one in sites if one.site.call.sign > 0)
    given = sum(one.calls for one in sites if one.site.call.sign < 0)
    doubts = tuple(_doubts(counts, kind, sites))
    if not sites and not doubts:
        return Judgement(kind, "not used", 0, 0, ())
    if doubts:
        return Judgement(kind, "not judged", taken, given, doubts)
    wrong = [one for one in sites if one.again]
    if wrong and kind != "file":
        says = [
            f"{one.beyond} of {one.calls} calls of {one.site.function} at {one.where} gave back"
            " a reference that the module had not taken"
            for one in wrong
        ]
        says.append("a reference taken before the watch would explain one for each object")
        return Judgement(kind, "too many given back", taken, given, tuple(says))
    if taken - given >= _MORE:
        return Judgement(kind, "not given back", taken, given, tuple(_held(counts, kind)))
    says = []
    beyond = sum(one.beyond for one in sites)
    if beyond:
        why = "get_file() leaves no call" if kind == "file" else "taken before the watch, perhaps"
        says.append(f"{beyond} were given back that were not seen taken ({why})")
    return Judgement(kind, "adds up", taken, given, tuple(says))


def _doubts(counts: Counts, kind: str, sites: Sequence[SiteCounts]) -> Iterator[str]:
    """Why this kind is not judged."""
    pointers = [name for name in counts.module.by_pointer if _kind(name) == kind]
    if pointers:
        yield f"the module uses the address of {', '.join(pointers)}: a call by it is not seen"
    uncounted = counts.module.uncounted.get(kind, ())
    if uncounted:
        yield f"the module also calls {', '.join(uncounted)}, which is not counted"
    missing = [(site, why) for site, why in counts.unwatched if site.call.kind == kind]
    if missing:
        yield f"{len(missing)} of its calls could not be watched: {missing[0][1]}"
    lost = sum(one.lost for one in sites)
    if lost:
        yield f"{lost} calls could not be counted: too many objects, or a result that was not seen"
    if counts.missed and sites:
        yield f"the kernel skipped {counts.missed} runs of the programs"


def _kind(function: str) -> str:
    return FUNCTIONS[function].kind


def _held(counts: Counts, kind: str) -> Iterator[str]:
    for number, one in enumerate(counts.sites):
        if one.site.call.kind != kind or one.site.call.sign < 0:
            continue
        held = [object_ for object_ in counts.held if object_.site == number]
        if held:
            more, oldest = sum(one.more for one in held), max(one.seconds for one in held)
            yield (
                f"{more} references of {len(held)} objects, last taken by {one.site.function} at"
                f" {one.where}, were not given back; the oldest is {oldest:.1f} s old"
            )
    yield "the module may still give them back"


def lines(counts: Counts, judgements: Iterable[Judgement]) -> Iterator[str]:
    """For people: a table of the sites, and a verdict a kind."""
    for judgement in judgements:
        kind = judgement.kind
        if judgement.verdict == "not used":
            continue
        yield ""
        yield f"{kind}: {judgement.verdict}: {judgement.taken} taken, {judgement.given} given back"
        yield from (f"  - {text}" for text in judgement.says)
        for one in counts.sites:
            if one.site.call.kind == kind:
                sign = "+" if one.site.call.sign > 0 else "-"
                more = f", {one.nothing} of NULL or failed" if one.nothing else ""
                more += f", {one.beyond} beyond what was taken" if one.beyond else ""
                tail = " (tail call)" if one.site.tail else ""
                yield f"  {sign}{one.calls:<9} {one.site.function:16} {one.where}{tail}{more}"
