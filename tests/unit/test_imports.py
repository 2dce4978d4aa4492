"""Who imports whom: one direction, no circle, and the loader child apart from the daemon."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ebpfwatch"

#: A room may import from those before it, never from one behind it.  ``events`` comes first: it is
#: nothing but the layout of what the kernel side writes.
FLOW = ("events", "kernel", "verdicts", "sinks", "daemon")


def module_name(file: Path) -> str:
    """As in an import statement."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def files() -> Mapping[str, Path]:
    """All modules of the package."""
    return {module_name(file): file for file in PACKAGE.rglob("*.py")}


def imported(file: Path) -> Iterator[str]:
    """The modules of ours that a file imports: at once, inside a function, for its types alone."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
            names = [name if name in files() else module for name in names]
        else:
            continue
        yield from (name for name in names if name in files())


@functools.cache
def arrows() -> Mapping[str, frozenset[str]]:
    """Module to modules."""
    return {name: frozenset(imported(file)) - {name} for name, file in files().items()}


def room(module: str) -> str:
    """The folder of a module, or itself at the top; a program's start is nobody's library."""
    if module.endswith(".__main__"):
        return module
    return ".".join(module.split(".")[:2])


def circle(graph: Mapping[str, frozenset[str]]) -> list[str]:
    """A way from a node back to itself; [] if there is none."""
    done: set[str] = set()

    def walk(node: str, way: list[str]) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return []
        found = next(
            filter(None, (walk(other, [*way, node]) for other in sorted(graph.get(node, ())))), []
        )
        done.add(node)
        return found

    return next(filter(None, (walk(node, []) for node in sorted(graph))), [])


def rooms() -> dict[str, frozenset[str]]:
    """Room to rooms; the package's own __init__ holds nothing but the version."""
    found: dict[str, set[str]] = {}
    for name, targets in arrows().items():
        inner = {room(target) for target in targets} - {room(name), "ebpfwatch"}
        found.setdefault(room(name), set()).update(inner)
    return {name: frozenset(targets) for name, targets in found.items()}


def test_a_circle_is_found() -> None:
    """By this very function, where there is one."""
    assert circle({"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("b")}) == list("bcb")
    assert circle({"a": frozenset("bc"), "b": frozenset("c"), "c": frozenset()}) == []


def test_no_circle_of_files() -> None:
    """Not by imports for types, nor by those inside functions."""
    assert circle(arrows()) == []


def test_no_circle_of_folders() -> None:
    """A folder is what a reader can understand with those before it alone."""
    assert circle(rooms()) == []


def test_the_catalogue_imports_nothing_of_ours() -> None:
    """It is what everybody else asks."""
    for name, targets in arrows().items():
        if room(name) == "ebpfwatch.catalogue":
            assert {room(target) for target in targets} <= {"ebpfwatch.catalogue"}, name


@pytest.mark.parametrize("at", range(len(FLOW)))
def test_one_direction(at: int) -> None:
    """The way of an event; the daemon alone knows them all."""
    behind = {f"ebpfwatch.{name}" for name in FLOW[at + 1 :]}
    assert not rooms()[f"ebpfwatch.{FLOW[at]}"] & behind


#: What only a command or the child itself may import: LLVM, and the work on logs of the dead.
APART = ("ebpfwatch.loader", "ebpfwatch.triage")
#: Who may: the rooms themselves and the commands.
MAY = (*APART, "ebpfwatch.commands")


def test_nothing_of_the_daemon_imports_the_loader_or_triage() -> None:
    """In the text, wherever in a module it stands."""
    for name, targets in arrows().items():
        if room(name) not in MAY and not name.endswith(".__main__"):
            assert not {room(target) for target in targets} & set(APART), name


def test_nothing_of_the_daemon_loads_the_loader_or_triage() -> None:
    """In a process that imports every module that the daemon could: neither comes, nor bcc."""
    names = [name for name in files() if room(name) not in MAY and not name.endswith(".__main__")]
    script = (
        "import importlib, sys\n"
        f"for name in {[*names, 'ebpfwatch.commands.run']!r}: importlib.import_module(name)\n"
        f"apart = {APART!r}\n"
        "print(sorted(name for name in sys.modules if name == 'bcc'"
        " or '.'.join(name.split('.')[:2]) in apart))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_architecture_names_only_what_is_there() -> None:
    """A file that has moved is moved in the text, too."""
    text = (ROOT / "docs/architecture.md").read_text()
    named = re.findall(r"`([\w/]+\.(?:py|c|h))`", text)
    assert len(named) > 20
    for name in named:
        places = (ROOT / name, PACKAGE / name, ROOT / "probes" / name)
        assert any(place.exists() for place in places), name
