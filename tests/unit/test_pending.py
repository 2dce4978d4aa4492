"""The loader child at work: nobody waits for it for ever."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from ebpfwatch.config import Config, loader_request
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.kernel.pending import Pending
from ebpfwatch.kernel.protocol import Loaded


@pytest.fixture
def pending() -> Iterator[Pending]:
    """A child that is stopped before it has done anything."""
    started = Pending().ask(loader_request(Config()))
    os.kill(started._child.pid, signal.SIGSTOP)
    yield started
    started.abandon()


def test_a_child_that_hangs_is_ended_while_the_daemon_waits(pending: Pending) -> None:
    """And the error says where it hung."""
    with pytest.raises(EbpfwatchError, match=r"did not end within 0.3 s") as raised:
        pending.wait(lambda: False, 0.3)
    assert raised.value.exit_code is Exit.OSERR
    assert pending._child.poll() == -signal.SIGKILL


def test_a_stop_is_heard_at_once(pending: Pending) -> None:
    """It ends nothing by itself."""
    began = time.monotonic()
    assert not pending.wait(lambda: True, 60)
    assert time.monotonic() - began < 1
    assert pending._child.poll() is None


def test_what_a_child_said_before_it_died_is_told() -> None:
    """LLVM ends the process by itself; the bytes may be anything."""
    started = Pending()
    os.write(started._stderr, b"a warning\nLLVM ERROR: \xff not supported\n\n")
    started._child.kill()
    with pytest.raises(EbpfwatchError, match="status -9.: LLVM ERROR: \ufffd not supported"):
        started.collect(Loaded, 5)
