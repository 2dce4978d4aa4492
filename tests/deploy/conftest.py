"""Deployed for real: Debian's Prometheus, Alertmanager and Chromium around the real daemon.

`make test-deploy` installs what these tests need; what is missing is named in a skip reason.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.conftest import daemon, ext4

__all__ = ["daemon", "ext4"]

#: What npm has put there: axe-core, @grafana/schema, typescript.
NODE_MODULES = Path(__file__).parents[2] / ".venv/npm/node_modules"

_CHROMIUM_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars"
    " --disable-background-networking --disable-component-update --disable-sync"
).split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Nothing here works without root."""
    for item in items:
        if "tests/deploy" in str(item.path):
            item.add_marker(pytest.mark.needs("root", "bcc"))


def program(*names: str) -> dict[str, str]:
    """Where each program is; skips, naming what is missing."""
    found = {name: shutil.which(name) for name in names}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}: sudo make test-deploy")
    return {name: str(path) for name, path in found.items()}


def node_module(name: str) -> Path:
    """A package from npm; skips where npm could not bring it."""
    path = NODE_MODULES / name
    if not path.exists():
        pytest.skip(f"npm has not brought {name}: sudo make test-deploy")
    return path


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium, headless, that keeps its console's messages."""
    program("chromium", "chromedriver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="no python3-selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for flag in [*_CHROMIUM_FLAGS, f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        service = webdriver.chrome.service.Service(shutil.which("chromedriver"))
        driver = webdriver.Chrome(service=service, options=options)
        yield driver
        driver.quit()
