"""The package, built once for all that look at it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built and checked by lintian, warnings being errors."""
    directory = tmp_path_factory.mktemp("package")
    subprocess.run(["sh", str(ROOT / "deploy/build-deb.sh"), str(directory)], check=True)
    return next(directory.glob("ebpfwatch_*_all.deb"))
