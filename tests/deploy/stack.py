"""Debian's Prometheus and Alertmanager on ports of their own, and a webhook that hears them."""

from __future__ import annotations

import contextlib
import http.server
import json
import queue
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.deploy.conftest import program
from tests.live.conftest import free_port
from tests.live.harness import PATIENCE, until

SHIPPED = Path(__file__).parents[2] / "deploy/prometheus"


def shipped(name: str, directory: Path, changes: dict[str, str]) -> Path:
    """A copy of a shipped file with other words in it."""
    text = (SHIPPED / name).read_text()
    for old, new in changes.items():
        assert old in text, f"{name} has no {old}"
        text = text.replace(old, new)
    copy = directory / name
    copy.write_text(text)
    return copy


@contextlib.contextmanager
def running(log: Path, url: str, *words: object) -> Iterator[str]:
    """A server that answers /-/ready, for as long as the block lasts."""
    with open(log, "wb") as output:
        process = subprocess.Popen([str(w) for w in words], stdout=output, stderr=output)
    try:
        until(lambda: process.poll() is not None or answers(f"{url}/-/ready"), log.read_text)
        assert process.poll() is None, log.read_text()
        yield url
    finally:
        process.terminate()
        process.wait(PATIENCE)


def prometheus(directory: Path, config: Path) -> contextlib.AbstractContextManager[str]:
    """Prometheus with this configuration; its address."""
    port = free_port()
    return running(
        directory / "prometheus.log",
        f"http://127.0.0.1:{port}",
        program("prometheus")["prometheus"],
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    )


def alertmanager(
    directory: Path, config: Path, port: int
) -> contextlib.AbstractContextManager[str]:
    """Alertmanager with this configuration on this port; its address."""
    return running(
        directory / "alertmanager.log",
        f"http://127.0.0.1:{port}",
        program("prometheus-alertmanager")["prometheus-alertmanager"],
        f"--config.file={config}",
        f"--storage.path={directory / 'alertmanager'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    )


@contextlib.contextmanager
def webhook(port: int) -> Iterator[queue.Queue[tuple[str, dict[str, Any]]]]:
    """What Alertmanager posts, as (path, body)."""
    posted: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posted.put((self.path, json.loads(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Hook)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield posted
    server.shutdown()
    server.server_close()
    thread.join()


def answers(url: str) -> bool:
    """Whether it says 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def api(url: str, path: str, **query: str) -> Any:
    """The data of an answer of Prometheus's API."""
    asked = f"{url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
        return json.load(answer)["data"]
