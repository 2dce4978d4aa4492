"""The daemon: the only module that knows all the others.

One loop: read the ring, judge, tell the sinks; now and then look after the canary and the losses.
Only the web server has a thread of its own, and it sees nothing but snapshots.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import selectors
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Callable, TypeVar

from ebpfwatch import __version__, config, privileges
from ebpfwatch.canary import Canary, Run
from ebpfwatch.errors import EbpfwatchError, Exit, say
from ebpfwatch.events import wire
from ebpfwatch.host import memory, mounts, vmstat, zoneinfo
from ebpfwatch.kernel import tracebuffer
from ebpfwatch.kernel.ladder import LADDER, SHARED
from ebpfwatch.kernel.session import TableFill, load, start_loader
from ebpfwatch.kernel.symbols import Symbols
from ebpfwatch.kernel.testbed import PAGE_BYTES, Testbed
from ebpfwatch.lastboot import BootRecord, ended, kernel_boot_id
from ebpfwatch.lock import SELFTEST, Lock
from ebpfwatch.notify import notify
from ebpfwatch.paths import Paths
from ebpfwatch.sinks.journal import Journal
from ebpfwatch.sinks.kmsg import KernelLog
from ebpfwatch.sinks.store import Store, read_all
from ebpfwatch.sinks.text import plain
from ebpfwatch.status import LOSSES, HookStatus, Status
from ebpfwatch.verdicts.correlator import Knowledge, judge
from ebpfwatch.verdicts.finding import Finding, Severity, Verdict
from ebpfwatch.verdicts.folding import Folder
from ebpfwatch.verdicts.losses import LossHistory
from ebpfwatch.verdicts.recorder import Recorder

__all__ = ["Daemon"]

_T = TypeVar("_T")

_TICK_SECONDS = 5.0
_SCAN_SECONDS = 60.0
_STATUS_SECONDS = 1.0
_SYMBOLS_SECONDS = 30.0
_SILENT_AGAIN_SECONDS = 15.0
_NS = 1_000_000_000
_MADE_UP = 0xEBBF  #: no kernel object's address: the made-up record's

#: Functions that may free an ext4 inode. On some kernels the callback tail-calls kmem_cache_free,
#: so the call site is in RCU itself.
_OWN_CALLERS = {
    "ext4_free_in_core_inode",
    "ext4_i_callback",
    "i_callback",
    "rcu_do_batch",
    "rcu_process_callbacks",
    "destroy_inode",
    "alloc_inode",
}


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
        self._recorder = Recorder()
        self._losses = LossHistory()
        self._folder = Folder(settings.findings.fold_seconds, settings.findings.per_minute)
        self._recent: collections.deque[Finding] = collections.deque(maxlen=10)
        self._findings: dict[tuple[str, str, bool], int] = {}
        self._alive: dict[str, bool | None] = {}
        self._silent: set[str] = set()
        self._canary_success: dict[str, float] = {}
        self._canary_problems: dict[str, str] = {}
        self._collector_errors: dict[str, int] = {}
        self._store_errors = 0
        self._decode_errors = 0
        self._sequence = 0
        self._last_boot = ""
        self._call_sites: tuple[int, ...] = ()
        self._fill = TableFill(0, 0, 0)
        self._burst_base = 0
        self._burst_noticed = -float("inf")
        self._reclaim_seen: tuple[int, int] = (0, 0)
        self._status_lock = threading.Lock()
        self._status: Status | None = None
        self._status_at = -float("inf")
        self._test_page = range(0)
        self._symbols_at = -float("inf")

    # -- start and stop

    def run(self) -> None:
        """Load, say what was loaded, then follow the kernel; raises ``EbpfwatchError``."""
        lock = Lock(self._paths.run)
        wakeup = self._take_signals()
        # Everything that can fail is tried before BPF is loaded: a start that fails costs nothing.
        self._store = Store(Path(self._config.state_directory), self._config.findings.keep)
        web = self._bind()
        pending = start_loader(self._request())
        try:
            # While the child compiles:
            self._journal = Journal(self._paths.journal_socket, self._config.journal)
            evidence = self._config.evidence
            self._kernel_log = KernelLog(
                str(self._paths.dev / "kmsg") if evidence.kmsg else "",
                str(self._paths.dev / "pmsg0") if evidence.pmsg else "",
            )
            self._symbols.load()
        except BaseException:
            pending.abandon()
            raise
        self._session = load(pending)
        try:
            self._begin(lock, web)
            self._follow(wakeup)
            self._boot.clean = True
            self._remember_boot()
        finally:
            notify("STOPPING=1")
            if self._session.dump.changed:
                tracebuffer.restore(self._paths.proc / tracebuffer.SYSCTL)
            self._session.close()
            lock.release()
        say("stopped; the probes are unloaded")

    def _bind(self) -> object | None:
        address = config.split_address(self._config.metrics.listen)
        if address is None:
            return None
        from ebpfwatch.sinks.web import Web

        return Web(*address)

    def _request(self) -> dict[str, object]:
        found = mounts.ext4_mounts(self._paths)
        if not found:
            raise EbpfwatchError(
                "no ext4 filesystem is mounted, so there is nothing to watch",
                "mount one, then start again",
                Exit.UNAVAILABLE,
            )
        return {
            "unit": "ebpfwatch.c",
            "alloc": self._config.hooks.alloc,
            "strict": self._config.hooks.strict,
            "table_slots": self._config.kernel.table_slots,
            "note_slots": self._config.kernel.note_slots,
            "ring_bytes": self._config.kernel.ring_bytes,
            "trace": self._config.evidence.trace,
            "dump_on_oops": self._config.evidence.dump_on_oops,
            "first_stacks": self._config.evidence.first_stacks,
            "mounts": [mount.path for mount in found if not mount.read_only],
            "verbose": self._verbose,
        }

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

    def _begin(self, lock: Lock, web: object | None) -> None:
        session = self._session
        if session.learned.get("call_site"):
            # Learned from the free of a file of our own: whoever freed that is ext4.
            self._call_sites = (session.learned["call_site"],)
        session.configure(os.getpid(), self._call_sites)
        self._find_test_page()
        rungs = {hook.role: hook.rung for hook in session.hooks if hook.rung}
        self._canary = Canary(frozenset(rungs), rungs.get("rcu_free", "").endswith(SHARED))
        self._alive = {hook.role: None for hook in session.hooks if hook.rung}
        kept = privileges.drop(self._touch_everything)
        url = "off"
        if web is not None:
            from ebpfwatch.sinks import metrics
            from ebpfwatch.sinks.web import Web

            assert isinstance(web, Web)
            web.start(metrics.registry(self.status), self.status, self._recent_findings)
            url = web.url
        lock.publish(
            {
                "version": __version__,
                "url": url,
                "state_directory": self._config.state_directory,
                "journal": self._journal.connected,
                "programs": {name: int(_id("prog", fd)) for name, fd in session.programs.items()},
                "maps": {name: int(_id("map", fd)) for name, fd in session.maps.items()},
                "offsets": session.offsets,
                "learned": session.learned,
            }
        )
        self._look_back()
        self._banner(url, kept)
        self._fly()
        notify(f"READY=1\nSTATUS={self._status_line()}")

    def _find_test_page(self) -> None:
        try:
            address = self._testbed().object
        except EbpfwatchError:
            return  # no BPF_PROG_TEST_RUN on this kernel, so no test object either
        self._test_page = range(address, address + PAGE_BYTES)

    def _testbed(self) -> Testbed:
        session = self._session
        return Testbed(session.programs, session.maps, session.offsets, session.learned)

    def _touch_everything(self) -> None:
        """Whatever later needs the kernel's permission."""
        self._session.counters()
        self._session.misses()
        self._session.scan()
        self._session.configure(os.getpid(), self._call_sites)

    def _banner(self, url: str, kept: tuple[str, ...]) -> None:
        for hook in self._session.hooks:
            better = f" (better ones: {hook.reason})" if hook.reason and hook.rung else ""
            why = f": {hook.reason}" if hook.reason and not hook.rung else ""
            say(f"hook {hook.role}: {hook.rung or 'absent'}{better}{why}")
        say(f"kernel memory: {self._session.memory() / 2**20:.1f} MiB")
        say(f"capabilities kept: {', '.join(kept) or 'none'}")
        for missing in self._kernel_log.missing:
            say(f"findings cannot go to {missing}", "notice")
        if self._config.evidence.trace and self._session.dump.why_not:
            say(f"an oops will not print the verdicts: {self._session.dump.why_not}", "notice")
        say(f"metrics: {url}/metrics" if url != "off" else "metrics: off")
        say(f"findings: {self._store.directory}")
        say(f"ready after {time.monotonic() - self._began:.1f} s; following the kernel")

    # -- this boot and the last one

    def _look_back(self) -> None:
        """Report how the last boot ended, then begin this boot's own record."""
        file = Path(self._config.state_directory) / "boot.json"
        boot_id = self._read("boot_id", lambda: kernel_boot_id(self._paths), "")
        before = BootRecord.read(file)
        self._boot = BootRecord(
            boot_id,
            os.uname().release,
            self._started,
            text=self._symbols.start,
            test_page=(self._test_page.start, self._test_page.stop),
        )
        if before is not None and before.boot_id != boot_id:
            report = ended(before, self._paths, self._findings_since(before.started))
            self._last_boot = report.how
            for line in report.lines:
                say(line, "notice" if report.how == "clean" else "err")
        self._remember_boot()

    def _findings_since(self, started: float) -> list[str]:
        lines: list[str] = []
        with contextlib.suppress(EbpfwatchError):
            for body in read_all(Path(self._config.state_directory)):
                if len(lines) == 5 or body.get("realtime_us", 0) < started * 1e6:
                    break
                with contextlib.suppress(KeyError, TypeError, ValueError):
                    finding = Finding.from_json(body)
                    if not finding.test:
                        lines.append(plain(f"{finding.verdict.value}: {finding.summary}"))
        return lines

    def _remember_boot(self) -> None:
        self._boot.modules = self._symbols.modules
        try:
            self._boot.write(Path(self._config.state_directory) / "boot.json")
        except OSError as error:
            say(f"cannot write boot.json for the next start: {error.strerror}", "warning")

    # -- the loop

    def _follow(self, wakeup: int) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._session.fd, selectors.EVENT_READ)
        selector.register(wakeup, selectors.EVENT_READ)
        next_tick = time.monotonic()
        next_scan = next_tick + _SCAN_SECONDS
        next_canary = self._after_canary(next_tick)
        while not self._stop:
            now = time.monotonic()
            pending = self._canary.flying
            timeout = min(next_tick, now + 0.5 if pending else next_tick) - now
            for key, _ in selector.select(max(0.0, timeout)):
                if key.fd == wakeup:
                    os.read(wakeup, 4096)
            if self._selftest:
                self._selftest = False
                self._feed_made_up()
            self._drain()
            silent = len(self._silent)
            self._judge_canaries()
            now = time.monotonic()
            if len(self._silent) > silent:
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
                self._fill = self._read("table", self._session.scan, self._fill)
            if now >= next_canary:
                next_canary = self._after_canary(now)
                self._fly()
        selector.close()

    def _after_canary(self, now: float) -> float:
        """When the next canary is due: soon while a hook is silent, for it may be the machine's
        load and not the hook that kept the last one."""
        interval = self._config.canary.interval_seconds
        if not interval:
            return float("inf")
        return now + (min(interval, _SILENT_AGAIN_SECONDS) if self._silent else interval)

    def _drain(self) -> None:
        """Read and handle what is in the ring; a flood is handled in portions."""
        self._session.consume()
        while self._session.records:
            record = self._session.records.popleft()
            try:
                event = wire.decode(record)
            except wire.DecodeError as error:
                self._decode_errors += 1
                if self._decode_errors == 1:
                    say(f"cannot decode an event: {error}; later ones are only counted", "warning")
                continue
            if isinstance(event, wire.StepEvent):
                self._canary.feed(event)
            elif isinstance(event, wire.VerdictEvent):
                self._on_verdict(event)

    def _feed_made_up(self) -> None:
        """`ebpfwatch selftest` where programs cannot be run by hand: a record through our sinks."""
        try:
            ino, generation = map(int, (self._paths.run / SELFTEST).read_text().split())
        except (OSError, ValueError):
            return
        record = wire.made_up(
            _MADE_UP, ino & 2**64 - 1, generation & 2**32 - 1, time.monotonic_ns()
        )
        self._session.records.append(record)

    def _is_test(self, address: int) -> bool:
        return address == _MADE_UP or address in self._test_page

    def _tick(self) -> None:
        now_ns = time.monotonic_ns()
        self._losses.record(now_ns, self._misses_by_role())
        counters = self._session.counters()
        self._watch_reclaim(counters, now_ns)
        # Now, so that a verdict need not wait for it, and a module that leaves has been seen.
        if self._symbols.refresh():
            self._remember_boot()
        notify(f"WATCHDOG=1\nSTATUS={self._status_line()}")

    # -- verdicts

    def _on_verdict(self, event: wire.VerdictEvent) -> None:
        if self._is_own_caller(event):
            return
        self._losses.record(time.monotonic_ns(), self._misses_by_role())
        self._refresh_symbols(event)
        self._sequence += 1
        finding = judge(event, self._knowledge(), self._sequence)
        if finding is None:
            return
        key = (finding.verdict.value, finding.confidence.value, finding.test)
        self._findings[key] = self._findings.get(key, 0) + 1
        write, folded = self._folder.admit(finding, time.monotonic())
        if write:
            context = self._recorder.before(event.ns)
            self._tell(dataclasses.replace(finding, folded=folded, context=context))
        self._recorder.note(event.ns, f"{finding.verdict.value}: {finding.summary}")

    def _is_own_caller(self, event: wire.VerdictEvent) -> bool:
        """A call site not known yet, but ext4's or RCU's own: learn it instead of crying wolf."""
        if event.verdict is not wire.KernelVerdict.FOREIGN_FREE or not event.call_site:
            return False
        if event.object in self._test_page:
            return False
        if self._symbols.function(event.call_site) not in _OWN_CALLERS:
            return False
        if event.call_site not in self._call_sites and len(self._call_sites) < 4:
            self._call_sites = (*self._call_sites, event.call_site)
            self._session.configure(os.getpid(), self._call_sites)
            say(f"ext4 inodes are also freed from {self._symbols.name(event.call_site)}")
        return True

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
            attached=frozenset(self._alive),
            alive=self._alive,
            lost=self._losses.lost,
            symbol=self._symbols.name,
            realtime_offset_ns=time.time_ns() - time.monotonic_ns(),
            test_object=self._is_test,
            frames=self._session.frames,
        )

    def _tell(self, finding: Finding) -> None:
        self._journal.write(finding)
        self._kernel_log.write(finding)
        self._recent.appendleft(finding)
        self._status_at = -float("inf")  # the next scrape shows it
        if finding.verdict is not Verdict.CONCURRENT_UNLINK and not finding.test:
            level = "err" if finding.severity <= Severity.ERR else "warning"
            say(f"{finding.verdict.value} ({finding.confidence.value}): id {finding.id}", level)
        try:
            self._store.write(finding)
        except OSError as error:
            self._store_errors += 1
            if self._store_errors == 1:
                say(
                    f"cannot write findings to {self._store.directory}: {error.strerror};"
                    " the journal has them; further failures are only counted",
                    "err",
                )

    def _recent_findings(self) -> tuple[Finding, ...]:
        return tuple(self._recent)

    # -- proving the hooks alive

    def _fly(self) -> None:
        none: tuple[mounts.Mount, ...] = ()
        for mount in self._read("mounts", lambda: mounts.ext4_mounts(self._paths), none):
            run = self._canary.fly(mount.path, time.monotonic_ns())
            before = self._canary_problems.get(mount.path)
            if run.problem and run.problem != before:
                say(f"no canary on {run.problem}; its hooks are proven on other mounts", "notice")
            self._canary_problems[mount.path] = run.problem

    def _judge_canaries(self) -> None:
        timeout_ns = int(self._config.canary.timeout_seconds * _NS)
        for run in self._canary.finished(time.monotonic_ns(), timeout_ns):
            self._judge_canary(run)

    def _judge_canary(self, run: Run) -> None:
        missing = run.missing(frozenset(self._alive))
        if not missing and run.in_order:
            self._canary_success[run.mount] = time.time()
        elif not missing:
            say(
                f"the canary on {run.mount} saw the hooks in the wrong order: " + run.order,
                "warning",
            )
        for role in self._alive:
            if role in ("reclaim", "unlink_path"):
                continue
            self._alive[role] = role not in missing
            if role in missing and role not in self._silent:
                self._silent.add(role)
                say(
                    f"the hook {role} is SILENT: the canary on {run.mount} was not seen by it;"
                    " verdicts that depend on it are weakened",
                    "err",
                )
                self._recorder.note(time.monotonic_ns(), f"the hook {role} is silent")
            elif role not in missing and role in self._silent:
                self._silent.discard(role)
                say(f"the hook {role} is alive again", "notice")

    def _watch_reclaim(self, counters: dict[str, int], now_ns: int) -> None:
        """Bursts for the log; and the kernel's count of scanned slabs as witness of our hook."""
        nothing: dict[str, int] = {}
        vm = self._read("vmstat", lambda: vmstat.read(self._paths), nothing)
        scanned = vm.get("slabs_scanned", 0)
        starts = counters["shrink_start"]
        before_scanned, before_starts = self._reclaim_seen
        if "reclaim" in self._alive:
            if starts > before_starts:
                self._alive["reclaim"] = True
            elif before_scanned and scanned > before_scanned:
                self._alive["reclaim"] = False
        self._reclaim_seen = scanned, starts
        evicted = counters["evict_in_reclaim"] - self._burst_base
        if evicted >= self._config.reclaim.burst_inodes:
            line = f"reclaim evicted {evicted} ext4 inodes"
            self._recorder.note(now_ns, line)
            if now_ns / _NS - self._burst_noticed >= self._config.reclaim.notice_seconds:
                self._burst_noticed = now_ns / _NS
                say(line, "notice")
        self._burst_base = counters["evict_in_reclaim"]

    # -- configuration

    def _read_config_again(self) -> None:
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            new = config.load(self._config_path)
        except EbpfwatchError as error:
            say(f"keeping the old configuration: {error}", "err")
        else:
            for key in config.restart_needed(self._config, new):
                say(f"{key} has changed and takes effect at the next restart", "warning")
            self._config = new
            self._folder.fold_seconds = new.findings.fold_seconds
            self._folder.per_minute = new.findings.per_minute
            self._store.keep = new.findings.keep
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

    def _snapshot(self) -> Status:
        session = self._session
        counters = session.counters()
        grace_ns = counters.pop("grace_ns")
        counters.pop("verdict")
        misses = self._misses_by_role()
        losses = {name: counters.pop(name) for name in LOSSES if name in counters}
        losses.update(
            recursion=sum(session.misses().values()),
            decode=self._decode_errors,
            queue=session.dropped,
            rate=self._folder.limited,
        )
        oldest = self._fill.oldest_ns
        return Status(
            started=self._started,
            hooks=tuple(
                HookStatus(
                    hook.role,
                    hook.rung,
                    hook.reason,
                    self._alive.get(hook.role),
                    misses.get(hook.role, 0),
                )
                for hook in session.hooks
            ),
            counters=counters,
            losses=losses,
            grace_log2=session.grace(),
            grace_sum_ns=grace_ns,
            findings=dict(self._findings),
            sink_errors={
                "journal": self._journal.errors,
                "store": self._store_errors,
                "kmsg": self._kernel_log.errors,
            },
            collector_errors=dict(self._collector_errors),
            zones=self._read("zoneinfo", lambda: zoneinfo.read(self._paths), ()),
            table_slots=session.table_slots,
            table_dying=self._fill.dying,
            table_dead=self._fill.dead,
            horizon_seconds=(time.monotonic_ns() - oldest) / _NS if oldest else 0.0,
            kernel_memory_bytes=session.memory(),
            rss_bytes=self._read("memory", lambda: memory.own_rss(self._paths), 0),
            canary_success=dict(self._canary_success),
            last_boot=self._last_boot,
            ready=True,
        )

    def _misses_by_role(self) -> dict[str, int]:
        """Skipped runs by role; a program shared by two roles counts for both."""
        misses = self._session.misses()
        totals: dict[str, int] = {}
        for hook in self._session.hooks:
            for rung in LADDER[hook.role]:
                if hook.rung == rung.name:
                    totals[hook.role] = sum(misses.get(a.function, 0) for a in rung.attachments)
        if "rcu_free" not in totals and "any_free" in totals:
            totals["rcu_free"] = totals["any_free"]
        return totals

    def _status_line(self) -> str:
        alive = sum(1 for state in self._alive.values() if state)
        real = sum(n for (_, _, test), n in self._findings.items() if not test)
        return f"{alive} of {len(self._alive)} hooks proven alive; {real} findings"

    def _read(self, source: str, read: Callable[[], _T], fallback: _T) -> _T:
        """One source of host state: a failure is a counter and a line, never a gap elsewhere."""
        try:
            return read()
        except (OSError, ValueError) as error:
            count = self._collector_errors.get(source, 0)
            self._collector_errors[source] = count + 1
            if not count:
                say(f"cannot read {source}: {error}; further failures are only counted", "warning")
            return fallback


def _id(kind: str, fd: int) -> int:
    from ebpfwatch.kernel import libbpf

    return int(libbpf.prog_info(fd).id if kind == "prog" else libbpf.map_info(fd).id)
