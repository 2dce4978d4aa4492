"""The Chinese pages say the same as the English ones: whoever changes one changes the other.

Held together are what a reader types or searches for: commands, blocks, names in backquotes, links,
sections, alerts. The sentences are free.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.commands import COMMANDS

ROOT = Path(__file__).parents[2]
CHINESE = [*ROOT.glob("*.zh-CN.md"), *sorted((ROOT / "docs").glob("*.zh-CN.md"))]
EACH_PAGE = pytest.mark.parametrize("page", CHINESE, ids=lambda page: page.name)


def english(page: Path) -> Path:
    """The page that this one was written after."""
    return page.with_name(page.name.replace(".zh-CN", ""))


def blocks(text: str) -> list[str]:
    """The lines of blocks, without the comments behind commands, which are written anew."""
    fenced = [
        line
        for block in re.findall(r"(?ms)^```\w*\n(.*?)^```", text)
        for line in block.splitlines()
    ]
    indented = re.findall(r"(?m)^    (.+)$", re.sub(r"(?ms)^```.*?^```", "", text))
    return [re.sub(r"\s+#\s.*", "", line) for line in (*fenced, *indented)]


def names(text: str) -> set[str]:
    """What stands in backquotes, line breaks as blanks."""
    prose = re.sub(r"(?ms)^```.*?^```", "", text)
    return {" ".join(name.split()) for name in re.findall(r"`([^`]+)`", prose)}


def links(text: str) -> set[str]:
    """Where links lead: to the page in either language."""
    found = {link.replace(".zh-CN", "") for link in re.findall(r"\]\(([^)\s]+)\)", text)}
    return found - {"README.md", "runbook.md", "case.md"}


def sections(text: str) -> list[str]:
    """The level of each heading, and its text where it is the name of an alert."""
    prose = re.sub(r"(?ms)^```.*?^```", "", text)
    return [
        f"{level} {title if title.startswith('Ebpfwatch') else ''}".strip()
        for level, title in re.findall(r"(?m)^(#+) +(.+)$", prose)
    ]


def test_the_pages_are_there() -> None:
    """What somebody who reads Chinese needs first."""
    assert [page.name for page in CHINESE] == [
        "README.zh-CN.md",
        "case.zh-CN.md",
        "runbook.zh-CN.md",
    ]


@EACH_PAGE
def test_the_chinese_page_says_the_same(page: Path) -> None:
    """If this fails after a change of the English page: make the same change in the Chinese one."""
    theirs, ours = english(page).read_text(), page.read_text()
    assert blocks(ours) == blocks(theirs), f"the blocks of {page.name}"
    assert (names(theirs) - names(ours), names(ours) - names(theirs)) == (set(), set())
    assert (links(theirs) - links(ours), links(ours) - links(theirs)) == (set(), set())
    assert sections(ours) == sections(theirs), f"the sections of {page.name}"


@EACH_PAGE
def test_it_is_written_in_chinese(page: Path) -> None:
    """More Chinese than English; its first words say for whom it is."""
    text = page.read_text()
    written = len(re.findall(r"[\u4e00-\u9fff]", text))
    assert written > len(re.findall(r"[A-Za-z]{2,}", re.sub(r"`[^`]*`|\([^)]*\)", "", text)))
    assert text.split("\n")[2].startswith("写给")


def test_it_names_all_there_is() -> None:
    """Each command and verdict in the README, each alert in the runbook."""
    readme = (ROOT / "README.zh-CN.md").read_text()
    assert [name for name in COMMANDS if f"`ebpfwatch {name}" not in readme] == []
    assert [v.value for v in Verdict if f"`{v.value}`" not in readme] == []
    rules = (ROOT / "deploy/prometheus/ebpfwatch.rules.yml").read_text()
    runbook = (ROOT / "docs/runbook.zh-CN.md").read_text()
    alerts = set(re.findall(r"alert: (\w+)", rules))
    assert alerts == set(re.findall(r"(?m)^## (\w+)$", runbook))


def test_a_difference_is_seen() -> None:
    """By the functions above, where there is one."""
    one, other = "# A\n\n    make a  # why\n\n`x`\n", "# B\n\n    make a  # 为什么\n\n`x`\n"
    assert blocks(one) == blocks(other) == ["make a"] and sections(one) == sections(other)
    assert names("`a\nb` `c`") == {"a b", "c"} and links("[a](b.zh-CN.md#c)") == {"b.md#c"}
    assert sections("## EbpfwatchDown") != sections("## EbpfwatchUp")
