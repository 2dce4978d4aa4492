"""The daemon's Python dependencies as they are installed here, pinned: for `make audit`.

Names from pyproject.toml, and bcc, which comes with the distribution's python3-bpfcc.
"""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path


def main() -> None:
    """One NAME==VERSION a line; raises ``PackageNotFoundError`` for one that is missing."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert listed is not None
    for name in [*re.findall(r'"([\w-]+)', listed.group(1)), "bcc"]:
        print(f"{name}=={importlib.metadata.version(name)}")


if __name__ == "__main__":
    main()
