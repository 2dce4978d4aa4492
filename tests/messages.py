"""Every text of the program that a person may see, collected from its source.

``python3 -m tests.messages`` prints it; `make messages` keeps it as tests/golden/messages.txt, so
that a change of wording is seen in review.  A text is a string of two words or more, or any string
that is printed, logged, raised or shown as help; what is put in while the program runs is ``{}``.
Left out: docstrings, patterns, what other programs read (C, HTML, SQL-like queries), and the
catalogue, whose words are in a golden file already: docs/catalogue.md.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["collected", "texts"]

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ebpfwatch"

#: Functions whose every string a person sees, however short.
_TELLING = {"print", "say", "put", "EbpfwatchError", "ArgumentTypeError", "ValueError", "fail"}
#: Keywords of argparse that are shown.
_SHOWN = {"help", "description", "epilog", "metavar"}
#: Functions whose strings are patterns, paths or other programs' words.
_PATTERNS = {
    "compile",
    "match",
    "search",
    "sub",
    "fullmatch",
    "findall",
    "finditer",
    "split",
    "Path",
}
_SENTENCE = re.compile(r"[A-Za-z]{2,}[,:;.)]? \(?[A-Za-z{]")


def texts(source: str) -> Iterator[str]:
    """The texts of one file, in its order."""
    tree = ast.parse(source)
    skipped = {id(node) for node in _docstrings(tree)}
    yield from _walk(tree, skipped, False)


def _docstrings(tree: ast.AST) -> Iterator[ast.expr]:
    """A string that stands alone is one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value


def _walk(node: ast.AST, skipped: set[int], telling: bool) -> Iterator[str]:
    if id(node) in skipped:
        return
    text = _text(node)
    if text is not None:
        if (telling and re.search("[A-Za-z]{2}", text)) or _SENTENCE.search(text):
            yield text
        if isinstance(node, ast.JoinedStr):  # a choice between two texts inside of one
            for part in node.values:
                if isinstance(part, ast.FormattedValue):
                    yield from _walk(part.value, skipped, telling)
        return
    if isinstance(node, ast.Call):
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name in _PATTERNS:
            return
        yield from _walk(node.func, skipped, False)
        for argument in node.args:
            yield from _walk(argument, skipped, name in _TELLING)
        for keyword in node.keywords:
            shown = name in _TELLING or keyword.arg in _SHOWN
            yield from _walk(keyword.value, skipped, shown and keyword.arg != "end")
        return
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, skipped, telling and not isinstance(node, ast.Subscript))


def _text(node: ast.AST) -> str | None:
    """A string, with {} for what comes in; None for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values
        )
    return None


def collected() -> str:
    """The whole golden file: a heading a source file, below it a text a line."""
    parts = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.parent.name == "catalogue":
            continue
        found = list(dict.fromkeys(texts(path.read_text())))
        if found:
            lines = "".join(f"  {text.encode('unicode_escape').decode()}\n" for text in found)
            parts.append(f"{path.relative_to(ROOT)}\n{lines}")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(collected())
