"""A snapshot of the whole watcher at one moment: what the metrics and the page show.

Plain data.  Each part is made by its owner, the whole by ``daemon``, and at most once a second,
whoever asks how often.
"""

from __future__ import annotations

import dataclasses

from ebpfwatch.host.state import HostState
from ebpfwatch.host.zoneinfo import Zone
from ebpfwatch.kernel.state import KernelState

__all__ = ["ACTIONS", "RESULTS", "Armed", "BootState", "Governed", "Proofs", "Status", "WebState"]

#: Labels of ebpfwatch_actions_total.
ACTIONS = ("snapshot", "command", "crash")
RESULTS = ("done", "failed", "skipped")


@dataclasses.dataclass(frozen=True)
class Proofs:
    """Which hooks fire.

    ``alive`` by role: True when it was proven, False when it stayed silent, None when nothing could
    prove it yet; a role that is not there is not attached.  ``success`` is when a canary's whole
    life was last seen, by mount, in seconds since the epoch; 0 = never.
    """

    alive: dict[str, bool | None] = dataclasses.field(default_factory=dict)
    success: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Governed:
    """What the watcher costs (percent of one CPU, in the last tick), and the roles that it was
    taken off to save that.
    """

    cpu_percent: float = 0.0
    off: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Armed:
    """The roles that are attached for a reason now, why, and until when (seconds since the
    epoch).
    """

    roles: tuple[str, ...] = ()
    why: str = ""
    until: float = 0.0


@dataclasses.dataclass(frozen=True)
class BootState:
    """What is known since the machine booted, whichever process of ours saw it.

    ``findings`` counts by (verdict, confidence, is test).  ``open`` are those that nobody has
    acknowledged, by (verdict, confidence), and ``ages`` the seconds since the last of each.
    ``kernel_log`` counts the kernel's own messages by kind of ``kernellog.known``, and
    ``kernel_log_ages`` are the seconds since the last of each; ``disk_errors`` are its messages of
    disk errors by device.  ``last_boot`` is how the boot
    before ended: "clean", "panic", "unknown", or "" where nobody knows; ``last_boot_age`` is the
    time since that was found out.
    """

    findings: dict[tuple[str, str, bool], int] = dataclasses.field(default_factory=dict)
    open: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)
    ages: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict)
    kernel_log: dict[str, int] = dataclasses.field(default_factory=dict)
    kernel_log_ages: dict[str, float] = dataclasses.field(default_factory=dict)
    disk_errors: dict[str, int] = dataclasses.field(default_factory=dict)
    last_boot: str = ""
    last_boot_age: float = 0.0


@dataclasses.dataclass(frozen=True)
class WebState:
    """``exposed`` says what should stand between the network and /metrics and does not ("TLS and a
    password"); ``up_to_date`` is False while the web configuration on disk is wrong.
    ``certificate_expires`` is in seconds since the epoch, 0 without a certificate.
    """

    exposed: str = ""
    up_to_date: bool = True
    certificate_expires: float = 0.0


@dataclasses.dataclass(frozen=True)
class Status:
    """Everything a scrape shows.

    ``started`` is in seconds since the epoch.  ``losses`` are the kernel's and user space's, by the
    keys of ``catalogue.counters.LOSSES``.  ``sink_errors`` are findings not taken, by sink;
    ``sink_problems`` says which sink could take no finding now, and why;
    ``actions`` count by (action, result), ``collector_errors`` by source of the host's state.
    ``config_up_to_date`` is False while the configuration on disk is wrong and an older one is in
    force.
    """

    started: float
    ready: bool = False
    kernel: KernelState = KernelState()
    losses: dict[str, int] = dataclasses.field(default_factory=dict)
    proofs: Proofs = Proofs()
    governed: Governed = Governed()
    armed: Armed = Armed()
    boot: BootState = BootState()
    early_warning: bool = False
    sink_errors: dict[str, int] = dataclasses.field(default_factory=dict)
    sink_problems: dict[str, str] = dataclasses.field(default_factory=dict)
    actions: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)
    collector_errors: dict[str, int] = dataclasses.field(default_factory=dict)
    host: HostState = HostState()
    rss_bytes: int = 0
    web: WebState = WebState()
    config_up_to_date: bool = True

    @property
    def zones(self) -> tuple[Zone, ...]:
        """The memory zones of the host."""
        return self.host.zones
