"""The real thing: this kernel, real ext4 on a loop device, the daemon as a process of its own.

What a test lacks here is named in its skip reason, never passed over in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.harness import (
    ROOT,
    DaemonProcess,
    build,
    build_storm,
    command,
    free_port,
    load_session,
    loaded_programs,
    loop_ext4,
    selftest,
    start_daemon,
    until,
    watching,
    write_config,
)

__all__ = [
    "ROOT",
    "DaemonProcess",
    "command",
    "free_port",
    "load_session",
    "loaded_programs",
    "selftest",
    "start_daemon",
    "until",
    "write_config",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is live; without root and BCC nothing of it can run."""
    for item in items:
        if "tests/live" in str(item.path):
            item.add_marker(pytest.mark.live)
            item.add_marker(pytest.mark.needs("root", "bcc"))


@pytest.fixture(scope="session")
def storm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The create+unlink storm, compiled."""
    return build_storm(tmp_path_factory.mktemp("bin"))


@pytest.fixture(scope="session")
def race(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks that ask for one cold inode at once, compiled."""
    return build(tmp_path_factory.mktemp("bin"), "race")


@pytest.fixture(scope="session")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh ext4 filesystem on a loop device."""
    with loop_ext4(tmp_path_factory.mktemp("ext4")) as mount:
        yield mount


@pytest.fixture
def daemon(tmp_path: Path, ext4: Path) -> Iterator[DaemonProcess]:
    """A daemon with the example's settings."""
    with watching(tmp_path) as running:
        yield running
