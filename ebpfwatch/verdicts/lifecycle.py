"""The life of an inode object as a table: what each step does in each state.

The state machine itself runs in the kernel (probes/); this is the same table for people, for the
canary and for the model-based test that drives both through the same histories and compares.

``ABSENT`` means alive (or never seen): only dying and dead objects are remembered.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from ebpfwatch.catalogue.layout import State
from ebpfwatch.catalogue.verdicts import Verdict

__all__ = ["TRANSITIONS", "Outcome", "Step", "Witness", "step"]


class Step(enum.Enum):
    """What can happen to an object."""

    ALLOC = "alloc"
    EVICT = "evict"
    DESTROY = "destroy"
    FREE = "free"


class Witness(enum.Enum):
    """What the object says of itself (probes/inode.h): its i_state, and its superblock's list."""

    DEAD = "dead"  #: I_CLEAR: this life was evicted
    ALIVE = "alive"  #: on its superblock's list: never evicted
    UNBORN = "unborn"  #: neither: a lost race in iget_locked(), destroyed without ever living
    REUSED = "reused"  #: its link to that list is none: the memory is no inode any more


class Outcome(NamedTuple):
    """The next state, the verdict if this should not have happened, and what was counted."""

    state: State
    verdict: Verdict | None = None
    counted: str = ""


_A, _E, _Q, _F = State.ABSENT, State.EVICTING, State.QUEUED, State.FREED

#: (state, step) where the object's witness does not matter.
TRANSITIONS: dict[tuple[State, Step], Outcome] = {
    (_A, Step.ALLOC): Outcome(_A),
    (_E, Step.ALLOC): Outcome(_A, counted="free_missed"),
    (_Q, Step.ALLOC): Outcome(_A, counted="free_missed"),
    (_F, Step.ALLOC): Outcome(_A, counted="alloc"),
    (_A, Step.EVICT): Outcome(_E, counted="evict"),
    (_E, Step.EVICT): Outcome(_E, Verdict.DOUBLE_EVICT, "evict"),
    (_Q, Step.EVICT): Outcome(_E, Verdict.DOUBLE_EVICT, "evict"),
    (_F, Step.EVICT): Outcome(_E, Verdict.DOUBLE_EVICT, "evict"),
    (_E, Step.DESTROY): Outcome(_Q, counted="destroy"),
    (_Q, Step.DESTROY): Outcome(_Q, Verdict.DOUBLE_DESTROY, "destroy"),
    (_F, Step.DESTROY): Outcome(_F, Verdict.DOUBLE_DESTROY, "destroy"),
    (_E, Step.FREE): Outcome(_F, counted="free"),
    (_Q, Step.FREE): Outcome(_F, counted="free"),
}

#: (state, step, witness) where only the object knows.
TESTIFIED: dict[tuple[State, Step, Witness], Outcome] = {
    (_A, Step.DESTROY, Witness.DEAD): Outcome(_A, counted="destroy"),
    (_A, Step.DESTROY, Witness.UNBORN): Outcome(_A, counted="destroy"),
    (_A, Step.DESTROY, Witness.ALIVE): Outcome(_A, Verdict.FREE_WHILE_ALIVE, "destroy"),
    (_A, Step.DESTROY, Witness.REUSED): Outcome(_A, counted="destroy"),
    (_A, Step.FREE, Witness.DEAD): Outcome(_F, counted="free_unmatched"),
    (_A, Step.FREE, Witness.UNBORN): Outcome(_F, counted="free_aborted"),
    (_A, Step.FREE, Witness.ALIVE): Outcome(_F, Verdict.FREE_WHILE_ALIVE),
    (_A, Step.FREE, Witness.REUSED): Outcome(_F, Verdict.DOUBLE_FREE),
    (_F, Step.FREE, Witness.DEAD): Outcome(_F, Verdict.DOUBLE_FREE),
    (_F, Step.FREE, Witness.UNBORN): Outcome(_F, Verdict.DOUBLE_FREE),
    (_F, Step.FREE, Witness.ALIVE): Outcome(_F, Verdict.FREE_WHILE_ALIVE),
    (_F, Step.FREE, Witness.REUSED): Outcome(_F, Verdict.DOUBLE_FREE),
}


def _untold(state: State, what: Step, witness: Witness) -> Outcome | None:
    """Where no hook tells of allocations: what of it only the object knows."""
    if what is Step.ALLOC:
        return Outcome(state)
    if state is State.ABSENT or witness is Witness.DEAD:
        return None
    if what is Step.EVICT:
        return Outcome(_E, counted="evict" if state is State.FREED else "free_missed")
    if what is Step.FREE and state is State.FREED and witness is Witness.UNBORN:
        return Outcome(_F, counted="free_aborted")
    if what is Step.DESTROY and state is not State.EVICTING and witness is not Witness.REUSED:
        alive = witness is Witness.ALIVE
        return Outcome(state, Verdict.FREE_WHILE_ALIVE if alive else None, "destroy")
    return None


def step(state: State, what: Step, witness: Witness, alloc_told: bool = True) -> Outcome:
    """What the step does; total over all states, steps and witnesses.

    ``alloc_told``: whether a hook tells of allocations (hooks.alloc).
    """
    untold = None if alloc_told else _untold(state, what, witness)
    if untold is not None:
        return untold
    outcome = TRANSITIONS.get((state, what))
    return TESTIFIED[state, what, witness] if outcome is None else outcome
