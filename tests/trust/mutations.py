"""``make mutations``: the catalogue is damaged in every way a slip could, and a test must fail.

Each mutation is one edit of one file in a copy of the checkout: a row dropped, two neighbouring
counters swapped, a number changed.  What no test notices is printed and makes the command fail.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
CATALOGUE = "ebpfwatch/catalogue"

#: What is asked: fast, and needs neither root nor bcc.
TESTS = ("tests/unit/test_wire.py", "tests/unit/test_catalogue.py", "tests/unit/test_ladder.py")
COPIED = ("ebpfwatch", "probes", "tests", "deploy", "docs", "README.md", "pyproject.toml")


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One edit: the file's text with ``old`` bytes [start, end) replaced."""

    file: str
    what: str
    start: int
    end: int
    new: str


def _span(text: str, node: ast.expr | ast.stmt) -> tuple[int, int]:
    lines = text.splitlines(keepends=True)
    assert node.end_lineno is not None and node.end_col_offset is not None

    def place(line: int, column: int) -> int:
        before = sum(map(len, lines[: line - 1]))
        return before + len(lines[line - 1].encode()[:column].decode())

    return place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)


def _named(node: ast.expr) -> str:
    found = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
    return next((str(value) for value in found if isinstance(value, str)), ast.dump(node)[:30])


def _drop(file: str, text: str, where: str, node: ast.expr | ast.stmt) -> Mutation:
    start, end = _span(text, node)
    comma = re.compile(r"\s*,").match(text, end)
    name = ast.unparse(node)[:48].replace("\n", " ")
    return Mutation(file, f"drop from {where}: {name}", start, comma.end() if comma else end, "")


def _elements(node: ast.expr) -> list[ast.expr]:
    """The rows of a literal table: a tuple's, a set's, a dict's values."""
    if isinstance(node, ast.Call) and node.args:
        return _elements(node.args[0])
    if isinstance(node, ast.BinOp):
        return [*_elements(node.left), *_elements(node.right)]
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return list(node.elts)
    return []


def rows(file: str, text: str) -> Iterator[Mutation]:
    """Drop each row of each table, and each member of each enum."""
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.ClassDef) and any(
            "enum" in ast.unparse(b) for b in statement.bases
        ):
            for member in statement.body:
                if isinstance(member, ast.Assign):
                    start, end = _span(text, member)
                    what = f"drop from {statement.name}: {ast.unparse(member.targets[0])}"
                    yield Mutation(file, what, start, end, "pass")
        value = getattr(statement, "value", None)
        if not isinstance(statement, (ast.Assign, ast.AnnAssign)) or value is None:
            continue
        assigned = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
        name = ast.unparse(assigned)
        if name == "__all__":
            continue
        tables = list(value.values) if isinstance(value, ast.Dict) else [value]
        for table in tables:
            for element in _elements(table):
                yield _drop(file, text, name, element)
                if isinstance(element, ast.Call) and ast.unparse(element.func) == "Struct":
                    for part in _elements(element.args[1]):
                        yield _drop(file, text, _named(element), part)


def numbers(file: str, text: str) -> Iterator[Mutation]:
    """Change each number that stands in a table, an enum or a constant."""
    for statement in ast.parse(text).body:
        if not isinstance(statement, (ast.ClassDef, ast.Assign, ast.AnnAssign)):
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Constant) and type(node.value) is int:
                start, end = _span(text, node)
                line = text[text.rindex("\n", 0, start) + 1 : end].strip()
                yield Mutation(
                    file,
                    f"number: {line[:40]} -> {node.value + 1}",
                    start,
                    end,
                    str(node.value + 1),
                )


def swaps(file: str, text: str) -> Iterator[Mutation]:
    """Swap the kernel's names of neighbouring counters: each would be told as the other."""
    found = [m for m in re.finditer(r'Counter\(\s*"(\w+)",\s*"([A-Z_]+)"', text)]
    for one, two in zip(found, found[1:]):
        between = text[one.end(2) : two.start(2)]
        new = two.group(2) + between + one.group(2)
        what = f"swap counters {one.group(1)} and {two.group(1)}"
        yield Mutation(file, what, one.start(2), two.end(2), new)


def header_lines(file: str, text: str) -> Iterator[Mutation]:
    """Change or swap what stands in the generated header by hand."""
    for found in re.finditer(r"^#define \w+ (\d+)(?=u|ull| )", text, re.M):
        new = str(int(found.group(1)) + 1)
        what = f"header: {found.group(0)} -> {new}"
        yield Mutation(file, what, found.start(1), found.end(1), new)
    for found in re.finditer(r"^\t(COUNTER_\w+) = (\d+),", text, re.M):
        new = str(int(found.group(2)) ^ 1)
        yield Mutation(file, f"header: {found.group(1)} = {new}", found.start(2), found.end(2), new)


def mutations() -> list[Mutation]:
    """All of them."""
    made: list[Mutation] = []
    for name in ("verdicts", "roles", "counters", "layout", "ladder", "functions"):
        file = f"{CATALOGUE}/{name}.py"
        text = (ROOT / file).read_text()
        makers = [rows, numbers] + ([swaps] if name == "counters" else [])
        for maker in makers:
            made += maker(file, text)
    header = "probes/contract.h"
    return [*made, *header_lines(header, (ROOT / header).read_text())]


def noticed(mutation: Mutation, tree: Path) -> bool:
    """Whether a test fails in this copy of the checkout; it is left as it was."""
    path = tree / mutation.file
    text = path.read_text()
    path.write_text(text[: mutation.start] + mutation.new + text[mutation.end :])
    try:
        words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS]
        done = subprocess.run(words, cwd=tree, capture_output=True, text=True)
        return done.returncode != 0
    finally:
        path.write_text(text)


def main() -> int:
    """Exit 1 if any mutation passes every test."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="only every n-th mutation")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    wanted = mutations()[:: arguments.every]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ebpfwatch-mutations-") as directory:
        trees = []
        for number in range(arguments.jobs):
            tree = Path(directory) / str(number)
            for name in COPIED:
                source = ROOT / name
                tree.mkdir(exist_ok=True)
                if source.is_dir():
                    ignored = shutil.ignore_patterns("__pycache__", "fixtures")
                    shutil.copytree(source, tree / name, ignore=ignored)
                else:
                    shutil.copy(source, tree / name)
            trees.append(tree)
        for tree in trees:
            if noticed(Mutation("README.md", "nothing", 0, 0, ""), tree):
                raise SystemExit("the tests fail without any mutation: mend that first")

        def unseen(number: int) -> int:
            missed = 0
            for mutation in wanted[number :: arguments.jobs]:
                seen = noticed(mutation, trees[number])
                missed += not seen
                word = "noticed" if seen else "UNSEEN "
                print(f"{word}  {mutation.file}: {mutation.what}", flush=True)
            return missed

        with ThreadPoolExecutor(arguments.jobs) as pool:
            missed = sum(pool.map(unseen, range(arguments.jobs)))
    print(f"{len(wanted)} mutations in {time.monotonic() - began:.0f} s, {missed} unseen")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
