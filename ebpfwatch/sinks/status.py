"""A snapshot of the whole watcher at one moment: what the metrics, the page and `check` show.

Plain data. ``daemon`` builds one at most once a second; every reader gets the same object, so a
scrape costs no system call of its own.
"""

from __future__ import annotations

import dataclasses

from ebpfwatch.host.state import HostState
from ebpfwatch.host.zoneinfo import Zone

__all__ = ["ACTIONS", "RESULTS", "HookStatus", "Status"]

#: Labels of ebpfwatch_actions_total.
ACTIONS = ("snapshot", "command", "crash")
RESULTS = ("done", "failed", "skipped")


@dataclasses.dataclass(frozen=True)
class HookStatus:
    """One role of the ladder.

    ``rung`` names how it is attached ("raw_tracepoint kmem_cache_free"), empty when it is not;
    ``reason`` says why it is not on a better rung, or why it is absent.
    ``alive`` is True when the canary proved it, False when it stayed silent, None when nothing
    could prove it yet.  ``misses`` counts runs the kernel skipped.  ``off``: the governor has taken
    it off its rung.
    """

    role: str
    rung: str
    reason: str
    alive: bool | None = None
    misses: int = 0
    off: bool = False

    @property
    def attached(self) -> bool:
        """Whether it has a rung on this kernel."""
        return bool(self.rung)


@dataclasses.dataclass(frozen=True)
class Status:
    """Everything a scrape shows.

    ``counters`` and ``losses`` are totals since the programs were loaded, keyed as ``EVENTS``
    and ``LOSSES`` of ``catalogue.counters``.  ``grace_log2`` counts frees by the time from evict to
    free: bucket i holds durations below 2**i microseconds (and at least 2**(i-1));
    ``grace_sum_ns`` is their sum.
    ``findings`` counts by (verdict, confidence, is test) since the machine booted, whichever
    process of ours saw them, ``actions`` by (action, result).  ``findings_open`` are those that
    nobody has acknowledged, by (verdict, confidence), and ``finding_ages`` the seconds since the
    last of each; ``kernel_log_ages`` is the same by kind.
    ``sink_problems`` says which sink could take no finding now, and why.
    Times are seconds since the epoch.
    ``horizon_seconds`` is the age of the oldest dead inode the table still remembers; younger ones
    may be forgotten where they shared a bucket.
    ``last_boot`` is how it ended: "clean", "panic", "unknown", or "" where nobody knows;
    ``last_boot_age`` is the time since that was found out.
    ``kernel_log`` counts the kernel's own messages since the machine booted, by kind of
    ``kernellog.known``.
    ``web_exposed`` says what should stand between the network and /metrics and does not ("TLS and a
    password"); ``web_up_to_date`` and ``config_up_to_date`` are False while that configuration on
    disk is wrong; ``certificate_expires`` is 0 without a certificate.
    ``watcher_cpu_percent`` is of one CPU, in the last tick, as the governor measures it;
    ``trapped_frees`` counts frees from any slab cache, where seeing one costs a kprobe's trap.
    ``kernel_memory_bytes`` is what our maps and programs have charged.
    """

    started: float
    hooks: tuple[HookStatus, ...] = ()
    counters: dict[str, int] = dataclasses.field(default_factory=dict)
    losses: dict[str, int] = dataclasses.field(default_factory=dict)
    grace_log2: tuple[int, ...] = ()
    grace_sum_ns: int = 0
    findings: dict[tuple[str, str, bool], int] = dataclasses.field(default_factory=dict)
    findings_open: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)
    finding_ages: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict)
    sink_errors: dict[str, int] = dataclasses.field(default_factory=dict)
    sink_problems: dict[str, str] = dataclasses.field(default_factory=dict)
    actions: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)
    collector_errors: dict[str, int] = dataclasses.field(default_factory=dict)
    host: HostState = HostState()
    table_slots: int = 0
    table_dying: int = 0
    table_dead: int = 0
    horizon_seconds: float = 0.0
    kernel_memory_bytes: int = 0
    rss_bytes: int = 0
    canary_success: dict[str, float] = dataclasses.field(default_factory=dict)
    last_boot: str = ""
    last_boot_age: float = 0.0
    governor_step: int = 0
    watcher_cpu_percent: float = 0.0
    trapped_frees: int = 0
    kernel_log: dict[str, int] = dataclasses.field(default_factory=dict)
    kernel_log_ages: dict[str, float] = dataclasses.field(default_factory=dict)
    early_warning: bool = False
    web_exposed: str = ""
    web_up_to_date: bool = True
    config_up_to_date: bool = True
    certificate_expires: float = 0.0
    ready: bool = False

    @property
    def zones(self) -> tuple[Zone, ...]:
        """The memory zones of the host."""
        return self.host.zones
