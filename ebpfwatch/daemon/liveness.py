"""Which hooks are proven alive: canaries on every mount, and a witness for reclaim.

"Attached" is not "firing": a role is alive once a canary's life was seen by it, silent once one
was not, and unproven before, and again after no canary could begin anywhere twice in a row.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ebpfwatch.catalogue.roles import BY_CANARY
from ebpfwatch.daemon.canary import Canary, Run
from ebpfwatch.events.wire import StepEvent
from ebpfwatch.host import mounts
from ebpfwatch.host.sources import Sources
from ebpfwatch.kernel.hook import LoadedHook
from ebpfwatch.paths import Paths
from ebpfwatch.sinks.status import Proofs
from ebpfwatch.system.log import say
from ebpfwatch.verdicts.recorder import Recorder

__all__ = ["Liveness"]

_SOON_SECONDS = 15.0
_NS = 1_000_000_000


class Liveness:
    """``alive`` by role: True, False (silent), or None (not proven yet).

    ``success`` is when a canary's whole life was last seen, by mount, in seconds since the epoch;
    0 = never.
    """

    def __init__(
        self,
        hooks: Sequence[LoadedHook],
        paths: Paths,
        sources: Sources,
        recorder: Recorder,
        home: str = "",
    ) -> None:
        """``home`` is the state directory: the canary has its file there where that is ext4."""
        roles = [hook.role for hook in hooks if hook.has_rung]
        shared_free = any(hook.role == "rcu_free" and hook.shared for hook in hooks)
        self.alive: dict[str, bool | None] = dict.fromkeys(roles)
        self.success: dict[str, float] = {}
        self._canary = Canary(frozenset(roles), shared_free, home)
        self._in_vain = self._said_in_vain = 0  # mounts that got no thread in this round, the last
        self._nameless = 0  # rounds in a row without a file that had a name
        self._round: set[str] = set()  # mounts of which it is not known whether a canary can begin
        self._silent: set[str] = set()
        self._problems: dict[str, str] = {}
        self._shrunk: tuple[int, int] = (0, 0)
        #: A hook has come that no canary was asked about yet: it need not wait for the next one.
        self.wanted = False
        self._nowhere = False  # the last time, no canary could begin on any mount
        self._killed: tuple[int, int] = (0, 0)
        self._unseen_deaths = False  # files were deleted, and no dentry was seen to die since
        self._unexplained = False  # slabs were scanned, and no shrink_slab was seen since
        self._paths = paths
        self._sources = sources
        self._recorder = recorder

    @property
    def proof_pending(self) -> bool:
        """Whether a proof is under way."""
        return self._canary.proof_pending

    @property
    def silent(self) -> int:
        """How many roles are silent that a canary could prove alive."""
        return len(self._silent & BY_CANARY)

    def off(self, role: str) -> None:
        """The role was detached on purpose: it is not silent, nobody asks it."""
        self.alive.pop(role, None)
        self._silent.discard(role)
        self._canary.roles = frozenset(self.alive)

    def on(self, role: str) -> None:
        """The role is attached again, and has to be proven again."""
        self.alive[role] = None
        self.wanted = True
        self._canary.roles = frozenset(self.alive)

    def again(self, interval_seconds: float) -> float:
        """Seconds to the next canary: few while a hook is silent, for it may be the machine's load
        and not the hook that kept the last one, or while none could begin; 0 = only at start, so
        never.
        """
        if not interval_seconds:
            return float("inf")
        # Without a directory that nobody else can open, the unlink waits for the second round.
        no_name = self._canary.open_names and self.alive.get("unlink", True) is None
        soon = self.silent or self._nowhere or no_name
        return min(interval_seconds, _SOON_SECONDS) if soon else interval_seconds

    def start_proofs(self) -> None:
        """Start a canary on every ext4 mount."""
        self.wanted = False
        none: tuple[mounts.Mount, ...] = ()
        found = self._sources.read("mounts", lambda: mounts.ext4_mounts(self._paths), none)
        # What is mounted no more must not be remembered for ever.
        self.success = {mount.path: self.success.get(mount.path, 0.0) for mount in found}
        self._problems = {path: self._problems.get(path, "") for path in self.success}
        if not self._round:
            self._canary.named = self._canary.closed = False
        # Those that answered the last time first: others may keep all threads.
        for mount in sorted(found, key=lambda m: -self.success[m.path]):
            if mount.path not in self._round:
                self._round.add(mount.path)
                doubtful = not self.success[mount.path] or bool(self._problems[mount.path])
                dev = mount.major, mount.minor
                self._canary.start_proofs(mount.path, dev, time.monotonic_ns(), doubtful)
        if not found:
            self._end_round()

    def _settle(self, run: Run) -> None:
        """It is known whether the run could begin."""
        if run.in_vain:
            self._in_vain += 1
        elif run.problem and run.problem != self._problems.get(run.mount):
            say(f"no canary on {run.problem}; hooks can only be proven on other mounts", "notice")
        if run.mount in self._problems:
            self._problems[run.mount] = run.problem
        if run.mount in self._round:
            self._round.discard(run.mount)
            if not self._round:
                self._end_round()

    def _end_round(self) -> None:
        if self._in_vain > self._said_in_vain:
            say(
                f"no canary on {self._in_vain} mounts: other file systems do not answer, and"
                " no thread is free",
                "notice",
            )
        self._said_in_vain, self._in_vain = self._in_vain, 0
        nowhere = all(self._problems.values())
        if nowhere and self._nowhere:
            self._expire()
        self._nowhere = nowhere
        self._canary.open_names = not self._canary.closed
        self._nameless = 0 if self._canary.named else self._nameless + 1
        if self._nameless > 1 and self.alive.get("unlink") and not nowhere:
            self.alive["unlink"] = None
            say("no canary can have a name: the hook unlink is no longer PROVEN alive", "warning")

    def _expire(self) -> None:
        """Nothing can be proven any more, and what was proven is no proof of now."""
        proven = [r for r, alive in self.alive.items() if alive and r in BY_CANARY]
        self.alive.update(dict.fromkeys(proven))
        if proven:
            say(
                "no canary can begin on any ext4 mount: the hooks are no longer PROVEN alive;"
                " verdicts that depend on them are weakened",
                "warning",
            )
            self._recorder.note(time.monotonic_ns(), "the hooks are no longer proven alive")

    def state(self) -> Proofs:
        """Our part of the snapshot."""
        return Proofs(dict(self.alive), dict(self.success))

    def feed(self, event: StepEvent) -> None:
        """One step of a file of ours, as the kernel saw it."""
        self._canary.feed(event)

    def judge(self, timeout_seconds: float) -> None:
        """Look at the canaries that have begun, that are complete, or whose time is up."""
        now_ns = time.monotonic_ns()
        self._canary.tend(now_ns)
        for run in self._canary.settled():
            self._settle(run)
        for run in self._canary.finished(now_ns, int(timeout_seconds * _NS)):
            self._judge(run)

    def _judge(self, run: Run) -> None:
        missing = run.missing(frozenset(self.alive))
        if not missing and run.in_order:
            self.success[run.mount] = time.time()
        elif not missing:
            say(
                f"the canary on {run.mount} saw the hooks in the wrong order: " + run.order,
                "warning",
            )
        for role in self.alive:
            if role in run.proves:
                why = f"the canary on {run.mount} was not seen by it"
                self._set(role, role not in missing, why)

    def _set(self, role: str, alive: bool, why_not: str) -> None:
        self.alive[role] = alive
        if not alive and role not in self._silent:
            self._silent.add(role)
            say(
                f"the hook {role} is SILENT: {why_not}; verdicts that depend on it are weakened",
                "err",
            )
            self._recorder.note(time.monotonic_ns(), f"the hook {role} is silent")
        elif alive and role in self._silent:
            self._silent.discard(role)
            say(f"the hook {role} is alive again", "notice")

    def witness_dentries(self, dentries: int, unlinks: int) -> None:
        """Deleted files as witnesses of the hook on dentries: each has a name that dies. Totals."""
        before_dentries, before_unlinks = self._killed
        self._killed = dentries, unlinks
        seen, deleted = dentries > before_dentries, 0 < before_unlinks < unlinks
        if "dentry" in self.alive and (seen or (deleted and self._unseen_deaths)):
            self._set("dentry", seen, "files are deleted and it sees no name die")
        self._unseen_deaths = not seen and (deleted or self._unseen_deaths)

    def witness_reclaim(self, shrink_starts: int, slabs_scanned: int) -> None:
        """The kernel's own count of scanned slabs as witness of the reclaim hook: totals.

        The two are not read at one moment: only what two looks in a row do not explain is silence.
        """
        before_starts, before_scanned = self._shrunk
        self._shrunk = shrink_starts, slabs_scanned
        seen, scanned = shrink_starts > before_starts, 0 < before_scanned < slabs_scanned
        if "reclaim" in self.alive and (seen or (scanned and self._unexplained)):
            self._set("reclaim", seen, "the kernel scans slabs and it sees nobody do so")
        self._unexplained = not seen and (scanned or self._unexplained)
