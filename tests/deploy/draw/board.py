"""The part of Grafana's server: variables, queries, and the page that Chromium draws."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.parse
from pathlib import Path
from typing import Any

from tests.deploy.conftest import NODE_MODULES, node_module, program
from tests.deploy.stack import api

HERE = Path(__file__).parent
_STYLE = """
body { margin: 0; font-family: 'DejaVu Sans', sans-serif; font-size: 14px; }
.nothing { display: grid; place-items: center; height: 100%; opacity: .65; }
"""


def bundle(directory: Path) -> Path:
    """dashboard.tsx with everything that it needs, for a browser."""
    for module in ("@grafana/ui", "@grafana/data", "react-dom", "rxjs"):
        node_module(module)
    target = directory / "board.js"
    words = [node_module("esbuild") / "bin/esbuild", HERE / "dashboard.tsx", "--bundle"]
    words += [f"--outfile={target}", '--define:process.env.NODE_ENV="production"']
    words += [f"--loader:.{kind}=dataurl" for kind in ("svg", "woff2", "ttf")]
    ran = subprocess.run(
        [program("node")["node"], *map(str, words), "--log-level=error"],
        env={**os.environ, "NODE_PATH": str(NODE_MODULES)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return target


def filled(text: str, values: dict[str, str]) -> str:
    """With the variables put in; none may be left."""
    for name, value in values.items():
        text = text.replace(f"${name}", value.replace("\\", "\\\\"))
    assert "$" not in text, text
    return text


def answers(
    url: str, dashboard: dict[str, Any], values: dict[str, str], start: float, end: float
) -> dict[str, list[dict[str, Any]]]:
    """What Prometheus says to each panel's queries, of this time."""
    results: dict[str, list[dict[str, Any]]] = {}
    step = max(1.0, (end - start) / 400)
    for panel in dashboard["panels"]:
        results[panel["id"]] = []
        for target in panel.get("targets", []):
            query = filled(target["expr"], values)
            if target["instant"]:
                series = api(url, "query", query=query, time=str(end))["result"]
                series = [{**one, "values": [one["value"]]} for one in series]
            else:
                times = {"start": str(start), "end": str(end), "step": str(step)}
                series = api(url, "query_range", query=query, **times)["result"]
            results[panel["id"]].append(
                {
                    "refId": target["refId"],
                    "legend": target["legendFormat"],
                    "table": target["format"] == "table",
                    "series": series,
                }
            )
    return results


def drawn(browser: Any, script: Path, data: dict[str, Any], picture: Path) -> list[dict[str, Any]]:
    """What each panel holds, once the browser has drawn them all; the picture is of all of it."""
    page = script.with_name("board.html")
    style = script.with_suffix(".css")
    css = style.read_text() if style.exists() else ""
    page.write_text(
        f"<!doctype html><meta charset=utf-8><style>{css}{_STYLE}</style><div id=root></div>"
        f"<script>var DATA = {json.dumps(data)};</script><script src={script.name}></script>"
    )
    size = {"width": 1600, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(f"file://{urllib.parse.quote(str(page))}")
    deadline = time.monotonic() + 60
    while not browser.execute_script("return window.DRAWN || window.FAILED"):
        assert time.monotonic() < deadline, browser.get_log("browser")
        time.sleep(0.2)
    failed = browser.execute_script("return window.FAILED")
    assert not failed, failed
    height = browser.execute_script("return document.getElementById('board').offsetHeight")
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**size, "height": height})
    time.sleep(0.5)
    assert browser.save_screenshot(str(picture))
    summary: list[dict[str, Any]] = browser.execute_script("return window.SUMMARY")
    return summary


def host_of(instance: str) -> str:
    """The regex of the variable $host."""
    found = re.match("([^:]+)", instance)
    assert found is not None
    return found.group(1)
