"""The daemon: the only module that knows all the others.

One thread, this loop, reads the ring, judges, and tells journal and kernel log; now and then it
looks after canary, losses and governor.  What may wait has a thread of its own: web server and
password hashing, the state directory, actions, canaries (at most four), and the log.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from pathlib import Path

from ebpfwatch import config
from ebpfwatch.actions import Actions
from ebpfwatch.catalogue.verdicts import Kind
from ebpfwatch.daemon import start
from ebpfwatch.daemon.arming import Arming
from ebpfwatch.daemon.boot_record import BootWatch
from ebpfwatch.daemon.delivery import Delivery
from ebpfwatch.daemon.governor import Governing
from ebpfwatch.daemon.intake import Intake
from ebpfwatch.daemon.judging import Judging
from ebpfwatch.daemon.liveness import Liveness
from ebpfwatch.daemon.mending import Mending
from ebpfwatch.daemon.precursors import Precursors
from ebpfwatch.daemon.reclaim import ReclaimWatch
from ebpfwatch.daemon.reload import read_again
from ebpfwatch.daemon.snapshot import Snapshots
from ebpfwatch.daemon.surroundings import Surroundings
from ebpfwatch.daemon.this_boot import ThisBoot
from ebpfwatch.host import memory
from ebpfwatch.host.sources import Sources
from ebpfwatch.host.state import HostReader
from ebpfwatch.kernel import tracebuffer
from ebpfwatch.kernel.pending import Pending
from ebpfwatch.kernel.session import load
from ebpfwatch.kernel.state import TableFill
from ebpfwatch.kernel.symbols import Symbols
from ebpfwatch.paths import Paths
from ebpfwatch.postmortem.last_boot import kernel_boot_id
from ebpfwatch.sinks import statusfile, summary
from ebpfwatch.sinks.status import Status, WebState
from ebpfwatch.system import log
from ebpfwatch.system.lock import Lock
from ebpfwatch.system.log import say
from ebpfwatch.system.notify import notify
from ebpfwatch.system.signals import Signals
from ebpfwatch.verdicts.finding import Finding

__all__ = ["Daemon"]

_TICK_SECONDS = 5.0
_SCAN_SECONDS = 60.0
_STOP_SECONDS = 5.0  # with the next below the unit's TimeoutStopSec
_LOG_SECONDS = 2.0


class Daemon:
    """Owns everything; ``run`` returns when a signal says so."""

    def __init__(self, settings: config.Config, config_path: str, paths: Paths) -> None:
        self._config = settings
        self._started_with = settings
        self._config_path = config_path
        self._paths = paths
        self._started = time.time()
        self._began = time.monotonic()
        self._symbols = Symbols(paths.proc / "kallsyms")
        self._sources = Sources()
        self._host = HostReader(paths, self._sources)
        self._surroundings = Surroundings(paths, self._sources, self._host)
        self._config_up_to_date = True
        self._fill = TableFill()
        self._snapshots = Snapshots(self._take_snapshot)

    def run(self, lock: Lock, loader: Pending) -> None:
        """Load, say what was loaded, then follow the kernel; raises ``EbpfwatchError``.

        ``lock`` is held, ``loader`` was asked already.
        """
        self._signals = Signals(
            *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
        )
        # Everything that can fail is tried before anything is attached.
        boot_id = self._sources.read("boot_id", lambda: kernel_boot_id(self._paths), "")
        self._this_boot = ThisBoot(Path(self._config.state_directory), boot_id)
        self._delivery = Delivery(self._config, self._paths, self._this_boot.not_kept)
        self._actions = Actions(self._config, self._paths)
        self._web = start.bind(self._config)
        pending = loader.go()
        # While the child loads:
        self._delivery.connect()
        self._precursors = Precursors(self._paths, self._surroundings.recorder, self._this_boot)
        self._this_boot.look_back(self._precursors.watcher.own)
        self._delivery.look_back(self._this_boot.boot_id)
        self._precursors.look_back()
        self._symbols.load()
        if not pending.wait(lambda: self._signals.stop):
            lock.release()
            say("stopped before the probes were loaded")
            return
        self._session = load(pending)
        self._armed = self._session.loaded.dump.changed
        try:
            # Before it is ready: descriptors may run out the moment after.
            selector = selectors.DefaultSelector()
            selector.register(self._session.fd, selectors.EVENT_READ)
            selector.register(self._signals.fd, selectors.EVENT_READ)
            self._begin(lock)
            self._follow(selector)
            self._delivery.disk.submit(self._this_boot.try_save)
            self._delivery.disk.submit(lambda: self._boot.remember(clean=True))
        finally:
            notify("STOPPING=1")
            if self._armed:
                tracebuffer.restore(self._paths.proc / tracebuffer.SYSCTL)
            self._session.close()
            if not self._delivery.disk.finish(_STOP_SECONDS):
                say("the disk does not answer: what is not on it is in the journal", "err")
            statusfile.remove(self._paths.run)
            lock.release()
            say("stopped; the probes are unloaded")
            log.settle(_LOG_SECONDS)

    def _begin(self, lock: Lock) -> None:
        session, settings, recorder = self._session, self._config, self._surroundings.recorder
        page = start.test_page(session)
        home = os.path.realpath(settings.state_directory)
        self._liveness = Liveness(session.loaded.hooks, self._paths, self._sources, recorder, home)
        self._judging = Judging(
            settings,
            session,
            self._symbols,
            self._liveness,
            self._delivery,
            self._surroundings,
            self._actions,
            page,
            self._this_boot,
        )
        self._governing = Governing(
            session, settings.governor.cpu_percent, self._judging.configure, self._liveness
        )
        self._reclaim = ReclaimWatch(self._paths, self._sources, self._liveness, recorder)
        self._mending = Mending(session)
        minutes, configure = settings.contracts.armed_minutes, self._judging.configure
        self._arming = Arming(session, minutes, self._liveness, configure)
        self._judging.reduced = lambda: (*self._governing.doubts, *self._arming.doubts)
        self._intake = Intake(session, self._liveness, self._judging, self._told)
        directory = Path(settings.state_directory)
        self._boot = BootWatch(
            directory, self._paths, self._symbols, self._started, page, self._armed
        )
        self._judging.configure()
        needs = (*session.mending_needs, *self._arming.needs)
        kept = start.give_up(session, settings, self._judging.configure, needs)
        self._actions.start()
        url = "off"
        if self._web is not None:
            from ebpfwatch.sinks import metrics

            status = self._snapshots.status
            registry = metrics.registry(status, self._paths.proc, settings.metrics.host)
            self._web.start(registry, status, self._delivery.recent)
            url = self._web.url
        lock.publish(start.running(session, settings, url, self._delivery.journal.connected))
        self._boot.look_back(self._sources)
        self._this_boot.last_boot_ended(self._boot.last)
        self._armed = self._boot.armed
        no_log = self._precursors.watcher.missing
        self._judging.kernel_log_followed = not no_log
        start.introduce(session, settings, self._delivery, kept, url, no_log)
        say(f"ready after {time.monotonic() - self._began:.1f} s; following the kernel")
        self._liveness.start_proofs()
        start.tidy()
        notify(f"READY=1\nSTATUS={self._status_line()}")

    # -- the loop

    def _follow(self, selector: selectors.BaseSelector) -> None:
        next_tick = time.monotonic()
        next_scan = next_tick + _TICK_SECONDS  # soon: until then the metrics show an empty table
        next_canary = self._after_canary(next_tick)
        while not self._signals.stop:
            now = time.monotonic()
            pending = self._liveness.proof_pending
            timeout = min(next_tick, now + 0.5 if pending else next_tick) - now
            self._precursors.poll(selector)
            for key, _ in selector.select(max(0.0, timeout)):
                if key.fd == self._signals.fd:
                    self._signals.drain()
            if self._signals.take(signal.SIGUSR1):
                self._intake.take_selftest(self._paths)
            self._intake.drain()
            self._precursors.drain()
            asked = self._signals.take(signal.SIGUSR2)
            self._arming.arm_if(self._precursors.take_reason(), asked)
            silent = self._liveness.silent
            self._liveness.judge(self._config.canary.timeout_seconds)
            now = time.monotonic()
            if self._liveness.silent > silent:
                next_canary = min(next_canary, self._after_canary(now))
            if self._signals.take(signal.SIGHUP):
                self._read_config_again()
                next_canary = min(next_canary, self._after_canary(now))
            if now >= next_tick:
                next_tick = now + _TICK_SECONDS
                self._tick()
            if now >= next_scan:
                next_scan = now + _SCAN_SECONDS
                self._fill = self._sources.read("table", self._session.scan, self._fill)
            if now >= next_canary or self._liveness.wanted:
                self._liveness.start_proofs()
                next_canary = self._after_canary(now)
        selector.close()
        self._snapshots.freeze(self._started)

    def _after_canary(self, now: float) -> float:
        return now + self._liveness.again(self._config.canary.interval_seconds)

    def _told(self, finding: Finding) -> None:
        if finding.verdict.kind is Kind.CAUSE and not finding.test:
            self._precursors.broken_rule(finding)
            self._arming.arm(f"of the finding {finding.id} ({finding.verdict.value})")
        self._snapshots.outdate()
        self._delivery.disk.submit(self._this_boot.try_save)

    def _tick(self) -> None:
        self._delivery.disk.tend()
        self._mending.look()
        self._judging.record_losses()
        counters = self._session.counters()
        self._reclaim.look(counters, self._config.reclaim)
        self._governing.look(counters, armed=bool(self._arming.on))
        self._arming.look(self._governing.over_budget)
        self._surroundings.look(counters)
        self._precursors.judge(
            self._host.state().zones,
            self._reclaim.last,
            self._config.reclaim.notice_seconds,
            self._delivery.journal,
        )
        if self._this_boot.changed:  # repetitions, messages of the kernel
            self._delivery.disk.submit(self._this_boot.try_save)
        if self._this_boot.look_for_acknowledgements():
            self._snapshots.outdate()
        # Now, so that a verdict need not wait for it, and a module that leaves has been seen.
        if self._symbols.refresh():
            self._delivery.disk.submit(self._boot.remember)
        notify(f"WATCHDOG=1\nSTATUS={self._status_line()}")
        self._delivery.look()
        url = self._web.url if self._web else "off"
        self._snapshots.write(self._paths.run, url, self._config.state_directory)

    def _read_config_again(self) -> None:
        new = read_again(self._config_path, self._config, self._started_with)
        self._config_up_to_date = new is not None
        self._config = new = new or self._config
        self._governing.set_budget(new.governor.cpu_percent)
        self._judging.folder.fold_seconds = new.findings.fold_seconds
        self._judging.folder.per_minute = new.findings.per_minute
        self._delivery.store.keep = new.findings.keep
        notify("READY=1")

    def _take_snapshot(self) -> Status:
        kernel = self._session.state(self._fill)
        ours = {
            "decode": self._intake.errors,
            "kernel_log": self._precursors.watcher.lost,
            "rate": self._judging.folder.limited,
        }
        return Status(
            self._started,
            ready=True,
            kernel=kernel,
            losses={**kernel.losses, **ours},
            proofs=self._liveness.state(),
            governed=self._governing.state(),
            armed=self._arming.state(),
            boot=self._this_boot.state(),
            early_warning=self._precursors.active,
            sink_errors=self._delivery.errors,
            sink_problems=self._delivery.problems,
            actions=dict(self._actions.counts),
            collector_errors=dict(self._sources.errors),
            host=self._host.state(),
            rss_bytes=self._sources.read("memory", lambda: memory.own_rss(self._paths), 0),
            web=self._web.state() if self._web else WebState(),
            config_up_to_date=self._config_up_to_date,
        )

    def _status_line(self) -> str:
        return summary.line(self._liveness.state(), self._this_boot.state())
