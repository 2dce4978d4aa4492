"""What docs/install.md says, typed into a fresh Debian 12."""

from __future__ import annotations

import re
import time
from pathlib import Path

from tests.install.container import ROOT, run, system

__all__ = ["system"]

_MINUTES = 15


def steps() -> str:
    """The blocks a reader types, in order."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs/install.md").read_text(), re.M | re.S)
    assert len(blocks) > 4
    return "\n".join(blocks)


def test_from_nothing_to_an_alert(system: Path) -> None:
    """In under fifteen minutes, and with no word that is not in the document."""
    began = time.monotonic()
    said = run(system, steps(), _MINUTES)
    print(f"{time.monotonic() - began:.0f} s from nothing to the alert")
    assert re.search(r'^/selftest .*"alertname": ?"EbpfwatchSelftest"', said, re.M), said[-3000:]
    assert "TEST: double_free" in said, "the journal did not show the finding"
