"""Every metric, declared once, read from one ``Status`` a scrape.

Labels are enumerated and each series exists from the start at 0, so that ``rate()`` works from the
first event.  Addresses, pids, names and paths never become labels.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from ebpfwatch import __version__
from ebpfwatch.catalogue.counters import EVENTS, LOSSES
from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.host.account import errors_of
from ebpfwatch.host.state import SOURCES
from ebpfwatch.kernellog.known import KINDS
from ebpfwatch.sinks import host_metrics
from ebpfwatch.sinks.status import ACTIONS, RESULTS, Status
from ebpfwatch.text.printable import printable
from ebpfwatch.verdicts.finding import Confidence

__all__ = ["COLLECTORS", "SINKS", "WatchCollector", "registry"]

#: Sinks and host collectors that can fail, by label value.
SINKS = ("journal", "store", "kmsg")
COLLECTORS = (*SOURCES, "open_files", "mounts", "table", "memory", "boot_id")


def registry(
    status: Callable[[], Status], proc: Path | None = None, host: str = "minimal"
) -> CollectorRegistry:
    """A registry of our own: nothing that a library registered at import.

    With ``proc`` it has the usual process_* families, too.
    """
    result = CollectorRegistry(auto_describe=False)
    result.register(WatchCollector(status, host))
    if proc is not None:
        ProcessCollector(pid=lambda: "self", proc=str(proc), registry=result)
    return result


class WatchCollector:
    """Turns the status into metric families; ``status`` is called once a scrape.

    ``host``: "minimal" leaves out what node_exporter has under names of its own, "full" does not.
    """

    def __init__(self, status: Callable[[], Status], host: str = "minimal") -> None:
        self._status = status
        self._host = host

    def describe(self) -> list[Metric]:
        """Nothing: collecting at registration would ask for a status that is not there yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families, in a fixed order."""
        status = self._status()
        yield from _self(status)
        yield from _hooks(status)
        yield from _lifecycle(status)
        yield from _table(status)
        yield from _findings(status)
        yield from _kernel_log(status)
        yield from host_metrics.collect(status.host, self._host == "full")


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"ebpfwatch_{name}", text, value=value)


def _counter(name: str, text: str, value: int) -> Metric:
    return CounterMetricFamily(f"ebpfwatch_{name}", text, value=value)


def _counters(name: str, text: str, label: str, values: dict[str, int], keys: object) -> Metric:
    family = CounterMetricFamily(f"ebpfwatch_{name}", text, labels=[label])
    for key in keys:  # type: ignore[attr-defined]
        family.add_metric([key], values.get(key, 0))
    return family


def _self(status: Status) -> Iterator[Metric]:
    build = GaugeMetricFamily(
        "ebpfwatch_build_info",
        "Version of ebpfwatch and of the kernel it runs on; always 1.",
        labels=["version", "kernel", "machine"],
    )
    build.add_metric([__version__, platform.release(), platform.machine()], 1)
    yield build
    yield _gauge(
        "start_time_seconds",
        "When the watcher started, in seconds since the epoch.",
        status.started,
    )
    if status.boot.last_boot:
        ended = GaugeMetricFamily(
            "ebpfwatch_last_boot_ended",
            "How the boot before this one ended: clean, panic or unknown.",
            labels=["how"],
        )
        ended.add_metric([status.boot.last_boot], 1.0)
        yield ended
        yield _gauge(
            "last_boot_known_seconds",
            "For how long it has been known how the boot before this one ended.",
            status.boot.last_boot_age,
        )
    yield _gauge("ready", "1 when the programs are loaded and attached.", float(status.ready))
    yield _gauge(
        "web_exposed",
        "1 if /metrics can be read from the network without TLS or without a password.",
        float(bool(status.web.exposed)),
    )
    reloaded = GaugeMetricFamily(
        "ebpfwatch_config_last_reload_successful",
        "0 while this configuration on disk is wrong and an older one is in force.",
        labels=["file"],
    )
    reloaded.add_metric(["main"], float(status.config_up_to_date))
    reloaded.add_metric(["web"], float(status.web.up_to_date))
    yield reloaded
    yield _gauge(
        "web_certificate_expiry_timestamp_seconds",
        "When the certificate of /metrics expires, in seconds since the epoch; NaN without one.",
        status.web.certificate_expires or math.nan,
    )
    yield _gauge(
        "governor_step",
        "0 while every hook is on; else how many the governor has taken off to save CPU time.",
        len(status.governed.off),
    )
    yield _gauge(
        "watcher_cpu_ratio",
        "What daemon and programs cost, in parts of one CPU: the governor's measure.",
        status.governed.cpu_percent / 100,
    )
    yield _counter(
        "trapped_frees",
        "Frees from any slab cache, where seeing one costs a kprobe's trap (before Linux 5.16).",
        status.kernel.trapped_frees,
    )
    yield _gauge(
        "kernel_memory_bytes",
        "Memory the kernel has charged for our maps and programs.",
        status.kernel.memory_bytes,
    )


def _hooks(status: Status) -> Iterator[Metric]:
    attached = GaugeMetricFamily(
        "ebpfwatch_hook_attached",
        "1 if the hook has a rung on this kernel.",
        labels=["hook", "rung"],
    )
    alive = GaugeMetricFamily(
        "ebpfwatch_hook_alive",
        "1 if the canary proved that the hook fires, 0 if it stayed silent, NaN while unproven.",
        labels=["hook"],
    )
    misses = CounterMetricFamily(
        "ebpfwatch_hook_misses",
        "Runs of the hook that the kernel skipped because its program was already running.",
        labels=["hook"],
    )
    for hook in status.kernel.hooks:
        attached.add_metric([hook.role, hook.name or "none"], float(hook.has_rung))
        if hook.role in status.proofs.alive:  # not given up, and not only for when it is needed
            proven = status.proofs.alive.get(hook.role)
            alive.add_metric([hook.role], math.nan if proven is None else float(proven))
        misses.add_metric([hook.role], status.kernel.misses.get(hook.role, 0))
    yield attached
    yield alive
    yield misses
    canary = GaugeMetricFamily(
        "ebpfwatch_canary_last_success_timestamp_seconds",
        "When a canary's whole life was last seen on this mount; 0 if never.",
        labels=["mountpoint"],
    )
    for mount, when in sorted(status.proofs.success.items()):
        canary.add_metric([printable(mount)], when)
    yield canary


def _lifecycle(status: Status) -> Iterator[Metric]:
    yield _counters(
        "lifecycle_events",
        "Steps in the life of ext4 inodes, by kind: "
        + "; ".join(f"{name}: {text}" for name, text in EVENTS.items())
        + ".",
        "event",
        status.kernel.events,
        EVENTS,
    )
    yield _counters(
        "lost_events",
        "What was lost, by kind: "
        + "; ".join(f"{name}: {text}" for name, text in LOSSES.items())
        + ".",
        "kind",
        status.losses,
        LOSSES,
    )
    total = 0
    buckets = []
    for index, frees in enumerate(status.kernel.grace_log2):
        total += frees
        buckets.append((f"{2**index / 1e6:g}", float(total)))
    buckets.append(("+Inf", float(total)))
    grace = HistogramMetricFamily(
        "ebpfwatch_grace_seconds", "Time from an inode's eviction to the free of its memory."
    )
    grace.add_metric([], buckets, sum_value=status.kernel.grace_sum_ns / 1e9)
    yield grace


def _kernel_log(status: Status) -> Iterator[Metric]:
    yield _counters(
        "kernel_log_events",
        "Messages of the kernel itself in its log since it booted, by kind.",
        "kind",
        status.boot.kernel_log,
        KINDS,
    )
    age = GaugeMetricFamily(
        "ebpfwatch_kernel_log_age_seconds",
        "Time since the kernel's last message of this kind; NaN while there was none.",
        labels=["kind"],
    )
    for kind in KINDS:
        age.add_metric([kind], status.boot.kernel_log_ages.get(kind, math.nan))
    yield age
    errors = GaugeMetricFamily(
        "ebpfwatch_disk_error_messages",
        "Messages of the kernel's log about errors of a device below this ext4, since the boot.",
        labels=["mountpoint", "device"],
    )
    for disk in status.host.disks[: host_metrics.MOST_DISKS]:
        labels = [printable(disk.mount), printable(disk.device)]
        errors.add_metric(labels, errors_of(disk, status.boot.disk_errors))
    yield errors
    yield _gauge(
        "early_warning",
        "1 while low memory, a burst of reclaimed inodes and a precursor in the kernel log are"
        " there together.",
        float(status.early_warning),
    )


def _table(status: Status) -> Iterator[Metric]:
    yield _gauge(
        "table_slots", "Objects the kernel-side table can remember.", status.kernel.table_slots
    )
    objects = GaugeMetricFamily(
        "ebpfwatch_table_objects", "Objects in the kernel-side table.", labels=["state"]
    )
    objects.add_metric(["dying"], status.kernel.table.dying)
    objects.add_metric(["dead"], status.kernel.table.dead)
    yield objects
    yield _gauge(
        "table_horizon_seconds",
        "Age of the oldest dead object still remembered; younger ones may be forgotten.",
        status.kernel.horizon_seconds,
    )


def _findings(status: Status) -> Iterator[Metric]:
    family = CounterMetricFamily(
        "ebpfwatch_findings",
        "Findings since the machine booted, by verdict and confidence, repetitions included;"
        " test=true are the self-test's.",
        labels=["verdict", "confidence", "test"],
    )
    for verdict in Verdict:
        for confidence in Confidence:
            for test in (False, True):
                count = status.boot.findings.get((verdict.value, confidence.value, test), 0)
                family.add_metric([verdict.value, confidence.value, str(test).lower()], count)
    yield family
    yield from _unacknowledged(status)
    yield _counters(
        "sink_errors", "Findings a sink could not take.", "sink", status.sink_errors, SINKS
    )
    ready = GaugeMetricFamily(
        "ebpfwatch_sink_ready", "0 while this sink could take no finding.", labels=["sink"]
    )
    for sink in SINKS:
        ready.add_metric([sink], float(sink not in status.sink_problems))
    yield ready
    actions = CounterMetricFamily(
        "ebpfwatch_actions",
        "Actions at findings: done, failed, or skipped because of their limits.",
        labels=["action", "result"],
    )
    for action in ACTIONS:
        for result in RESULTS:
            actions.add_metric([action, result], status.actions.get((action, result), 0))
    yield actions
    yield _counters(
        "collector_errors",
        "Times a source of host state could not be read.",
        "collector",
        status.collector_errors,
        COLLECTORS,
    )


def _unacknowledged(status: Status) -> Iterator[Metric]:
    """What an alert asks for: it outlives a restart, and ends when somebody says so."""
    labels = ["verdict", "confidence", "kind"]
    count = GaugeMetricFamily(
        "ebpfwatch_findings_unacknowledged",
        "Findings since the machine booted that nobody has acknowledged (ebpfwatch report --ack).",
        labels=labels,
    )
    age = GaugeMetricFamily(
        "ebpfwatch_finding_age_seconds",
        "Time since the last finding of those that nobody has acknowledged; NaN where there is"
        " none.",
        labels=labels,
    )
    for verdict in Verdict:
        for confidence in Confidence:
            key = verdict.value, confidence.value
            labels = [*key, verdict.kind.value]
            count.add_metric(labels, status.boot.open.get(key, 0))
            age.add_metric(labels, status.boot.ages.get(key, math.nan))
    yield count
    yield age
