"""The configuration: frozen dataclasses and a strict reader.

``config.example.yaml`` lists every key with its default; a test holds it to these classes.  The
reader works on YAML nodes, not on Python objects, so every complaint names its line.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from pathlib import Path
from typing import Any, Callable, NoReturn

import yaml

from ebpfwatch.errors import EbpfwatchError, Exit

__all__ = ["Config", "load", "restart_needed"]

_MAX_BYTES = 1 << 20


def _between(low: float, high: float) -> Callable[[Any], str]:
    return lambda value: "" if low <= value <= high else f"must be between {low} and {high}"


def _power_of_two(low: int, high: int) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if low <= value <= high and value & (value - 1) == 0:
            return ""
        return f"must be a power of two between {low} and {high}"

    return check


def _one_of(*choices: str) -> Callable[[Any], str]:
    return lambda value: "" if value in choices else f"must be one of {', '.join(choices)}"


def _absolute(value: Any) -> str:
    return "" if value.startswith("/") else "must be an absolute path"


def _address(value: Any) -> str:
    try:
        split_address(value)
    except ValueError as error:
        return str(error)
    return ""


def _key(default: Any, check: Callable[[Any], str] = lambda _: "") -> Any:
    return dataclasses.field(default=default, metadata={"check": check})


@dataclasses.dataclass(frozen=True)
class HooksConfig:
    """Which hooks to take; fixed when the programs are loaded."""

    alloc: bool = _key(True)
    strict: bool = _key(True)


@dataclasses.dataclass(frozen=True)
class KernelConfig:
    """Sizes in the kernel; fixed when the programs are loaded."""

    table_slots: int = _key(32768, _power_of_two(64, 65536))
    note_slots: int = _key(4096, _power_of_two(64, 65536))
    ring_bytes: int = _key(262144, _power_of_two(4096, 16 << 20))


@dataclasses.dataclass(frozen=True)
class CanaryConfig:
    """How the hooks are proven alive; seconds."""

    interval_seconds: float = _key(300, _between(0, 86400))
    timeout_seconds: float = _key(10, _between(0.1, 600))


@dataclasses.dataclass(frozen=True)
class FindingsConfig:
    """What is kept and what becomes a count."""

    keep: int = _key(1000, _between(1, 100000))
    fold_seconds: float = _key(60, _between(0, 86400))
    per_minute: int = _key(60, _between(1, 10000))


@dataclasses.dataclass(frozen=True)
class EvidenceConfig:
    """What a finding leaves behind for the time after a panic; fixed at start."""

    trace: bool = _key(True)
    dump_on_oops: bool = _key(True)
    first_stacks: bool = _key(False)
    exe: bool = _key(False)
    kmsg: bool = _key(True)
    pmsg: bool = _key(True)


@dataclasses.dataclass(frozen=True)
class ReclaimConfig:
    """When reclaim is worth a line in the log."""

    burst_inodes: int = _key(10000, _between(1, 1e9))
    notice_seconds: float = _key(300, _between(1, 86400))


@dataclasses.dataclass(frozen=True)
class MetricsConfig:
    """Where /metrics listens; "" is nowhere."""

    listen: str = _key("127.0.0.1:9866", _address)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything; the defaults are the example file."""

    state_directory: str = _key("/var/lib/ebpfwatch", _absolute)
    hooks: HooksConfig = HooksConfig()
    kernel: KernelConfig = KernelConfig()
    canary: CanaryConfig = CanaryConfig()
    findings: FindingsConfig = FindingsConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    reclaim: ReclaimConfig = ReclaimConfig()
    metrics: MetricsConfig = MetricsConfig()
    journal: str = _key("auto", _one_of("auto", "off"))


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


def restart_needed(old: Config, new: Config) -> tuple[str, ...]:
    """The changed keys that only a restart can apply."""
    changed = []
    for section in ("hooks", "kernel", "evidence", "metrics"):
        before, after = getattr(old, section), getattr(new, section)
        for field in dataclasses.fields(before):
            if getattr(before, field.name) != getattr(after, field.name):
                changed.append(f"{section}.{field.name}")
    if old.state_directory != new.state_directory:
        changed.append("state_directory")
    return tuple(changed)


def load(path: str | Path) -> Config:
    """Read and check a file; raises ``EbpfwatchError`` (exit 78) with one line: where, what, what
    to do.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise EbpfwatchError(
            f"cannot read {path}: {error.strerror}",
            "give another with --config; config.example.yaml is a working one",
            Exit.CONFIG,
        ) from None
    if len(data) > _MAX_BYTES:
        _fail(str(path), 0, "is larger than 1 MiB", "is it really the configuration?")
    return _parse(str(path), data)


def _parse(path: str, data: bytes) -> Config:
    try:
        text = data.decode("utf-8")
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                line = event.start_mark.line + 1 if event.start_mark else 0
                _fail(path, line, "aliases (*name) are not understood", "")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        _fail(path, 0, f"is not UTF-8 (byte {error.start})", "save it as UTF-8")
    except RecursionError:
        _fail(path, 0, "is nested too deeply", "")
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        _fail(path, line, f"is not YAML: {error.problem}", "")
    except (yaml.YAMLError, ValueError) as error:
        _fail(path, 0, f"is not YAML: {' '.join(str(error).split())}", "")
    if node is None:
        return Config()
    config: Config = _mapping(path, node, Config, "")
    return config


def _fail(path: str, line: int, problem: str, hint: str) -> NoReturn:
    where = f"{path}:{line}" if line else path
    raise EbpfwatchError(f"{where}: {problem}", hint, Exit.CONFIG)


def _mapping(path: str, node: yaml.Node, cls: Any, prefix: str) -> Any:
    line = node.start_mark.line + 1
    if not isinstance(node, yaml.MappingNode):
        _fail(path, line, f"{prefix.rstrip('.') or 'the file'} must be a mapping", "")
    types = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(fields)}"
            _fail(path, line, f"unknown key {prefix}{key!s:.80}", hint)
        if key in values:
            _fail(path, line, f"{prefix}{key} is given twice", "")
        if dataclasses.is_dataclass(types[key]):
            values[key] = _mapping(path, value_node, types[key], f"{prefix}{key}.")
        else:
            values[key] = _scalar(path, value_node, types[key], f"{prefix}{key}", fields[key])
    return cls(**values)


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _scalar(path: str, node: yaml.Node, kind: type, key: str, field: dataclasses.Field[Any]) -> Any:
    line = node.start_mark.line + 1
    try:
        value = yaml.SafeLoader("").construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        value = None
    right = isinstance(value, (int, float)) if kind is float else isinstance(value, kind)
    if not right or (isinstance(value, bool) and kind is not bool):
        _fail(path, line, f"{key} must be {_WORDS[kind]}", f"the default is {field.default!r}")
    problem = field.metadata["check"](value)
    if problem:
        _fail(path, line, f"{key} {problem}", f"the default is {field.default!r}")
    return value
