"""Ten thousand visits: the daemon is afterwards what it was before."""

from __future__ import annotations

import os
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.conftest import DaemonProcess
from tests.live.harness import PATIENCE, until, watching

VISITS = 10_000
CLIENTS = 4


def belongings(pid: int) -> tuple[int, int, int]:
    """Resident bytes, open files, threads."""
    process = Path(f"/proc/{pid}")
    pages = int((process / "statm").read_text().split()[1])
    return (
        pages * os.sysconf("SC_PAGE_SIZE"),
        len(list((process / "fd").iterdir())),
        len(list((process / "task").iterdir())),
    )


@pytest.fixture
def steady(tmp_path: Path, ext4: Path) -> Iterator[DaemonProcess]:
    """A daemon whose governor is off: under four scrapers at full speed it closes hooks."""
    with watching(tmp_path, cpu_percent="0") as daemon:
        yield daemon


def test_ten_thousand_scrapes_leave_nothing_behind(steady: DaemonProcess) -> None:
    """Four scrapers at once, one visit in ten to the page; all are answered, nothing grows."""
    failed: list[str] = []

    def visit(count: int) -> None:
        for number in range(count):
            try:
                path = "/" if number % 10 == 0 else "/metrics"
                with urllib.request.urlopen(steady.url + path, timeout=PATIENCE) as answer:
                    answer.read()
            except OSError as error:
                failed.append(str(error))

    visit(100)
    time.sleep(1)  # as afterwards: the last connections are closed
    before = belongings(steady.process.pid)
    clients = [threading.Thread(target=visit, args=(VISITS // CLIENTS,)) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert failed == []
    # The last connections are closed a moment later.
    until(lambda: belongings(steady.process.pid)[1:] == before[1:], lambda: before)
    resident = belongings(steady.process.pid)[0]
    assert resident < before[0] + (2 << 20), (before, resident)
