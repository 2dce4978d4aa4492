"""What the pages for people name must exist: links, headings, make targets, commands, alerts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpfwatch.commands import COMMANDS

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("README*.md")), *DOCS]

EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings: lower case, no marks, - for a blank."""
    prose = re.sub(r"(?ms)^```.*?^```", "", text)
    headings = re.findall(r"(?m)^#{1,6} +(.+?) *$", prose)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path, text: str) -> Iterator[str]:
    """The relative links of a page that lead nowhere."""
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            yield link


def code(text: str) -> str:
    """What stands in backquotes or in a block of commands, a piece a line."""
    blocks = re.findall(r"(?ms)^```\w*\n(.*?)^```", text)
    prose = re.sub(r"(?ms)^```.*?^```", "", text)
    pieces = [*blocks, *re.findall(r"`([^`\n]+)`", prose), *re.findall(r"(?m)^    (.+)$", prose)]
    return "\n".join(pieces)


def targets(text: str) -> set[str]:
    """The targets of `make` commands; variables (KERNELS=4.19) and comments are left out."""
    command = r"(?m)(?:^ *|sudo |&& |\"|[A-Z_]+=\S+ )make((?: [a-z][a-z-]*)+)"
    return {word for words in re.findall(command, code(text)) for word in words.split()}


def commands(text: str) -> set[str]:
    """The words that follow `ebpfwatch` in a command."""
    return set(re.findall(r"(?<![\w./-])ebpfwatch ([a-z][a-z-]*)", code(text)))


@EACH_PAGE
def test_links_lead_somewhere(page: Path) -> None:
    """A file or heading that was renamed must be renamed in the links, too."""
    assert list(broken(page, page.read_text())) == []


@EACH_PAGE
def test_commands_that_are_named_exist(page: Path) -> None:
    """`make TARGET` and `ebpfwatch COMMAND`."""
    made = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    assert targets(page.read_text()) - made == set()
    assert commands(page.read_text()) - set(COMMANDS) == set()


@EACH_PAGE
def test_alerts_and_metrics_that_are_named_exist(page: Path) -> None:
    """Alerts are those of the rules, metrics those of a scrape."""
    text = page.read_text()
    rules = (ROOT / "deploy/prometheus/ebpfwatch.rules.yml").read_text()
    alerts = set(re.findall(r"alert: (\w+)", rules)) | {"EbpfwatchError"}
    assert set(re.findall(r"\bEbpfwatch[A-Z]\w+", text)) - alerts == set()
    scrape = (ROOT / "tests/golden/metrics.txt").read_text()
    assert [
        name for name in re.findall(r"\bebpfwatch_[a-z0-9_]+", text) if name not in scrape
    ] == []


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_a_page_says_for_whom_it_is(page: Path) -> None:
    """In the first line below its title."""
    title, empty, first = page.read_text().splitlines()[:3]
    language = "写给" if page.name.endswith(".zh-CN.md") else "For "
    assert title.startswith("# ") and not empty and first.startswith(language)


def test_what_leads_nowhere_is_found(tmp_path: Path) -> None:
    """A missing file, a missing heading, a target and a command that do not exist."""
    page = tmp_path / "page.md"
    text = "# One `two`\n[a](page.md) [b](#one-two) [c](#three) [d](no.md) [e](https://x/y)\n"
    page.write_text(text)
    assert list(broken(page, text)) == ["#three", "no.md"]
    told = (
        "`sudo make lint nothing KERNELS=4.19`\n\n    ebpfwatch no-such -v\n\nthey make a noise\n"
    )
    assert targets(told) == {"lint", "nothing"}
    assert commands(told) == {"no-such"}
