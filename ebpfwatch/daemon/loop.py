"""The daemon: the only module that knows all the others.

One loop: read the ring, judge, tell the sinks; now and then look after the canary and the losses.
Only the web server has a thread of its own, and it sees nothing but snapshots.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import gc
import os
import selectors
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from ebpfwatch import __version__, config
from ebpfwatch.actions import Actions
from ebpfwatch.catalogue.counters import LOSSES
from ebpfwatch.daemon.boot_record import BootWatch
from ebpfwatch.daemon.delivery import Delivery
from ebpfwatch.daemon.governor import Governor, HookSwitch, Load
from ebpfwatch.daemon.judging import Judging
from ebpfwatch.daemon.liveness import Liveness
from ebpfwatch.daemon.precursors import Precursors
from ebpfwatch.daemon.surroundings import Surroundings
from ebpfwatch.daemon.this_boot import ThisBoot
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.events import wire
from ebpfwatch.host import memory, mounts, vmstat
from ebpfwatch.host.sources import Sources
from ebpfwatch.host.state import HostReader
from ebpfwatch.kernel import tracebuffer
from ebpfwatch.kernel.playback import PAGE_BYTES, Playback
from ebpfwatch.kernel.protocol import LoadRequest
from ebpfwatch.kernel.session import TableFill, load, start_loader
from ebpfwatch.kernel.symbols import Symbols
from ebpfwatch.paths import Paths
from ebpfwatch.postmortem.last_boot import kernel_boot_id
from ebpfwatch.sinks import statusfile, summary
from ebpfwatch.sinks.status import HookStatus, Status
from ebpfwatch.system import privileges
from ebpfwatch.system.imports import absent, without
from ebpfwatch.system.lock import SELFTEST, Lock
from ebpfwatch.system.log import defect, say
from ebpfwatch.system.notify import notify
from ebpfwatch.verdicts.bursts import ReclaimBursts

if TYPE_CHECKING:
    from ebpfwatch.sinks.web import Web

__all__ = ["Daemon"]

_TICK_SECONDS = 5.0
_SCAN_SECONDS = 60.0
_STATUS_SECONDS = 1.0
_MEND_AGAIN_SECONDS = 60.0
_STOP_SECONDS = 5.0  # below the unit's TimeoutStopSec
_NS = 1_000_000_000


class Daemon:
    """Owns everything; ``run`` returns when a signal says so."""

    def __init__(
        self, settings: config.Config, config_path: str, paths: Paths, verbose: bool = False
    ) -> None:
        self._config = settings
        self._config_path = config_path
        self._paths = paths
        self._verbose = verbose
        self._started = time.time()
        self._began = time.monotonic()
        self._stop = False
        self._reload = False
        self._selftest = False
        self._symbols = Symbols(paths.proc / "kallsyms")
        self._sources = Sources()
        self._host = HostReader(paths, self._sources)
        self._surroundings = Surroundings(paths, self._sources, self._host)
        self._bursts = ReclaimBursts()
        self._cpu_percent = 0.0
        self._config_up_to_date = True
        self._decode_errors = 0
        self._mend_at = 0.0  # when to try again to open a CPU's buffer
        self._fill = TableFill(0, 0, 0)
        self._status_lock = threading.Lock()
        self._status: Status | None = None
        self._status_at = -float("inf")

    # -- start and stop

    def run(self) -> None:
        """Load, say what was loaded, then follow the kernel; raises ``EbpfwatchError``."""
        lock = Lock(self._paths.run)
        wakeup = self._take_signals()
        # Everything that can fail is tried before BPF is loaded: a start that fails costs nothing.
        boot_id = self._sources.read("boot_id", lambda: kernel_boot_id(self._paths), "")
        self._this_boot = ThisBoot(Path(self._config.state_directory), boot_id)
        self._delivery = Delivery(self._config, self._paths, self._this_boot.not_kept)
        self._actions = Actions(self._config, self._paths)
        self._web = self._bind()
        pending = start_loader(self._request())
        try:
            # While the child compiles:
            self._delivery.connect()
            self._precursors = Precursors(self._paths, self._surroundings.recorder, self._this_boot)
            self._this_boot.look_back(self._precursors.watcher.own)
            self._delivery.look_back(self._this_boot.boot_id)
            self._precursors.look_back()
            self._symbols.load()
        except BaseException:
            pending.abandon()
            raise
        if not pending.wait(lambda: self._stop):
            pending.abandon()
            lock.release()
            say("stopped before the probes were loaded")
            return
        self._session = load(pending)
        self._armed = self._session.loaded.dump.changed
        try:
            self._begin(lock)
            self._follow(wakeup)
            self._delivery.disk.submit(self._save_this_boot)
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

    def _bind(self) -> Web | None:
        address = config.split_address(self._config.metrics.listen)
        if address is None:
            return None
        with without("ssl"), absent("_hashlib"):
            from ebpfwatch.sinks.web import Web

        return Web(*address, self._config.metrics.web_config)

    def _request(self) -> LoadRequest:
        found = mounts.ext4_mounts(self._paths)
        if not found:
            raise EbpfwatchError(
                "no ext4 filesystem is mounted, so there is nothing to watch",
                "mount one, then start again",
                Exit.UNAVAILABLE,
            )
        return dataclasses.replace(
            config.loader_request(self._config),
            mounts=tuple(mount.path for mount in found if not mount.read_only),
            verbose=self._verbose,
        )

    def _take_signals(self) -> int:
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

        def stop(number: int, _: FrameType | None) -> None:
            self._stop = True

        def reload(number: int, _: FrameType | None) -> None:
            self._reload = True

        def selftest(number: int, _: FrameType | None) -> None:
            self._selftest = True

        signal.signal(signal.SIGUSR1, selftest)
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGHUP, reload)
        return reader

    def _begin(self, lock: Lock) -> None:
        session = self._session
        test_page = self._test_page()
        self._liveness = Liveness(
            session.loaded.hooks, self._paths, self._sources, self._surroundings.recorder
        )
        self._judging = Judging(
            self._config,
            session,
            self._symbols,
            self._liveness,
            self._delivery,
            self._surroundings,
            self._actions,
            test_page,
            self._this_boot,
        )
        self._load = Load(session.loaded.slab_free_ns)
        # Kept for the perf buffers, where there are any; elsewhere it changes nothing.
        allowed = functools.partial(privileges.raised, "sys_admin")
        self._switch = HookSwitch(session, self._judging.configure, allowed)
        self._governor = Governor(self._config.governor.cpu_percent, len(self._switch.roles))
        self._boot = BootWatch(
            Path(self._config.state_directory),
            self._paths,
            self._symbols,
            self._started,
            test_page,
            self._armed,
        )
        self._judging.configure()
        exe = ("sys_ptrace",) if self._config.evidence.exe else ()
        kept = privileges.drop(self._touch_everything, exe, dormant=session.mending_needs)
        self._actions.start()
        url = "off"
        if self._web is not None:
            from ebpfwatch.sinks import metrics

            self._web.start(
                metrics.registry(self.status, self._paths.proc, self._config.metrics.host),
                self.status,
                self._delivery.recent,
            )
            url = self._web.url
        lock.publish(
            {
                "version": __version__,
                "url": url,
                "state_directory": self._config.state_directory,
                "journal": self._delivery.journal.connected,
                "programs": {name: int(_id("prog", fd)) for name, fd in session.programs.items()},
                "maps": {name: int(_id("map", fd)) for name, fd in session.maps.items()},
                "offsets": session.loaded.offsets,
                "learned": vars(session.loaded.learned),
            }
        )
        self._boot.look_back(self._sources)
        self._this_boot.last_boot_ended(self._boot.last)
        self._armed = self._boot.armed
        self._banner(url, kept)
        self._liveness.start_proofs()
        _tidy()
        notify(f"READY=1\nSTATUS={self._status_line()}")

    def _test_page(self) -> range:
        session = self._session
        try:
            address = Playback(
                session.programs, session.maps, session.loaded.offsets, session.loaded.learned
            ).object
        except EbpfwatchError:
            return range(0)  # no BPF_PROG_TEST_RUN on this kernel, so no test object either
        return range(address, address + PAGE_BYTES)

    def _touch_everything(self) -> None:
        """Whatever later needs the kernel's permission."""
        self._session.counters()
        self._session.misses()
        self._session.scan()
        self._judging.configure()

    def _banner(self, url: str, kept: tuple[str, ...]) -> None:
        loaded = self._session.loaded
        for hook in loaded.hooks:
            better = f" ({hook.why})" if hook.why and hook.has_rung else ""
            why = f": {hook.why}" if hook.why and not hook.has_rung else ""
            say(f"hook {hook.role}: {hook.name or 'absent'}{better}{why}")
        if loaded.slab_free_ns:
            say(
                f"each free from any slab costs {loaded.slab_free_ns:.0f} ns here, the"
                " kprobe's trap; the governor counts it"
            )
        say(f"kernel memory: {self._session.memory() / 2**20:.1f} MiB")
        say(f"capabilities kept: {', '.join(kept) or 'none'}")
        why_no_exe = privileges.why_no_exe(self._config.evidence.exe, kept)
        if why_no_exe:
            say(why_no_exe, "warning")
        for missing in self._delivery.kernel_log.missing:
            say(f"findings cannot go to {missing}", "notice")
        if self._config.evidence.trace and loaded.dump.why_not:
            say(f"an oops will not print the verdicts: {loaded.dump.why_not}", "notice")
        say(f"metrics: {url}/metrics" if url != "off" else "metrics: off")
        say(f"findings: {self._delivery.store.directory}")
        say(f"ready after {time.monotonic() - self._began:.1f} s; following the kernel")

    # -- the loop

    def _follow(self, wakeup: int) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._session.fd, selectors.EVENT_READ)
        selector.register(wakeup, selectors.EVENT_READ)
        if self._precursors.watcher.fd >= 0:
            selector.register(self._precursors.watcher.fd, selectors.EVENT_READ)
        next_tick = time.monotonic()
        next_scan = next_tick + _SCAN_SECONDS
        next_canary = self._after_canary(next_tick)
        while not self._stop:
            now = time.monotonic()
            pending = self._liveness.proof_pending
            timeout = min(next_tick, now + 0.5 if pending else next_tick) - now
            for key, _ in selector.select(max(0.0, timeout)):
                if key.fd == wakeup:
                    os.read(wakeup, 4096)
            if self._selftest:
                self._selftest = False
                self._feed_selftest_record()
            self._drain()
            self._precursors.drain()
            silent = self._liveness.silent
            self._liveness.judge(self._config.canary.timeout_seconds)
            now = time.monotonic()
            if self._liveness.silent > silent:
                next_canary = min(next_canary, self._after_canary(now))
            if self._reload:
                self._reload = False
                self._read_config_again()
                next_canary = min(next_canary, self._after_canary(now))
            if now >= next_tick:
                next_tick = now + _TICK_SECONDS
                self._tick()
            if now >= next_scan:
                next_scan = now + _SCAN_SECONDS
                self._fill = self._sources.read("table", self._session.scan, self._fill)
            if now >= next_canary:
                self._liveness.start_proofs()
                next_canary = self._after_canary(now)
        selector.close()
        self._freeze()

    def _after_canary(self, now: float) -> float:
        return now + self._liveness.again(self._config.canary.interval_seconds)

    def _drain(self) -> None:
        """Read and handle what is in the ring; a flood is handled in portions."""
        self._session.consume()
        while self._session.records:
            record = self._session.records.popleft()
            try:
                self._handle(wire.decode(record))
            except Exception as error:  # a defect costs one event, never the watch
                self._decode_errors += 1
                if self._decode_errors == 1:
                    what = error if isinstance(error, wire.DecodeError) else defect(error)
                    say(f"cannot handle an event: {what}; later ones are only counted", "err")

    def _handle(self, event: wire.Event) -> None:
        if isinstance(event, wire.StepEvent):
            self._liveness.feed(event)
        elif isinstance(event, wire.VerdictEvent) and self._judging.handle(event):
            self._status_at = -float("inf")  # the next scrape shows it
            self._delivery.disk.submit(self._save_this_boot)

    def _feed_selftest_record(self) -> None:
        """`ebpfwatch selftest` where programs cannot be run by hand: a record through our sinks."""
        try:
            ino, generation = map(int, (self._paths.run / SELFTEST).read_text().split())
        except (OSError, ValueError):
            return
        self._session.records.append(self._judging.selftest_record(ino, generation))

    def _tick(self) -> None:
        self._mend()
        self._judging.record_losses()
        counters = self._session.counters()
        self._watch_reclaim(counters)
        self._govern(counters)
        self._surroundings.look(counters)
        self._precursors.judge(
            self._host.state().zones,
            self._bursts.last,
            self._config.reclaim.notice_seconds,
            self._delivery.journal,
        )
        if self._this_boot.changed:  # repetitions, messages of the kernel
            self._delivery.disk.submit(self._save_this_boot)
        if self._this_boot.look_for_acknowledgements():
            self._status_at = -float("inf")
        # Now, so that a verdict need not wait for it, and a module that leaves has been seen.
        if self._symbols.refresh():
            self._delivery.disk.submit(self._boot.remember)
        notify(f"WATCHDOG=1\nSTATUS={self._status_line()}")
        self._delivery.look()
        self._write_status()

    def _write_status(self) -> None:
        """For `ebpfwatch status`, which sees by the file's age that we hang."""
        url = self._web.url if self._web else "off"
        body = summary.to_json(self.status(), url, self._config.state_directory)
        with contextlib.suppress(OSError):
            statusfile.write(self._paths.run, body)

    def _save_this_boot(self) -> None:
        """On the disk's worker; what fails there is tried again at the next tick."""
        with contextlib.suppress(OSError):
            self._this_boot.save()

    def _mend(self) -> None:
        now = time.monotonic()
        if not self._session.mending_needs or now < self._mend_at:
            return
        try:
            with privileges.raised("sys_admin"):
                count = self._session.mend()
        except OSError as error:
            if not self._mend_at:
                say(f"{error.strerror}: what is said there is lost, and counted as submit", "err")
            self._mend_at = now + _MEND_AGAIN_SECONDS
        else:
            self._mend_at = 0.0
            if count:
                say(f"{count} CPU(s) lost their buffer (offline?): it is open again", "notice")

    def _watch_reclaim(self, counters: dict[str, int]) -> None:
        nothing: dict[str, int] = {}
        vm = self._sources.read("vmstat", lambda: vmstat.read(self._paths), nothing)
        self._liveness.witness_reclaim(counters["shrink_start"], vm.get("slabs_scanned", 0))
        now_ns = time.monotonic_ns()
        settings = self._config.reclaim
        line = self._bursts.feed(counters["evict_in_reclaim"], now_ns / _NS, settings.burst_inodes)
        if line:
            self._surroundings.recorder.note(now_ns, line)
            if self._bursts.notice_due(now_ns / _NS, settings.notice_seconds):
                say(line, "notice")

    def _govern(self, counters: dict[str, int]) -> None:
        now, run_ns = time.monotonic(), self._session.run_ns()
        self._cpu_percent = self._load.feed(now, time.thread_time(), counters, run_ns)
        step = self._governor.feed(self._cpu_percent)
        for role in self._switch.go(step, self._cpu_percent):
            is_off = role in self._switch.off
            (self._liveness.off if is_off else self._liveness.on)(role)
        self._judging.reduced = self._switch.doubts

    # -- configuration

    def _read_config_again(self) -> None:
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            new = config.load(self._config_path)
        except EbpfwatchError as error:
            say(f"keeping the old configuration: {error}", "err")
            self._config_up_to_date = False
        else:
            self._config_up_to_date = True
            for key in config.restart_needed(self._config, new):
                say(f"{key} has changed and takes effect at the next restart", "warning")
            self._config = new
            self._governor.budget = new.governor.cpu_percent
            self._judging.folder.fold_seconds = new.findings.fold_seconds
            self._judging.folder.per_minute = new.findings.per_minute
            self._delivery.store.keep = new.findings.keep
            say(f"read {self._config_path} again")
        notify("READY=1")

    # -- the snapshot

    def status(self) -> Status:
        """The state of everything, at most a second old; safe from any thread."""
        with self._status_lock:
            now = time.monotonic()
            if self._status is None or now - self._status_at >= _STATUS_SECONDS:
                self._status = self._snapshot()
                self._status_at = now
            return self._status

    def _freeze(self) -> None:
        """From here on what was: a scrape must not read fds that are about to be closed."""
        with self._status_lock:
            status = self._status or Status(self._started)
            self._status = dataclasses.replace(status, ready=False)
            self._status_at = float("inf")

    def _snapshot(self) -> Status:
        session = self._session
        counters = session.counters()
        grace_ns = counters.pop("grace_ns")
        counters.pop("verdict")
        trapped = counters.pop("slab_free")
        misses = self._judging.misses()
        losses = {name: counters.pop(name) for name in LOSSES if name in counters}
        losses.update(
            recursion=sum(session.misses().values()),
            decode=self._decode_errors,
            queue=session.dropped,
            kernel_log=self._precursors.watcher.lost,
            rate=self._judging.folder.limited,
        )
        oldest = self._fill.oldest_ns
        return Status(
            started=self._started,
            hooks=tuple(
                HookStatus(
                    hook.role,
                    hook.name,
                    hook.why,
                    self._liveness.alive.get(hook.role),
                    misses.get(hook.role, 0),
                    hook.role in self._switch.off,
                )
                for hook in session.loaded.hooks
            ),
            counters=counters,
            losses=losses,
            grace_log2=session.grace(),
            grace_sum_ns=grace_ns,
            findings=self._this_boot.counts,
            findings_open=self._this_boot.open,
            finding_ages=self._this_boot.ages(time.monotonic_ns()),
            sink_errors=self._delivery.errors,
            sink_problems=self._delivery.problems,
            actions=dict(self._actions.counts),
            collector_errors=dict(self._sources.errors),
            host=self._host.state(),
            table_slots=session.table_slots,
            table_dying=self._fill.dying,
            table_dead=self._fill.dead,
            horizon_seconds=(time.monotonic_ns() - oldest) / _NS if oldest else 0.0,
            kernel_memory_bytes=session.memory(),
            rss_bytes=self._sources.read("memory", lambda: memory.own_rss(self._paths), 0),
            canary_success=dict(self._liveness.success),
            last_boot=self._this_boot.last_boot,
            last_boot_age=(time.monotonic_ns() - self._this_boot.last_boot_ns) / _NS,
            governor_step=len(self._switch.off),
            watcher_cpu_percent=self._cpu_percent,
            trapped_frees=trapped,
            kernel_log={k: c.number for k, c in list(self._this_boot.kernel_log.items())},
            kernel_log_ages=self._this_boot.kernel_log_ages(time.monotonic_ns()),
            early_warning=self._precursors.active,
            web_exposed=self._web.exposed if self._web else "",
            web_up_to_date=self._web.up_to_date if self._web else True,
            config_up_to_date=self._config_up_to_date,
            certificate_expires=self._web.certificate_expires if self._web else 0.0,
            ready=True,
        )

    def _status_line(self) -> str:
        alive = self._liveness.alive
        proven = sum(1 for state in alive.values() if state)
        found = sum(self._this_boot.open.values())
        return (
            f"{proven} of {len(alive)} hooks proven alive;"
            f" {found} findings of this boot not acknowledged"
        )


def _tidy() -> None:
    """Give back what only the start needed: half a megabyte; and never look at the rest again."""
    gc.collect()
    gc.freeze()
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _id(kind: str, fd: int) -> int:
    from ebpfwatch.kernel import libbpf

    return int(libbpf.prog_info(fd).id if kind == "prog" else libbpf.map_info(fd).id)
