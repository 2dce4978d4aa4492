"""docs/adding.md: what a change touches. A list that is not true is worse than none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/adding.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def files(text: str) -> list[str]:
    """What a text names of the repository; HOOK and the like stand for a name to be chosen."""
    paths = r"(?:ebpfwatch|probes|tests|docs|deploy)/[\w./*-]+|\b[\w.-]+\.(?:md|yaml)\b"
    return [
        name
        for name in re.findall(paths, text)
        if not re.search("[A-Z]{3}[A-Z_]*[.]c|[A-Z]+[.]py", name)
    ]


@pytest.mark.parametrize("text", [TEXT, CONTRIBUTING], ids=["adding.md", "CONTRIBUTING.md"])
def test_every_file_that_is_named_exists(text: str) -> None:
    """A file that was renamed must be renamed here, too."""
    assert files(text)
    assert [name for name in files(text) if not list(ROOT.glob(name.rstrip("/.")))] == []


@pytest.mark.parametrize("text", [TEXT, CONTRIBUTING], ids=["adding.md", "CONTRIBUTING.md"])
def test_every_target_that_is_named_exists(text: str) -> None:
    """In backquotes, or in a block of commands."""
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    told = re.findall(r"(?m)(?:`|^    )(?:sudo )?make ([a-z -]+)", text)
    assert told and {word for words in told for word in words.split()} <= targets


def test_a_role_with_a_verdict_touches_15_files_at_most() -> None:
    """The first column of the first table."""
    table = TEXT.partition("\n## A verdict")[2].partition("\n## ")[0]
    cells = [cell for row in re.findall(r"(?m)^\| (.*?) \|", table)[2:] for cell in row.split(", ")]
    assert 10 <= len(cells) <= 15, cells
