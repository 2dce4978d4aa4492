"""What a person reads: every text of the program is in one golden file, and reads like one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.messages import collected, texts

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/messages.txt"


def test_every_text_is_in_the_golden_file() -> None:
    """A change of wording is seen in review: `make messages` writes the file."""
    now, known = collected().splitlines(), GOLDEN.read_text().splitlines()
    new = [line for line in now if line not in known]
    gone = [line for line in known if line not in now]
    assert (new, gone) == ([], []), "read the new texts aloud, then: make messages"
    assert now == known, "the order has changed: make messages"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""A docstring here."""\nprint("one")', ["one"]),
        ('say(f"cannot read {name}: {error}", "err")', ["cannot read {}: {}", "err"]),
        ('raise EbpfwatchError("no " "way", f"try {x}")', ["no way", "try {}"]),
        ('parser.add_argument("--a", help="an option", metavar="FILE")', ["an option", "FILE"]),
        ('x = "free" if y else "not allocated since"', ["not allocated since"]),
        ("say(f\"ended{', with a reason' if why else str()}\")", ["ended{}", ", with a reason"]),
        ('re.compile("two words"); d["key"]; Path("a b")', []),
    ],
)
def test_what_is_a_text(source: str, expected: list[str]) -> None:
    """By the collector itself."""
    assert list(texts(source)) == expected


#: Words that only a programmer of this project would understand.
_INTERNAL = re.compile(r"\b(NoneType|lambda|traceback|kwargs|dict|tuple|str object|stdin|argv)\b")


def test_no_python_words() -> None:
    """In no text that is shown."""
    assert [line for line in collected().splitlines() if _INTERNAL.search(line)] == []


def test_the_messages_of_the_troubleshooting_page_are_real() -> None:
    """Each is a text of the program; ... stands for what is put in."""
    page = (ROOT / "docs/troubleshooting.md").read_text().partition("## Messages")[2]
    known = collected().splitlines()
    quoted = re.findall(r"(?m)^\| `([^`]+)`", page)
    assert len(quoted) > 10
    for message in quoted:
        parts = [part for part in re.split(r"\.\.\.", message) if part.strip(" :;")]
        assert any(all(part in line for part in parts) for line in known), message
