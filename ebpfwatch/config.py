"""The configuration: frozen dataclasses.

``config.example.yaml`` lists every key with its default; a test holds it to these classes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ebpfwatch.catalogue.ladder import wishes
from ebpfwatch.kernel.protocol import LoadRequest
from ebpfwatch.system.configfile import read
from ebpfwatch.text.strictyaml import between, key, one_of, power_of_two

__all__ = ["Config", "changed", "load", "loader_request", "programs_directory", "restart_needed"]


def _absolute(value: Any) -> str:
    return "" if value.startswith("/") else "must be an absolute path"


def _absolute_or_none(value: Any) -> str:
    return _absolute(value) if value else ""


def _wishes(value: Any) -> str:
    try:
        wishes(value)
    except ValueError as error:
        return str(error)
    return ""


def _address(value: Any) -> str:
    try:
        split_address(value)
    except ValueError as error:
        return str(error)
    return ""


@dataclasses.dataclass(frozen=True)
class HooksConfig:
    """Which hooks to take; fixed when the programs are loaded."""

    alloc: str = key("auto", one_of("auto", "always", "never"))
    any_free: str = key(
        "auto",
        one_of("auto", "always", "armed", "never"),
        formerly="strict",
        switch=("never", "always"),
    )
    rungs: str = key("", _wishes)
    btf: str = key("", _absolute_or_none)


@dataclasses.dataclass(frozen=True)
class ContractsConfig:
    """The hooks that are attached only while there is a reason; fixed at start."""

    armed: str = key("auto", one_of("auto", "always", "never"))
    armed_minutes: float = key(30, between(0, 1440))


@dataclasses.dataclass(frozen=True)
class KernelConfig:
    """Sizes in the kernel; fixed when the programs are loaded."""

    table_slots: int = key(32768, power_of_two(64, 65536))
    note_slots: int = key(4096, power_of_two(64, 65536))
    ring_bytes: int = key(262144, power_of_two(4096, 16 << 20))


@dataclasses.dataclass(frozen=True)
class CanaryConfig:
    """How the hooks are proven alive; seconds."""

    interval_seconds: float = key(300, between(0, 86400))
    timeout_seconds: float = key(10, between(0.1, 600))


@dataclasses.dataclass(frozen=True)
class FindingsConfig:
    """What is kept and what becomes a count."""

    keep: int = key(1000, between(1, 100000))
    fold_seconds: float = key(60, between(0, 86400))
    per_minute: int = key(60, between(1, 10000))


@dataclasses.dataclass(frozen=True)
class EvidenceConfig:
    """What a finding leaves behind for the time after a panic; fixed at start."""

    trace: bool = key(True)
    dump_on_oops: bool = key(True)
    names: bool = key(True)
    first_stacks: bool = key(False)
    exe: bool = key(False)
    kmsg: bool = key(True)
    pmsg: bool = key(True)


@dataclasses.dataclass(frozen=True)
class ActionsConfig:
    """What to do at a finding besides telling of it; fixed at start."""

    snapshot: bool = key(False)
    snapshots_kept: int = key(5, between(1, 100))
    command: str = key("", _absolute_or_none)
    command_seconds: float = key(10, between(0.1, 300))
    crash: str = key("never", one_of("never", "confirmed"))
    every_seconds: float = key(300, between(1, 86400))


@dataclasses.dataclass(frozen=True)
class ReclaimConfig:
    """When reclaim is worth a line in the log."""

    burst_inodes: int = key(10000, between(1, 1e9))
    notice_seconds: float = key(300, between(1, 86400))


@dataclasses.dataclass(frozen=True)
class GovernorConfig:
    """What the watcher may cost before it gives up hooks; percent of one CPU, 0 = no governor."""

    cpu_percent: float = key(10, between(0, 6400))


@dataclasses.dataclass(frozen=True)
class MetricsConfig:
    """Where /metrics listens, "" is nowhere; and the file with its certificate and users."""

    listen: str = key("127.0.0.1:9866", _address)
    web_config: str = key("", _absolute_or_none)
    host: str = key("minimal", one_of("minimal", "full"))


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything; the defaults are the example file."""

    state_directory: str = key("/var/lib/ebpfwatch", _absolute)
    hooks: HooksConfig = HooksConfig()
    contracts: ContractsConfig = ContractsConfig()
    kernel: KernelConfig = KernelConfig()
    canary: CanaryConfig = CanaryConfig()
    findings: FindingsConfig = FindingsConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    actions: ActionsConfig = ActionsConfig()
    reclaim: ReclaimConfig = ReclaimConfig()
    governor: GovernorConfig = GovernorConfig()
    metrics: MetricsConfig = MetricsConfig()
    journal: str = key("auto", one_of("auto", "off"), switch=("off", "auto"))


def split_address(text: str) -> tuple[str, int] | None:
    """(host, port) of "127.0.0.1:9866" or "[::1]:9866"; None for ""; ``ValueError`` says what is
    wrong.
    """
    if not text:
        return None
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError('must be ADDRESS:PORT, like 127.0.0.1:9866, or "" for off')
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("an IPv6 address needs brackets: [::1]:9866")
    if not host:
        raise ValueError("needs an address before the colon; 0.0.0.0 would be every one")
    return host, int(port)


#: What a reload applies; every other key waits for a restart.
_AT_ONCE = ("canary", "findings", "reclaim", "governor")


def restart_needed(old: Config, new: Config) -> tuple[str, ...]:
    """The changed keys that only a restart can apply."""
    return tuple(key for key in changed(old, new) if key.partition(".")[0] not in _AT_ONCE)


def changed(old: Config, new: Config) -> tuple[str, ...]:
    """The keys that differ."""
    keys = []
    for field in dataclasses.fields(Config):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if dataclasses.is_dataclass(before):
            names = [inner.name for inner in dataclasses.fields(before)]
            keys += [
                f"{field.name}.{name}"
                for name in names
                if getattr(before, name) != getattr(after, name)
            ]
        elif before != after:
            keys.append(field.name)
    return tuple(keys)


def programs_directory(settings: Config) -> str:
    """Where compiled programs are kept for the next start."""
    return f"{settings.state_directory}/programs"


def loader_request(settings: Config, keep: str = "") -> LoadRequest:
    """What the loader child must know of it."""
    hooks, kernel, evidence = settings.hooks, settings.kernel, settings.evidence
    return LoadRequest(
        "ebpfwatch.c",
        alloc=hooks.alloc,
        any_free=hooks.any_free,
        armed=settings.contracts.armed,
        table_slots=kernel.table_slots,
        note_slots=kernel.note_slots,
        ring_bytes=kernel.ring_bytes,
        rungs=hooks.rungs,
        btf=hooks.btf,
        trace=evidence.trace,
        dump_on_oops=evidence.dump_on_oops,
        names=evidence.names,
        first_stacks=evidence.first_stacks,
        keep=keep,
    )


def load(path: str | Path) -> Config:
    """Read and check a file; raises ``EbpfwatchError`` (exit 78) with one line: where, what, what
    to do.
    """
    return read(path, Config, "config.example.yaml is a working one")
