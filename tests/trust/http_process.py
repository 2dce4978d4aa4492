"""`make http-process`: what it would cost to answer HTTP in a process of its own.

Three ways to run the daemon's own server: in a thread, as it is; in a child that is forked before
anything is loaded; in an interpreter of its own.  A child asks for each page over a socket, because
what is shown is known to the daemon alone.  Printed: memory of both, and how long a scrape takes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path
from typing import Any

from ebpfwatch import config
from ebpfwatch.daemon import loop, start
from ebpfwatch.sinks.web import Web
from tests.trust.figures import record

ROOT = Path(__file__).parents[2]
KIND = "text/plain; version=0.0.4; charset=utf-8"
BODY = (ROOT / "tests/golden/metrics.txt").read_bytes()
SCRAPES = 100
WAYS = {
    "thread": "a thread, as it is",
    "fork": "a child, forked before loading",
    "spawn": "an interpreter of its own",
}
_LENGTH = struct.Struct("<I")
#: Certificate and key in one directory, where TLS is measured; the loopback's name is not checked.
_OPENSSL = "openssl req -x509 -newkey ec -nodes -days 2 -pkeyopt ec_paramgen_curve:prime256v1"


class Here:
    """The page, made in this process."""

    def metrics(self, accept: str) -> tuple[str, bytes]:
        """Content type and body."""
        return KIND, BODY


class Asked:
    """The page, asked of the daemon."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def metrics(self, accept: str) -> tuple[str, bytes]:
        """Content type and body."""
        self._connection.sendall(_LENGTH.pack(len(accept)) + accept.encode())
        return KIND, _read(self._connection, *_LENGTH.unpack(_read(self._connection, 4)))


def _read(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return bytes(data)


def answer(connection: socket.socket) -> None:
    """What the daemon's end does for a child."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            _read(connection, *_LENGTH.unpack(_read(connection, 4)))
            connection.sendall(_LENGTH.pack(len(BODY)) + BODY)


def bound(web_config: str) -> Web:
    """The server, as the daemon makes it."""
    settings = config.Config()
    metrics = dataclasses.replace(settings.metrics, listen="127.0.0.1:0", web_config=web_config)
    web = start.bind(dataclasses.replace(settings, metrics=metrics))
    assert web is not None
    return web


def serve(web: Web, pages: Any) -> None:
    """Until this process ends."""
    web._server.pages = pages
    web._server.serve()


def memory(pid: int) -> dict[str, float]:
    """MB of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return {"resident": kilobytes["Rss"] / 1000, "private": private / 1000}


def measure(way: str, web_config: str) -> None:
    """One way, in a process that did nothing else; prints JSON."""
    mine, theirs = socket.socketpair()
    child = 0
    if way == "spawn":
        words = [sys.executable, "-m", "tests.trust.http_process", "child", web_config]
        process = subprocess.Popen(
            [*words, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        child, url = process.pid, process.stdout.readline().decode().strip()
    else:
        web = bound(web_config)
        url = web.url
        if way == "fork":
            child = os.fork()
            if child == 0:
                serve(web, Asked(theirs))
        else:
            threading.Thread(target=serve, args=(web, Here()), daemon=True).start()
    if child:
        threading.Thread(target=answer, args=(mine,), daemon=True).start()
    words = [sys.executable, "-m", "tests.trust.http_process", "scrape", url]
    try:
        ran = subprocess.run(words, stdout=subprocess.PIPE, check=True, timeout=120)
    finally:
        size = memory(child) if child else None
        if child:
            os.kill(child, 9)
    times = json.loads(ran.stdout)
    found = {"times": times, "main": memory(os.getpid()), "child": size}
    print(json.dumps(found), flush=True)
    os._exit(0)  # the server's thread has no end


def scrape(url: str) -> None:
    """So many scrapes, each by a connection of its own; prints their milliseconds as JSON."""
    import ssl

    host, _, port = url.rpartition("/")[2].rpartition(":")
    times = []
    for _ in range(SCRAPES):
        began = time.perf_counter()
        if url.startswith("https"):
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, int(port), context=context
            )
        else:
            connection = http.client.HTTPConnection(host, int(port))
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            assert connection.getresponse().read() == BODY
        times.append(1000 * (time.perf_counter() - began))
    print(json.dumps(times))


def main() -> int:
    """The table."""
    lines = [
        "| HTTP in | | median | 99 % | daemon: resident | private | child: resident | private |",
        "|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as directory:
        names = ["-keyout", f"{directory}/key", "-out", f"{directory}/pem", "-subj", "/CN=x"]
        subprocess.run([*_OPENSSL.split(), *names], check=True, capture_output=True)
        file = Path(directory) / "web.yml"
        file.write_text("tls_server_config: {cert_file: pem, key_file: key}\n")
        for web_config, tls in (("", ""), (str(file), "TLS")):
            for way, words in WAYS.items():
                ran = subprocess.run(
                    [sys.executable, "-m", "tests.trust.http_process", way, web_config],
                    stdout=subprocess.PIPE,
                    check=True,
                )
                found = json.loads(ran.stdout)
                times = sorted(found["times"])
                sizes = [found["main"], found["child"]]
                cells = [
                    f"{size[what]:.1f} MB" if size else ""
                    for size in sizes
                    for what in ("resident", "private")
                ]
                p99 = times[int(len(times) * 0.99)]
                lines.append(
                    f"| {words} | {tls} | {statistics.median(times):.1f} ms | {p99:.1f} ms |"
                    f" {' | '.join(cells)} |"
                )
    lines += ["", f"{SCRAPES} scrapes of {len(BODY)} bytes each, one after the other."]
    record("http", "make http-process", lines, ROOT / "docs/security.md")
    return 0


if __name__ == "__main__":
    assert isinstance(loop, types.ModuleType)  # all that the daemon imports is in memory
    if sys.argv[1:2] == ["child"]:
        server = bound(sys.argv[2])
        print(server.url, flush=True)
        serve(server, Asked(socket.socket(fileno=int(sys.argv[3]))))
    elif sys.argv[1:2] == ["scrape"]:
        scrape(sys.argv[2])
    elif sys.argv[1:]:
        measure(sys.argv[1], sys.argv[2])
    else:
        sys.exit(main())
