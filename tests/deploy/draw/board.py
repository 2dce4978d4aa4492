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
    step = step_of(start, end)
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


def menus(url: str, dashboard: dict[str, Any], values: dict[str, str]) -> dict[str, list[str]]:
    """What each variable offers."""
    offered: dict[str, list[str]] = {}
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "datasource":
            offered[variable["name"]] = ["Prometheus"]
            continue
        wanted = re.fullmatch(
            r"label_values\((.*), (\w+)\)", filled(variable["query"]["query"], values)
        )
        assert wanted is not None, variable
        found = {one[wanted[2]] for one in api(url, "series", **{"match[]": wanted[1]})}
        if variable["regex"]:
            pattern = re.compile(variable["regex"].strip("/"))
            found = {named[1] for named in map(pattern.search, found) if named}
        offered[variable["name"]] = sorted(found)
    return offered


def marks(
    url: str, dashboard: dict[str, Any], values: dict[str, str], start: float, end: float
) -> list[dict[str, Any]]:
    """The annotations of this time: samples that follow each other are one mark with an end."""
    found: list[dict[str, Any]] = []
    step = step_of(start, end)
    times = {"start": str(start), "end": str(end), "step": str(step)}
    for annotation in dashboard["annotations"]["list"]:
        query = filled(annotation["expr"], values)
        for series in api(url, "query_range", query=query, **times)["result"]:
            title = re.sub(
                r"{{(\w+)}}",
                lambda name, labels=series["metric"]: labels.get(name[1], ""),  # type: ignore[misc]
                annotation["titleFormat"],
            )
            last = float("-inf")
            for time_, _ in series["values"]:
                if time_ > last + 1.5 * step:
                    mark = {"annotation": annotation["name"], "color": annotation["iconColor"]}
                    found.append({**mark, "title": title, "time": time_, "end": time_})
                found[-1]["end"] = last = time_
    return found


def step_of(start: float, end: float) -> float:
    """Seconds from one point to the next."""
    return max(1.0, (end - start) / 400)


def drawn(
    browser: Any, script: Path, data: dict[str, Any], picture: Path
) -> tuple[list[dict[str, Any]], dict[str, int], str]:
    """What each panel holds, once the browser has drawn them all; how many marks of each annotation
    were painted; the text above the panels.  The picture is of all of it.
    """
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
    browser.find_element("css selector", "#head input[aria-label=Machine]").click()
    time.sleep(0.5)
    assert browser.save_screenshot(str(picture))
    summary: list[dict[str, Any]] = browser.execute_script("return window.SUMMARY")
    painted: dict[str, int] = browser.execute_script("return window.PAINTED")
    head: str = browser.execute_script("return document.getElementById('head').innerText")
    return summary, painted, head


def host_of(instance: str) -> str:
    """The regex of the variable $host."""
    found = re.match("([^:]+)", instance)
    assert found is not None
    return found.group(1)
