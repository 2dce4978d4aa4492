"""YAML into frozen dataclasses, strictly.

Works on YAML nodes, not on Python objects, so every complaint names its line. An unknown key is an
error: a key that is silently ignored is a promise that nobody keeps.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from typing import Any, Callable, NoReturn, TypeVar

import yaml

from ebpfwatch.errors import EbpfwatchError, Exit

__all__ = ["MAX_BYTES", "between", "key", "one_of", "parse", "power_of_two", "shown"]

MAX_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.@-]{0,39}")
_MAX_DEPTH = 8  # the deepest of ours is 3
_T = TypeVar("_T")


def between(low: float, high: float) -> Callable[[Any], str]:
    """A number within these."""
    return lambda value: "" if low <= value <= high else f"must be between {low} and {high}"


def power_of_two(low: int, high: int) -> Callable[[Any], str]:
    """A power of two within these."""

    def check(value: Any) -> str:
        if low <= value <= high and value & (value - 1) == 0:
            return ""
        return f"must be a power of two between {low} and {high}"

    return check


class one_of:
    """One of these words."""

    def __init__(self, *choices: str) -> None:
        self._choices = choices

    def __call__(self, value: Any) -> str:
        return "" if value in self._choices else f"must be one of {', '.join(self._choices)}"


def key(
    default: Any,
    check: Callable[[Any], str] = lambda _: "",
    *,
    formerly: str = "",
    switch: tuple[str, str] = ("", ""),
) -> Any:
    """A field of a dataclass; ``check`` says what is wrong with a value, or "".  ``formerly`` is a
    name that older files have: it is read, and told to ``parse``'s ``notice``.  ``switch``: the
    words for which false and true are read, and so told, too.
    """
    metadata = {"check": check, "formerly": formerly, "switch": switch}
    return dataclasses.field(default=default, metadata=metadata)


def parse(
    path: str, data: bytes, cls: type[_T], notice: Callable[[str], None] = lambda line: None
) -> _T:
    """The file's bytes as an instance of the class; raises ``EbpfwatchError`` (exit 78) with one
    line: where, what, what to do.  The line shows no text of the file but names that look like
    keys: the file may be another one than was meant, and hold passwords.
    """
    if len(data) > MAX_BYTES:
        _fail(path, 0, "is larger than 1 MiB", "is it really the configuration?")
    try:
        text = data.decode("utf-8")
        _survey(path, text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        _fail(path, 0, f"is not UTF-8 (byte {error.start})", "save it as UTF-8")
    except RecursionError:
        _fail(path, 0, "is nested too deeply", "")
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        tab = "\\t" in str(error.problem)  # "found character '\\t' that cannot start any token"
        _fail(path, line, f"is not YAML: {error.problem}", "indent with spaces" if tab else "")
    except (yaml.YAMLError, ValueError) as error:
        _fail(path, 0, f"is not YAML: {' '.join(str(error).split())}", "")
    if node is None:
        return cls()
    value: _T = _mapping(path, node, cls, "", notice)
    return value


def shown(name: str) -> str:
    """A name out of a file, for a message: as it is where it looks like a key or a user's name."""
    return name if _NAME.fullmatch(name) else "(not shown: it does not look like a name)"


def _survey(path: str, text: str) -> None:
    """Refuse what composing would take long over: aliases, and depth (quadratic in the scanner)."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            _fail(path, line, "aliases (*name) are not understood", "")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH:
            _fail(path, line, "is nested too deeply", "")


def _fail(path: str, line: int, problem: str, hint: str) -> NoReturn:
    where = f"{path}:{line}" if line else path
    raise EbpfwatchError(f"{where}: {problem}", hint, Exit.CONFIG)


def _mapping(
    path: str, node: yaml.Node, cls: Any, prefix: str, notice: Callable[[str], None]
) -> Any:
    line = node.start_mark.line + 1
    if prefix and isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null"):
        return cls()  # a section whose every key is commented out
    if not isinstance(node, yaml.MappingNode):
        name = prefix.rstrip(".") or "the file"
        _fail(path, line, f"{name} must be a mapping", "that is lines of KEY: VALUE")
    types = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    former = {field.metadata.get("formerly", ""): name for name, field in fields.items()}
    former.pop("", None)
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
        if key in former:
            notice(f"{path}:{line}: {prefix}{key} is called {prefix}{former[key]} now; it is read")
            key = former[key]
        if key not in fields:
            import difflib  # only for a mistake

            near = difflib.get_close_matches(key, fields, 1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(fields)}"
            _fail(path, line, f"unknown key {prefix}{shown(key)}", hint)
        if key in values:
            _fail(path, line, f"{prefix}{key} is given twice", "")
        if dataclasses.is_dataclass(types[key]):
            values[key] = _mapping(path, value_node, types[key], f"{prefix}{key}.", notice)
        elif types[key] == dict[str, str]:
            values[key] = _texts(path, value_node, f"{prefix}{key}", fields[key])
        else:
            name, field = f"{prefix}{key}", fields[key]
            values[key] = _scalar(path, value_node, types[key], name, field, notice)
    return cls(**values)


def _texts(path: str, node: yaml.Node, key: str, field: dataclasses.Field[Any]) -> dict[str, str]:
    line = node.start_mark.line + 1
    values: dict[str, str] = {}
    if not isinstance(node, yaml.MappingNode):
        _fail(path, line, f"{key} must be a mapping", "")
    for pair in node.value:
        line = pair[0].start_mark.line + 1
        if not all(isinstance(n, yaml.ScalarNode) and n.tag.endswith(":str") for n in pair):
            _fail(path, line, f"{key} must be names with a text each", "")
        name, value = (str(n.value) for n in pair)
        if name in values:
            _fail(path, line, f"{key}.{shown(name)} is given twice", "")
        values[name] = value
    problem = field.metadata["check"](values)
    if problem:
        _fail(path, line, f"{key}{problem}", "")
    return values


def _yaml(value: Any) -> str:
    """As it would stand in the file."""
    return json.dumps(value)


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _word(
    path: str,
    node: yaml.Node,
    value: bool,
    key: str,
    field: dataclasses.Field[Any],
    notice: Callable[[str], None],
) -> Any:
    """The word for which a bare off, on, yes or no stands: to YAML 1.1 these are false and true."""
    line = node.start_mark.line + 1
    written = str(node.value)
    problem = field.metadata["check"](written)
    if not problem:
        return written
    word = field.metadata["switch"][value]
    if word:
        notice(f"{path}:{line}: {key}: {written} is read as {word}")
        return word
    _fail(path, line, f"{key} {problem}", f"the default is {_yaml(field.default)}")


def _scalar(
    path: str,
    node: yaml.Node,
    kind: type,
    key: str,
    field: dataclasses.Field[Any],
    notice: Callable[[str], None],
) -> Any:
    line = node.start_mark.line + 1
    try:
        value = yaml.SafeLoader("").construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        value = None
    if isinstance(value, bool) and isinstance(field.metadata["check"], one_of):
        value = _word(path, node, value, key, field, notice)
    right = isinstance(value, (int, float)) if kind is float else isinstance(value, kind)
    if not right or (isinstance(value, bool) and kind is not bool):
        _fail(path, line, f"{key} must be {_WORDS[kind]}", f"the default is {_yaml(field.default)}")
    if isinstance(value, str) and "\0" in value:
        _fail(
            path, line, f"{key} must not contain a NUL byte", "paths and names cannot contain one"
        )
    problem = field.metadata["check"](value)
    if problem:
        _fail(path, line, f"{key} {problem}", f"the default is {_yaml(field.default)}")
    return value
