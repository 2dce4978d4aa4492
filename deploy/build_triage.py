"""``make triage``: the command triage as one file, for machines that have only Python 3.7.

Takes the modules that the command imports, and nothing else; their code is as it stands here.
"""

from __future__ import annotations

import modulefinder
import shutil
import sys
import tempfile
import zipapp
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAIN = """\
import sys

from ebpfwatch.commands import main

sys.exit(main(["triage", *sys.argv[1:]]))
"""


def modules() -> list[Path]:
    """The files of ours that the command needs; it imports its own module by name."""
    finder = modulefinder.ModuleFinder([str(ROOT), *sys.path])
    for entry in ("ebpfwatch.commands", "ebpfwatch.commands.triage"):
        finder.import_hook(entry)
    names = (module.__file__ for name, module in finder.modules.items() if "ebpfwatch" in name)
    return sorted(Path(name) for name in names if name)


def build(directory: Path) -> Path:
    """Write the file; returns it."""
    target = directory / "ebpfwatch-triage.pyz"
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for file in modules():
            copy = Path(temporary) / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        (Path(temporary) / "__main__.py").write_text(MAIN)
        zipapp.create_archive(temporary, target, "/usr/bin/env python3", compressed=True)
    return target


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
