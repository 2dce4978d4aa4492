"""The status page of the real daemon in a real browser."""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from ebpfwatch.commands.selftest import double_free, open_playback
from ebpfwatch.system.lock import running_daemon
from tests.deploy.conftest import node_module
from tests.live.conftest import DaemonProcess

DOCS = Path(__file__).parents[2] / "docs"
HOSTILE = b"<img src=x onerror=document.title='owned'>\xe2\x80\xae&amp;'\""


def view(browser: Any, scheme: str, width: int) -> None:
    """As somebody with this taste and this screen."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    resize(browser, width, 800)


def resize(browser: Any, width: int, height: int) -> None:
    """The window's inner size in pixels."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )


@pytest.fixture
def found(daemon: DaemonProcess) -> DaemonProcess:
    """A daemon that has judged a double free of a file with a hostile name."""
    daemon.wait_proven()
    bed = open_playback(running_daemon(daemon.run_directory))
    bed.inode.name = HOSTILE
    double_free(bed)
    daemon.wait_findings()
    return daemon


def test_a_hostile_name_is_text(found: DaemonProcess, browser: Any) -> None:
    """No element of it exists, no script has run, every character of it can be read."""
    view(browser, "light", 1100)
    browser.get_log("browser")  # of the pages that other tests looked at
    browser.get(found.url)
    shown = browser.find_element("css selector", ".findings").text
    assert "<img src=x onerror=document.title='owned'>\\u202e&amp;'\"" in shown
    assert browser.find_elements("tag name", "img") == []
    assert browser.title.startswith("ebpfwatch on ")
    assert browser.get_log("browser") == []


def test_scripts_cannot_run_at_all(found: DaemonProcess, browser: Any) -> None:
    """Even if a name got through: the policy forbids scripts, and foreign styles and images."""
    browser.get(found.url)
    browser.execute_script(
        "const s = document.createElement('script'); s.textContent = 'document.title = 1';"
        "document.body.append(s);"
        "const i = document.createElement('img'); i.src = '/x.png'; document.body.append(i);"
        "const p = document.createElement('p'); p.setAttribute('style', 'color: red');"
        "document.body.append(p);"
    )
    time.sleep(0.5)
    assert browser.title != "1"
    refused = "\n".join(entry["message"] for entry in browser.get_log("browser"))
    for directive in ("script-src", "img-src", "style-src"):
        assert directive in refused, refused


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible(found: DaemonProcess, browser: Any, scheme: str) -> None:
    """axe-core finds nothing: contrast, names, order of headings, landmarks."""
    axe = (node_module("axe-core") / "axe.min.js").read_text()
    browser.get(found.url)
    one = browser.find_element("css selector", ".findings h3 a").get_attribute("href")
    assert "/findings/" in one
    for width, page in itertools.product((1100, 400), (found.url, f"{found.url}/runbook", one)):
        view(browser, scheme, width)
        browser.get(page)
        browser.execute_script(axe)
        result = browser.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
        assert len(result["passes"]) > 15
        broken = [(v["id"], v["nodes"][0]["html"][:200]) for v in result["violations"]]
        assert broken == [], json.dumps(broken, indent=1)
        inner = "return [document.documentElement.scrollWidth, window.innerWidth]"
        page_width, window_width = browser.execute_script(inner)
        assert page_width <= window_width


def test_it_is_shown_in_light_and_dark(found: DaemonProcess, browser: Any, tmp_path: Path) -> None:
    """Pictures for docs/ (`make screenshots` keeps them): each hook, the finding, every zone."""
    where = DOCS if os.environ.get("EBPFWATCH_SCREENSHOTS") else tmp_path
    grounds = set()
    for scheme in ("light", "dark"):
        view(browser, scheme, 1100)
        browser.get(found.url)
        text = browser.find_element("tag name", "main").text
        for part in ("All quiet", "self-test", "any_free", "alive", "Normal", "inodes evicted"):
            assert part in text, part
        assert len(browser.find_elements("css selector", "figure svg .free")) >= 1
        # Which machine drew the picture is nobody's business.
        browser.execute_script("document.querySelector('header span').textContent = 'a host'")
        resize(browser, 1100, browser.execute_script("return document.body.scrollHeight"))
        assert browser.save_screenshot(str(where / f"page-{scheme}.png"))
        color = "return getComputedStyle(document.body).backgroundColor"
        grounds.add(browser.execute_script(color))
    assert len(grounds) == 2
