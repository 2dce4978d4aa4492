"""The dashboard as people see it: drawn from a real Prometheus that scraped a real daemon.

Three moments of one machine: a quiet time, after a self-test, and after a finding and a killed
daemon that was started again.  What each panel must show then is the table EXPECTED; `make
dashboard-pictures` writes it with the pictures to docs/.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ebpfwatch.catalogue.verdicts import Kind, Verdict
from ebpfwatch.paths import Paths
from ebpfwatch.postmortem.last_boot import kernel_boot_id
from ebpfwatch.sinks.store import Store
from ebpfwatch.verdicts.finding import Confidence
from tests.deploy.draw.board import answers, bundle, drawn, host_of, marks, menus, step_of
from tests.deploy.stack import api, prometheus, shipped
from tests.live.conftest import free_port, start_daemon
from tests.live.harness import loop_ext4, selftest, until
from tests.unit.test_verdicts import judged

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PHASES = ("quiet", "selftest", "found")
CAUSE = next((v for v in Verdict if v.kind is Kind.CAUSE), Verdict.DOUBLE_EVICT)

#: What a panel shows: "value" (something that is not all zero), "any" (zero, too), "0", "empty",
#: or a text that one of its values must have.
EXPECTED: dict[str, tuple[str, str, str]] = {
    "Machines not watched": ("0", "0", "0"),
    "Hooks not proven alive": ("0", "0", "0"),
    "Confirmed": ("0", "0", "1"),
    "Candidates": ("0", "0", "1"),
    "Kernel complaints, last day": ("any", "any", "any"),
    "Free / low watermark": ("value", "value", "value"),
    "Machines": ("value", "value", "value"),
    "Findings that nobody has acknowledged": ("empty", "empty", "value"),
    "Findings since the boot": ("empty", "empty", "value"),
    "Complaints of the kernel since the boot": ("any", "any", "any"),
    "Errors of ext4": ("empty", "empty", "empty"),
    "Free memory of each zone, in parts of its low watermark": ("value", "value", "value"),
    "Tasks that wait for memory (PSI)": ("any", "any", "any"),
    "ext4 inodes evicted": ("value", "value", "value"),
    "ext4 inodes and dentries in memory": ("value", "value", "value"),
    "Hooks": ("value", "value", "value"),
    "Lost": ("any", "any", "any"),
    "From eviction to free": ("value", "value", "value"),
    "What the watcher costs": ("value", "value", "value"),
    "The watcher's memory": ("value", "value", "value"),
    "How far back a second free is found": ("value", "value", "value"),
}
#: Which annotations have a mark by then.  An alert waits for its rule's time.
MARKS: dict[str, set[str]] = {
    "quiet": set(),
    "selftest": {"Self-tests"},
    "found": {"Self-tests", "Findings", "Starts of the daemon", "Alerts"},
}
#: What is above the panels: menus with what they offer, switches of the marks, links.
HEAD = ("Data source", "Machine", "All", "db1:9866", "Findings", "Self-tests", "Alerts")
#: Grafana's own shades (theme.visualization), in words.
COLORS = {"#56A64B": "green", "#FF780A": "orange", "#E02F44": "red"}
#: Panels of which the test machine may have nothing: its kernel was never asked for them.
MAY_BE_EMPTY = {"Complaints of the kernel since the boot", "Lost"}


def generator() -> Any:
    """deploy/grafana/dashboard.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("d", ROOT / "deploy/grafana/dashboard.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_file_is_what_the_generator_writes() -> None:
    """`make dashboard` writes it."""
    made = generator()
    assert made.FILE.read_text() == made.text()


@dataclasses.dataclass
class Timeline:
    """A Prometheus with the history, and when each phase of it ended."""

    url: str
    instance: str
    start: float
    ends: dict[str, float]


def churn(directory: Path, stop: threading.Event) -> None:
    """Files come and go, as on any machine."""
    while not stop.wait(0.05):
        for number in range(20):
            (directory / f"file-{number}").touch()
        for number in range(20):
            (directory / f"file-{number}").unlink()


@pytest.fixture(scope="module")
def timeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Timeline]:
    """A quiet time, a self-test, then a daemon that is killed after two findings and started."""
    directory = tmp_path_factory.mktemp("timeline")
    listen = f"127.0.0.1:{free_port()}"
    shipped("ebpfwatch.rules.yml", directory, {})
    scrapes = {"interval: 15s": "interval: 1s", "127.0.0.1:9866": listen}
    config = shipped("prometheus.yml", directory, scrapes)
    stop = threading.Event()
    with loop_ext4(tmp_path_factory.mktemp("ext4")) as mount, prometheus(directory, config) as url:
        worker = threading.Thread(target=churn, args=(mount, stop))
        worker.start()
        daemon = start_daemon(directory, listen=listen, host="full")
        try:
            proven = 'count(ebpfwatch_hook_alive{hook!="reclaim"} == 1) > 3'
            until(lambda: api(url, "query", query=proven)["result"], daemon.log.read_text)
            start = time.time()
            time.sleep(30)
            ends = {"quiet": time.time()}
            assert selftest(daemon).returncode == 0
            time.sleep(8)
            ends["selftest"] = time.time()
            daemon.process.send_signal(signal.SIGKILL)
            daemon.process.wait(20)
            store = Store(directory / "state", keep=9)
            for number, (verdict, confidence) in enumerate(
                ((CAUSE, Confidence.CONFIRMED), (Verdict.DOUBLE_FREE, Confidence.PROBABLE))
            ):
                store.write(
                    dataclasses.replace(
                        judged(),
                        id=f"20260101T000000.00000{number}Z-0001",
                        verdict=verdict,
                        confidence=confidence,
                        boot_id=kernel_boot_id(Paths()),
                        ns=time.monotonic_ns(),
                    )
                )
            time.sleep(4)
            daemon = start_daemon(directory, listen=listen, host="full")
            until(lambda: api(url, "query", query=proven)["result"], daemon.log.read_text)
            time.sleep(20)
            ends["found"] = time.time()
            yield Timeline(url, listen, start, ends)
        finally:
            stop.set()
            worker.join()
            daemon.stop()


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawing program, bundled once."""
    return bundle(tmp_path_factory.mktemp("draw"))


def shows(panel: dict[str, Any], expected: str) -> bool:
    """Whether it holds what it must; NaN alone is never right."""
    if panel["title"] in MAY_BE_EMPTY and panel["rows"] == 0:
        return True
    if expected == "empty":
        return bool(panel["rows"] == 0)
    if panel["rows"] == 0 or panel["nan"]:
        return False
    if expected == "any":
        return True
    if expected == "value":
        return panel["zero"] is False
    return any(text["text"] == expected for text in panel["texts"])


def test_every_panel_shows_what_it_must(
    timeline: Timeline, script: Path, browser: Any, tmp_path: Path
) -> None:
    """None is empty, NaN or all zero where it should not be; no text is a raw number."""
    dashboard = json.loads((ROOT / "deploy/grafana/ebpfwatch.json").read_text())
    keep = os.environ.get("EBPFWATCH_SCREENSHOTS")
    values = {
        "instance": re.escape(timeline.instance),
        "host": re.escape(host_of(timeline.instance)),
        "__rate_interval": "5s",
    }
    shown: dict[str, dict[str, dict[str, Any]]] = {}
    offered = menus(timeline.url, dashboard, values)
    assert offered["instance"] == [timeline.instance]
    assert offered["host"] == [host_of(timeline.instance)]
    for phase in PHASES:
        found = marks(timeline.url, dashboard, values, timeline.start, timeline.ends[phase])
        data = {
            "dashboard": dashboard,
            "results": answers(
                timeline.url, dashboard, values, timeline.start, timeline.ends[phase]
            ),
            "from": timeline.start,
            "to": timeline.ends[phase],
            "step": step_of(timeline.start, timeline.ends[phase]),
            "theme": "light",
            "marks": found,
            "variables": offered,
        }
        # Which machine drew the picture is nobody's business.
        data = json.loads(json.dumps(data).replace(timeline.instance, "db1:9866"))
        picture = (DOCS if keep else tmp_path) / f"dashboard-{phase}.png"
        panels, painted, head = drawn(browser, script, data, picture)
        shown[phase] = {panel["title"]: panel for panel in panels}
        assert {mark["annotation"] for mark in found} == MARKS[phase]
        # Each was painted: two of one moment and one annotation are one line.
        assert painted == {
            name: len({mark["time"] for mark in found if mark["annotation"] == name})
            for name in MARKS[phase]
        }
        assert all(words in head for words in HEAD), head
    assert all(set(panels) == set(EXPECTED) for panels in shown.values())
    wrong = [
        (phase, title, expected[index], shown[phase][title])
        for title, expected in EXPECTED.items()
        for index, phase in enumerate(PHASES)
        if not shows(shown[phase][title], expected[index])
    ]
    assert wrong == [], json.dumps(wrong, indent=1)
    if keep:
        write_table(shown)


def write_table(shown: dict[str, dict[str, dict[str, Any]]]) -> None:
    """What each panel showed, between the marks of docs/dashboard.md."""
    lines = [
        "| panel | quiet | after a self-test | after findings and a restart |",
        "|---|---|---|---|",
    ]
    for title in EXPECTED:
        cells = [in_words(shown[phase][title]) for phase in PHASES]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    page = DOCS / "dashboard.md"
    text = re.sub(
        r"(?s)(<!-- panels -->\n).*?(<!-- end -->)",
        lambda found: found[1] + "\n".join(lines) + "\n" + found[2],
        page.read_text(),
    )
    page.write_text(text)


def in_words(panel: dict[str, Any]) -> str:
    """One cell."""
    if panel["rows"] == 0:
        return "says that there is nothing"
    if panel["type"] == "stat":
        first = panel["texts"][0]
        return f"{first['text']} ({COLORS.get(first['color'], first['color'])})"
    if panel["type"] == "table":
        return f"{panel['rows']} row{'s' if panel['rows'] > 1 else ''}"
    return f"{panel['series']} line{'s' if panel['series'] > 1 else ''}"
