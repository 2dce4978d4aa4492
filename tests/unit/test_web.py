"""The status page and the server behind it: what is said, to whom, and what clients cannot do."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import html
import http.client
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from ebpfwatch.commands import selftest
from ebpfwatch.daemon import canary
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.host.zoneinfo import Zone
from ebpfwatch.kernel.hook import LoadedHook
from ebpfwatch.kernel.state import KernelState
from ebpfwatch.sinks import metrics, web
from ebpfwatch.sinks.status import BootState, Governed, Proofs, Status
from ebpfwatch.sinks.summary import Level, headline
from ebpfwatch.sinks.web import runbook, server, svg
from ebpfwatch.sinks.web.page import finding_page, page, runbook_page
from ebpfwatch.text.sizes import size
from ebpfwatch.verdicts.finding import Finding
from tests.unit.test_sinks import STATUS
from tests.unit.test_verdicts import judged

NOW = STATUS.started + 7200
EVICT = STATUS.kernel.hooks[0]
RECLAIM = dataclasses.replace(EVICT, role="reclaim")


def having(*hooks: LoadedHook) -> KernelState:
    """STATUS's, with these hooks alone."""
    return dataclasses.replace(STATUS.kernel, hooks=hooks)


def opened(**found: int) -> BootState:
    """STATUS's, with so many findings open; ``double_free_probable`` is what it says."""
    split = ((*name.rpartition("_")[::2], count) for name, count in found.items())
    pairs = {(verdict, confidence): count for verdict, confidence, count in split}
    return dataclasses.replace(STATUS.boot, open=pairs)


def shown(status: Status = STATUS, *findings: Finding) -> str:
    """The page."""
    return page(status, findings, NOW)


@given(st.text())
def test_no_name_can_become_markup(hostile: str) -> None:
    """Whatever a file, task or kernel calls itself, the page has the same tags as always."""

    def tags(text: str) -> list[str]:
        finding = dataclasses.replace(judged(), name=text, summary=text, id=text, reasons=(text,))
        hook = LoadedHook(text, text or "kind", text, reason=text)
        text = shown(dataclasses.replace(STATUS, kernel=having(hook)), finding)
        # The one attribute with a text in it: nothing in there may end it.
        return re.findall("<[^>]*>", re.sub("href='/findings/[^'<>]*'", "", text))

    assert tags(f"'\"><script>{hostile}") == tags("x")


def test_the_page_shows_names_as_text() -> None:
    """A file called like a script, with a character that turns the line around."""
    text = shown(STATUS, dataclasses.replace(judged(), name="<script>alert(1)</script>\u202e"))
    assert "name &lt;script&gt;alert(1)&lt;/script&gt;\\u202e" in text
    assert "no kprobes &lt;here&gt;" in text
    assert "SILENT" in text and "not proven yet" in text and "not used" in text


def test_what_the_governor_took_is_off_and_said() -> None:
    """Not "not proven yet": nobody tries to."""
    kernel = having(EVICT, dataclasses.replace(EVICT, role="unlink"))
    governed = Governed(33.0, ("unlink",))
    text = shown(dataclasses.replace(STATUS, kernel=kernel, governed=governed))
    assert "so it goes without unlink." in text and ">off<" in text
    assert "goes without" not in shown()


def test_a_test_finding_is_called_one() -> None:
    """Neither red nor in the headline."""
    boot = BootState({("double_free", "confirmed", True): 1})
    quiet = dataclasses.replace(STATUS, **{**ALIVE, "boot": boot})
    text = shown(quiet, dataclasses.replace(judged(), test=True))
    assert "self-test" in text and "report --tests" in text
    assert (headline(quiet).level, headline(quiet).what) == (Level.OK, "All quiet")


SURE: dict[str, Any] = {"boot": opened(double_free_confirmed=2)}
ALIVE: dict[str, Any] = {"kernel": having(EVICT), "proofs": Proofs({"evict": True})}


@pytest.mark.parametrize(
    ("changes", "level", "what", "alert"),
    [
        ({"ready": False}, Level.UNKNOWN, "Loading", ""),
        (SURE, Level.CRITICAL, "2 confirmed: double_free", "EbpfwatchDamage"),
        ({"early_warning": True}, Level.CRITICAL, "Early warning", "EbpfwatchEarlyWarning"),
        ({}, Level.CRITICAL, "Silent: any_free", "EbpfwatchHookSilent"),
        (
            {**ALIVE, "boot": opened(freed_in_reclaim_confirmed=3)},
            Level.WARNING,
            "3 candidates: freed_in_reclaim",
            "EbpfwatchCandidate",
        ),
        (
            {**ALIVE, "boot": opened(double_evict_probable=1)},
            Level.WARNING,
            "1 candidate: double_evict",
            "EbpfwatchCandidate",
        ),
        (
            {**ALIVE, "boot": opened(concurrent_unlink_confirmed=3)},
            Level.OK,
            "All quiet",
            "",
        ),
        (
            {**ALIVE, "proofs": Proofs({"evict": None})},
            Level.WARNING,
            "Nothing found, not all proven",
            "EbpfwatchHookUnproven",
        ),
        (
            {**ALIVE, "kernel": having(), "proofs": Proofs()},
            Level.WARNING,
            "Nothing found, not all proven",
            None,
        ),
        (
            {
                "kernel": having(EVICT, RECLAIM),
                "proofs": Proofs({"evict": True, "reclaim": None}),
            },
            Level.OK,
            "All quiet",
            "",
        ),
        (
            {**ALIVE, "sink_problems": {"store": "no room in /x"}},
            Level.WARNING,
            "Findings cannot be kept: store",
            "EbpfwatchSinkFailing",
        ),
        (
            {**ALIVE, "config_up_to_date": False},
            Level.WARNING,
            "A configuration is wrong",
            "EbpfwatchConfigNotRead",
        ),
    ],
)
def test_the_worst_is_the_headline(
    changes: dict[str, Any], level: Level, what: str, alert: str | None
) -> None:
    """A confirmed finding before a silent hook before a candidate; context is no headline."""
    found = headline(dataclasses.replace(STATUS, **changes))
    assert (found.level, found.what) == (level, what)
    assert alert is None or found.alert == alert
    assert not found.alert or f"id='{found.alert.lower()}'" in runbook_page("/runbook")


def test_what_is_acknowledged_is_told_and_no_alarm() -> None:
    """The count stays: the memory is as damaged as before."""
    found = headline(dataclasses.replace(STATUS, **ALIVE))
    assert found.level is Level.OK
    assert found.why.startswith("2 findings, none of them open, since this machine booted")


def test_the_page_says_where_a_finding_would_be_lost() -> None:
    """A full disk is not "all quiet"."""
    full = dataclasses.replace(
        STATUS, **ALIVE, sink_problems={"store": "no room in /x"}, sink_errors={"store": 3}
    )
    text = shown(full)
    assert "The sink store could take no finding now: no room in /x." in text
    assert "Findings not written to store since the start: 3." in text
    assert "All quiet" not in text


def test_a_finding_has_a_page_of_its_own() -> None:
    """Three sentences, what to do, the whole report; names are text there, too."""
    text = finding_page(dataclasses.replace(judged(), path="<script>x</script>"), NOW)
    assert "<script" not in text and "Path: &lt;script&gt;" in text
    for part in ("Nothing speaks against it.", "expect a crash", "/runbook#ebpfwatchdamage"):
        assert part in text, part
    assert f"report --ack {judged().id}" in text


@pytest.mark.parametrize("path", runbook.LANGUAGES)
def test_the_runbook_is_whole(path: str) -> None:
    """Every word of the file is on the page, every alert can be linked to, no mark is left over;
    each language leads to the others.
    """
    page_ = runbook_page(path)
    language, file = runbook.LANGUAGES[path]
    source = file.read_text()
    assert f"<html lang={language}>" in page_
    assert all(f"<a href='{other}'>" in page_ for other in set(runbook.LANGUAGES) - {path})
    for name in re.findall(r"(?m)^## (\w+)$", source):
        assert f"<h2 id='{name.lower()}'>{name}</h2>" in page_
    bare = html.unescape(re.sub("<[^>]*>", " ", page_[page_.index("<main>") :]))
    links = re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", source)
    assert re.findall(r"\w+", bare) == [
        word for word in re.findall(r"\w+", re.sub(r"(?m)^\d+\. ", "", links))
    ]
    assert "**" not in bare and "](" not in bare


@pytest.mark.parametrize(("free", "level"), [(0, 0), (10, 1), (19, 1), (20, 2), (30, 3), (99, 3)])
def test_the_level_is_where_free_stands(free: int, level: int) -> None:
    """A watermark reached counts as reached, as in the kernel's zone_watermark_ok()."""
    zone = Zone(0, "Normal", free, 10, 20, 30, 100)
    assert svg.level(zone) == level
    picture = svg.watermarks(zone)
    assert svg.LEVELS[level][1] in picture
    assert ("class=tip" in picture) == (free >= 60)


def test_a_zone_without_watermarks_divides_by_nothing() -> None:
    """All zero, as in a zone that is being offlined."""
    assert "0 B free" in svg.watermarks(Zone(0, "Movable", 0, 0, 0, 0, 1))


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1 << 20, "1.0 MiB"), (1 << 54, "16384.0 TiB")],
)
def test_sizes_are_for_people(count: int, text: str) -> None:
    """Three digits and a unit."""
    assert size(count) == text


@pytest.fixture
def served() -> Iterator[web.Web]:
    """The real server on a loopback port."""
    running = web.Web("127.0.0.1", 0)
    running.start(metrics.registry(lambda: STATUS), lambda: STATUS, tuple)
    yield running
    running.stop()


def address(running: web.Web) -> tuple[str, int]:
    """Host and port."""
    host, port = running.url.removeprefix("http://").split(":")
    return host, int(port)


def ask(running: web.Web, method: str, path: str) -> tuple[int, bytes, http.client.HTTPMessage]:
    """One request: code, body, headers."""
    connection = http.client.HTTPConnection(*address(running), timeout=10)
    connection.request(method, path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, answer.headers


def test_the_server_answers(served: web.Web) -> None:
    """/metrics, OpenMetrics on request, HEAD, 404; nothing else is a method."""
    assert b"ebpfwatch_findings_total" in ask(served, "GET", "/metrics")[1]
    asked = urllib.request.Request(
        f"{served.url}/metrics", headers={"Accept": "application/openmetrics-text"}
    )
    with urllib.request.urlopen(asked) as answer:
        assert answer.read().endswith(b"# EOF\n")
    assert ask(served, "HEAD", "/metrics")[:2] == (200, b"")
    assert ask(served, "GET", "/-/ready")[:2] == (200, b"ready\n")
    assert ask(served, "GET", "/x")[0] == 404
    assert ask(served, "POST", "/metrics")[0] == 501


def test_the_self_test_asks_no_proxy(served: web.Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the environment's would ask its own machine for our loopback address."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # made with the environment of before
    assert "ebpfwatch_findings_total" in selftest._scrape(served.url, 5)


def test_the_policy_lets_one_style_through(served: web.Web) -> None:
    """By its hash, on the page only; nothing at all elsewhere."""
    _, body, headers = ask(served, "GET", "/")
    style = re.search(rb"<style>(.*)</style>", body, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style.group(1)).digest()).decode()
    policy = headers["Content-Security-Policy"]
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; ")
    assert "unsafe" not in policy
    assert "style-src" not in ask(served, "GET", "/metrics")[2]["Content-Security-Policy"]


def test_a_defect_is_a_500_and_one_line(
    served: web.Web, capsys: pytest.CaptureFixture[str]
) -> None:
    """Never silence: a page that cannot be made is said, once."""
    served._server.pages.status = lambda: STATUS.nothing  # type: ignore[attr-defined]
    assert [ask(served, "GET", "/")[0] for _ in range(3)] == [500] * 3
    assert capsys.readouterr().err.count("cannot answer /: AttributeError") == 1


def send(running: web.Web, data: bytes) -> bytes:
    """What comes back for raw bytes; nothing where the server hangs up."""
    with socket.create_connection(address(running), timeout=10) as client:
        try:
            client.sendall(data)
            return client.makefile("rb").read()
        except ConnectionError:
            return b""


def test_a_request_has_a_bound(served: web.Web) -> None:
    """Long lines and many headers end at 16 KiB, not at the 6 MB of http.server."""
    assert b" 431 " in send(served, b"GET / HTTP/1.0\r\n" + b"X: " + b"y" * 20_000)
    assert b" 431 " in send(served, b"GET / HTTP/1.0\r\n" + b"X: y\r\n" * 3_000)
    assert b" 431 " in send(served, b"GET /" + b"y" * 20_000)
    assert b"400" in send(served, b"\x16\x03\x01 nonsense\r\n\r\n")
    assert ask(served, "GET", "/-/healthy")[0] == 200


@pytest.mark.parametrize("silent", [10, 600])
def test_idle_clients_keep_nobody_out(served: web.Web, silent: int) -> None:
    """Connections that say nothing, of the same machine as the scraper: no thread, bounded in
    number, and every scrape is answered.
    """
    before = threading.active_count()
    with contextlib.ExitStack() as stack:
        for _ in range(silent):
            stack.enter_context(socket.create_connection(address(served), timeout=10))
        for _ in range(20):
            assert ask(served, "GET", "/metrics")[0] == 200
        assert threading.active_count() == before
        assert len(served._server._visits) <= 256


def test_the_one_that_goes_is_told(served: web.Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest that has sent nothing gets a 503."""
    monkeypatch.setattr(server, "_PLAIN", (3, 2, 1))
    clients = [socket.create_connection(address(served), timeout=10) for _ in range(3)]
    refused = clients[0].recv(100)
    assert refused.startswith(b"HTTP/1.0 503 ") and b"Retry-After" in refused
    for client in clients:
        client.close()


def test_slow_readers_keep_nobody_out(served: web.Web) -> None:
    """Those who ask and do not read their answer; its bytes are there once, not for each."""
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.connect(address(served))
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        for _ in range(20):
            assert ask(served, "GET", "/metrics")[0] == 200


def test_the_reserve_is_for_who_was_served(served: web.Web) -> None:
    """An address that was answered before comes in where others fill the rest."""
    inner = served._server
    assert ask(served, "GET", "/metrics")[0] == 200
    deadline = time.monotonic() + 5
    while "loopback" not in inner._served:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert server._network("127.9.9.9") == server._network("::1") == "loopback"
    assert server._network("::ffff:10.0.0.1") == "10.0.0.1"
    assert server._network("2001:db8::1") == server._network("2001:db8::ffff%eth0")
    assert server._network("2001:db8:0:1::1") != server._network("2001:db8::1")


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.05, 3.0])
def test_a_client_that_trickles_is_shown_out(
    served: web.Web, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    """A byte at a time, or nothing at all: the clock of the request ends it."""
    monkeypatch.setattr(server, "REQUEST_SECONDS", 1.0)
    began = time.monotonic()
    with socket.create_connection(address(served), timeout=10) as client:
        with pytest.raises(OSError):
            while time.monotonic() < began + 10:
                client.sendall(b"G")
                time.sleep(pause)
    assert 1.0 <= time.monotonic() - began < 7.0


@pytest.mark.slow
def test_without_descriptors_it_neither_spins_nor_dies(
    served: web.Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EMFILE at accept: it pauses, makes room, and answers once there is some."""
    calls = []

    class Full:
        """A listener that cannot accept."""

        def __init__(self, real: socket.socket) -> None:
            self.real = real

        def accept(self) -> tuple[socket.socket, object]:
            calls.append(time.monotonic())
            if len(calls) < 6:
                raise OSError(24, "Too many open files")
            return self.real.accept()

        def fileno(self) -> int:
            return self.real.fileno()

        def close(self) -> None:
            self.real.close()

    inner = served._server
    inner._selector.unregister(inner._listener)
    inner._listener = Full(inner._listener)  # type: ignore[assignment]
    inner._selector.register(inner._listener, 1)
    began, spent = time.monotonic(), time.process_time()
    assert ask(served, "GET", "/-/healthy")[0] == 200
    assert time.monotonic() - began >= 5 * 0.2 and len(calls) < 20
    assert time.process_time() - spent < 0.5


def test_no_answer_is_lost_with_what_was_not_read(served: web.Web) -> None:
    """A client that has sent more than is read gets its answer all the same, not a reset."""
    for _ in range(20):
        answer = send(served, b"GET /-/healthy HTTP/1.0\r\n\r\n" + b"x" * 100_000)
        assert answer.endswith(b"healthy\n")


def test_a_name_that_is_not_ours_is_refused(served: web.Web) -> None:
    """DNS rebinding: a page on the web gives its own name our address."""
    port = address(served)[1]
    names = {"evil.example": 421, f"evil.example:{port}": 421, "localhost.evil.example": 421}
    names |= dict.fromkeys(("127.0.0.1", f"127.0.0.1:{port}", "localhost", "[::1]:80", ""), 200)
    names[socket.gethostname()] = 200
    for name, code in names.items():
        lines = f"GET /-/healthy HTTP/1.1\r\nHost: {name}\r\n\r\n"
        assert send(served, lines.encode()).startswith(f"HTTP/1.0 {code} ".encode()), name


def test_a_weight_of_nothing_is_not_wanted(served: web.Web) -> None:
    """ "Accept: application/openmetrics-text;q=0" says no."""
    for weight, wanted in (("q=0", False), ("q=0.000", False), ("q=0.1", True)):
        asked = urllib.request.Request(
            f"{served.url}/metrics",
            headers={"Accept": f"application/openmetrics-text; {weight}, text/plain"},
        )
        with urllib.request.urlopen(asked) as answer:
            assert answer.read().endswith(b"# EOF\n") == wanted


def test_what_is_refused_has_the_headers_of_every_answer(served: web.Web) -> None:
    """No page of http.server's own."""
    for request in (
        b"nonsense\r\n\r\n",
        b"\r\n\r\nGET",
        b"POST / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ):
        answer = send(served, request)
        assert b"Content-Security-Policy: default-src 'none'" in answer, answer
        assert b"nosniff" in answer and b"<html" not in answer


def test_the_threads_fit_the_unit() -> None:
    """All threads of the daemon at once leave room for a command of the operator's."""
    package = Path(server.__file__).parents[2]
    starts = {
        str(file.relative_to(package)): count
        for file in package.rglob("*.py")
        if (count := file.read_text().count("threading.Thread("))
        and not file.is_relative_to(package / "triage")  # a command of its own
    }
    assert starts == {
        "actions/__init__.py": 1,
        "daemon/canary.py": 1,  # at most canary._MOST_THREADS at once
        "loader/image.py": 1,  # in the child, which is gone before the others are there
        "sinks/web/passwords.py": 1,
        "sinks/web/server.py": 1,
        "system/log.py": 1,
        "system/worker.py": 1,  # the daemon has one, for the disk
    }
    unit = (package.parent / "deploy/ebpfwatch.service").read_text()
    limit = re.search(r"(?m)^TasksMax=(\d+)", unit)
    threads = 1 + sum(starts.values()) - 1 + canary._MOST_THREADS
    assert limit is not None and threads + 4 <= int(limit.group(1))


def test_a_taken_port_names_the_address(served: web.Web) -> None:
    """Exit 71."""
    host, port = address(served)
    with pytest.raises(EbpfwatchError, match=f"{host}:{port}") as raised:
        web.Web(host, port)
    assert raised.value.exit_code is Exit.OSERR


def test_listening_to_the_world_is_said_loudly(capsys: pytest.CaptureFixture[str]) -> None:
    """A warning, not a refusal; and on the page, and in a metric."""
    open_web = web.Web("0.0.0.0", 0)
    open_web._server.close()
    assert "open to the network without TLS and a password" in capsys.readouterr().err
    status = dataclasses.replace(STATUS, web=open_web.state())
    assert "without TLS and a password" in shown(status)
    assert b"ebpfwatch_web_exposed 1.0" in generate_latest(metrics.registry(lambda: status))
    assert "open to the network" not in shown()


def test_the_loopback_is_no_network(served: web.Web) -> None:
    """Nothing to warn of."""
    assert served.exposed == ""
