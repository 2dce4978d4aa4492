"""From a record of the kernel to a finding at the sinks: knowledge, verdict, folding, delivery."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Callable

from ebpfwatch.actions import Actions
from ebpfwatch.catalogue.layout import LifeFlag, State
from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.config import Config
from ebpfwatch.daemon.delivery import Delivery
from ebpfwatch.daemon.liveness import Liveness
from ebpfwatch.daemon.surroundings import Surroundings
from ebpfwatch.daemon.this_boot import ThisBoot
from ebpfwatch.events import wire
from ebpfwatch.host.account import account
from ebpfwatch.kernel.session import Session
from ebpfwatch.kernel.symbols import Symbols
from ebpfwatch.system.clock import ahead_ns
from ebpfwatch.system.log import say
from ebpfwatch.verdicts.correlator import Knowledge, judge, later
from ebpfwatch.verdicts.finding import Finding, Frame, Identity, Preceding
from ebpfwatch.verdicts.folding import Folder
from ebpfwatch.verdicts.losses import LossHistory
from ebpfwatch.verdicts.stacks import behind_tracer, frame, is_own_caller, is_tracer, resolve

__all__ = ["Judging"]

_SYMBOLS_SECONDS = 30.0
_TEST_OBJECT = 0xEBBF  #: no kernel object's address: the test record's

_HIDDEN = (
    "the kernel hides its addresses (kernel.kptr_restrict, or lockdown), so frames have no names"
)


class Judging:
    """Owns what a verdict needs to know; counts what it found in ``ThisBoot``."""

    def __init__(
        self,
        settings: Config,
        session: Session,
        symbols: Symbols,
        liveness: Liveness,
        delivery: Delivery,
        surroundings: Surroundings,
        actions: Actions,
        test_page: range,
        this_boot: ThisBoot,
    ) -> None:
        self._this_boot = this_boot
        #: What is not attached now, in words: governor and arming.
        self.reduced: Callable[[], tuple[str, ...]] = tuple
        self.kernel_log_followed = False
        self.folder = Folder(settings.findings.fold_seconds, settings.findings.per_minute)
        self._session = session
        self._symbols = symbols
        self._liveness = liveness
        self._delivery = delivery
        self._surroundings = surroundings
        self._actions = actions
        self._test_page = test_page
        self._losses = LossHistory()
        self._sequence = 0
        self._last_id = delivery.store.newest
        self._symbols_at = -float("inf")
        self._call_sites: tuple[int, ...] = ()
        call_site = session.loaded.learned.call_site
        if call_site:
            # Learned from the free of a file of our own: whoever freed that is ext4.
            self._call_sites = (call_site,)

    def configure(self) -> None:
        """Tell the programs who the canary is, who may free, and where the kernel's code is."""
        self._session.text = self._symbols.kernel_text
        self._session.configure(os.getpid(), self._call_sites)

    def handle(self, event: wire.VerdictEvent) -> Finding | None:
        """Judge one event; the finding that was told, None where it was counted only."""
        if self._is_own_caller(event):
            return None
        self.record_losses()
        self._refresh_symbols(event)
        self._sequence += 1
        finding = judge(event, self._knowledge(), self._sequence)
        self._last_id = later(finding.id, self._last_id)
        finding = dataclasses.replace(finding, id=self._last_id)
        limited = self.folder.limited
        write, folded = self.folder.admit(finding, time.monotonic())
        self._this_boot.found(finding, write, self.folder.limited > limited)
        if write:
            told = dataclasses.replace(
                finding,
                folded=folded,
                boot_id=self._this_boot.boot_id,
                machine=self._surroundings.recorder.before(event.ns),
                host=self._surroundings.host(),
                object_bytes=self._surroundings.object_bytes(),
                disk=self._disk(finding.identity),
            )
            self._delivery.tell(told)
            self._actions.act(told)
        self._surroundings.recorder.found(finding)
        return finding if write else None

    def _disk(self, identity: Identity) -> str:
        number = f"{identity.dev_major}:{identity.dev_minor}"
        errors = self._this_boot.disk_errors if self.kernel_log_followed else None
        return account(self._surroundings.state, number, errors)

    def selftest_record(self, ino: int, generation: int) -> bytes:
        """A record like the kernel's, for the self-test where programs cannot be run by hand."""
        return wire.selftest_record(
            _TEST_OBJECT, ino & 2**64 - 1, generation & 2**32 - 1, time.monotonic_ns()
        )

    def record_losses(self) -> None:
        """Remember what was skipped until now."""
        self._losses.record(time.monotonic_ns(), self._session.misses_by_role())

    def _is_test(self, address: int) -> bool:
        return address == _TEST_OBJECT or address in self._test_page

    def _is_own_caller(self, event: wire.VerdictEvent) -> bool:
        """A call site not known yet, but ext4's or RCU's own: learn it instead of crying wolf."""
        if event.verdict is not Verdict.FOREIGN_FREE or not event.call_site:
            return False
        if event.object in self._test_page:
            return False
        caller = self._frame(event.call_site)
        if is_tracer(caller):
            # Each legal free would be one, as long as somebody traces kmem_cache_free.
            hidden = behind_tracer(resolve(event.stack, event.call_site, self._frame))
            if hidden is not None and not is_own_caller(hidden):
                return False
        elif not is_own_caller(caller) and not self._is_canarys(event, caller):
            return False
        if event.call_site not in self._call_sites and len(self._call_sites) < 4:
            self._call_sites = (*self._call_sites, event.call_site)
            self.configure()
            say(
                "somebody traces kmem_cache_free: until that ends, frees by foreign code are not"
                " reported"
                if is_tracer(caller)
                else f"ext4 inodes are also freed from {self._symbols.name(event.call_site)}"
            )
        return True

    def _frame(self, address: int) -> Frame:
        return frame(address, self._symbols.name(address), self._symbols.taints)

    def _is_canarys(self, event: wire.VerdictEvent, caller: Frame) -> bool:
        """The first free of a file of our own, which only ext4 frees, by code of the kernel that
        goes by a name we do not know.
        """
        life = event.life
        return (
            life is not None
            and LifeFlag.CANARY in life.flags
            and life.state is not State.FREED
            and caller.module in ("", "ext4")
        )

    def _preceding(self, event: wire.VerdictEvent) -> tuple[Preceding, ...]:
        directory = (*wire.device(event.dev), event.directory_ino)
        recorder = self._surroundings.recorder
        return recorder.preceding(event.ns, event.object, directory, self._is_test(event.object))

    def _refresh_symbols(self, event: wire.VerdictEvent) -> None:
        """A module may have been loaded since; a frame without a name may be of a BPF program."""
        if self._symbols.refresh():
            return
        now = time.monotonic()
        if self._symbols.hidden or now - self._symbols_at < _SYMBOLS_SECONDS:
            return
        if all(self._symbols.name(a) for a in (*event.stack, event.call_site) if a):
            return
        self._symbols_at = now
        self._symbols.load()

    def _knowledge(self) -> Knowledge:
        return Knowledge(
            attached=frozenset(self._liveness.alive),
            alive=self._liveness.alive,
            lost=self._losses.lost,
            symbol=self._symbols.name,
            realtime_offset_ns=ahead_ns(time.CLOCK_REALTIME),
            test_object=self._is_test,
            frames=self._session.frames,
            taints=self._symbols.taints,
            earlier=self._surroundings.recorder.earlier,
            named_by=self._surroundings.recorder.named_by,
            preceding=self._preceding,
            out_of_tree=self._symbols.out_of_tree,
            process=self._surroundings.process,
            place=self._surroundings.place,
            lacks=(_HIDDEN,) if self._symbols.hidden else (),
            reduced=self.reduced(),
            unproven=self._session.loaded.unproven,
        )
