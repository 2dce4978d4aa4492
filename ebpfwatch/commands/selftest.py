"""``ebpfwatch selftest``: a simulated double free, through the running daemon, to every sink.

Opens the daemon's own programs by their ids and runs them with BPF_PROG_TEST_RUN, then looks at
each sink as a user would.  The finding is marked as a test and counted apart.

Programs on kprobes cannot be run by hand, nor any before Linux 5.10: there the daemon itself
feeds a test record to its sinks, and the canary is what proves the kernel side.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

from ebpfwatch.commands import seconds
from ebpfwatch.commands.daemon import add_run_directory
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.kernel.libbpf import object_fd_by_id
from ebpfwatch.kernel.playback import Playback
from ebpfwatch.kernel.protocol import Learned
from ebpfwatch.sinks import journal, statusfile, store
from ebpfwatch.system import durable
from ebpfwatch.system.lock import SELFTEST, Running, running_daemon

_METRIC = 'ebpfwatch_findings_total{confidence="%s",test="true",verdict="double_free"}'


#: The daemon writes its state down every five seconds.
_TELLS_SECONDS = 6.0


def configure(parser: argparse.ArgumentParser) -> None:
    """How patient to be."""
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=5.0,
        metavar="S",
        help="seconds a sink may take (default 5)",
    )
    add_run_directory(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exit 1 if a sink did not get the finding."""
    daemon = running_daemon(arguments.run_directory)
    if not daemon.programs:
        raise EbpfwatchError("the daemon is still loading", "try again in a second", Exit.TEMPFAIL)
    wanted = _identity()
    before = _metric(daemon.url, arguments.timeout) if daemon.url != "off" else None
    try:
        bed = open_playback(daemon)
        bed.inode.ino, bed.inode.generation = wanted
        began_ns = double_free(bed)
    except EbpfwatchError as error:
        if error.exit_code is not Exit.UNAVAILABLE:
            raise
        print(f"NOTE the programs cannot be run by hand here: {error.message}")
        print("     so the sinks get a test record, and the canary proves the hooks")
        began_ns = _made_up(daemon, arguments.run_directory, wanted)
    report = _Report(Path(daemon.state_directory), wanted)
    sinks: dict[str, Callable[[], object]] = {"report": report.found}
    if daemon.journal:
        sinks["journal"] = lambda: _find(journal.read_all(), wanted)
    if before is not None:
        sinks["metrics"] = lambda: (_metric(daemon.url, arguments.timeout) or 0) > before
    code = _wait(sinks, began_ns, arguments.timeout, lambda: _problems(arguments.run_directory))
    for sink, why in _left_out(daemon, before).items():
        print(f"NOTE {sink}: not looked at: {why}")
    return Exit.FAILED if code or not report.tell() else Exit.OK


def _left_out(daemon: Running, before: float | None) -> dict[str, str]:
    """The other sinks, and why."""
    why = {"kernel log": "a self-test's finding is not written there"}
    if not daemon.journal:
        why["journal"] = "there is no journald here, or journal is off in the configuration"
    if daemon.url == "off":
        why["metrics"] = "metrics.listen is empty in the configuration"
    elif before is None:
        why["metrics"] = "metrics.web_config asks for a password or a certificate"
    return why


def _problems(run: Path) -> dict[str, str]:
    """What the daemon itself says of its sinks, by the name that is used here."""
    try:
        problems = statusfile.read(run)[0].get("sink_problems", {})
    except (OSError, ValueError):
        return {}
    return {"report": problems["store"]} if "store" in problems else {}


def _identity() -> tuple[int, int]:
    """An inode number and generation that no other self-test of this boot has.

    Not from the kernel's random numbers: before Linux 5.6 a machine without a source of entropy
    makes getrandom() wait for ever.
    """
    return time.monotonic_ns() >> 10 & 2**32 - 1, os.getpid()


def open_playback(daemon: Running) -> Playback:
    """The daemon's programs and maps, by id; raises ``EbpfwatchError``."""
    try:
        programs = {n: object_fd_by_id("prog", i) for n, i in daemon.programs.items()}
        maps = {n: object_fd_by_id("map", i) for n, i in daemon.maps.items()}
    except OSError as error:
        raise EbpfwatchError(
            f"cannot open the daemon's programs: {error.strerror}", "run it as root", Exit.NOPERM
        ) from None
    return Playback(programs, maps, daemon.offsets, Learned(**daemon.learned))


def double_free(bed: Playback) -> int:
    """The history: born, unlinked, evicted, freed, and freed again; CLOCK_MONOTONIC ns of the
    second free.
    """
    bed.alloc()
    bed.publish()
    bed.unlink_enter()
    bed.unlink_exit()
    bed.evict()
    bed.free()
    began_ns = time.monotonic_ns()
    bed.free()
    return began_ns


def _made_up(daemon: Running, run: Path, wanted: tuple[int, int]) -> int:
    """Ask the daemon to judge a record of its own making; CLOCK_MONOTONIC ns of the request."""
    try:
        durable.write(run / SELFTEST, f"{wanted[0]} {wanted[1]}".encode())
        began_ns = time.monotonic_ns()
        os.kill(daemon.pid, signal.SIGUSR1)
    except OSError as error:
        raise EbpfwatchError(
            f"cannot ask the daemon: {error.strerror}", "run it as root", Exit.NOPERM
        ) from None
    return began_ns


class _Report:
    """The finding as `ebpfwatch report` would show it."""

    def __init__(self, directory: Path, wanted: tuple[int, int]) -> None:
        self._directory = directory
        self._wanted = wanted
        self._body: dict[str, Any] | None = None

    def found(self) -> bool:
        """Whether its file is there."""
        self._body = _find(store.read_all(self._directory), self._wanted)
        return self._body is not None

    def tell(self) -> bool:
        """Say what it is; whether it is what was played."""
        body = self._body
        if body is None:
            return False
        print(f"   {body['verdict']}, {body['confidence']}: {body['summary']}")
        print(f"   show it: ebpfwatch report {body['id']}")
        return bool(body["verdict"] == "double_free" and body["test"])


def _find(bodies: Iterator[dict[str, Any]], wanted: tuple[int, int]) -> dict[str, Any] | None:
    for _, body in zip(range(50), bodies):
        identity = body.get("identity", {})
        if (identity.get("ino"), identity.get("generation")) == wanted:
            return body
    return None


def _wait(
    sinks: dict[str, Callable[[], object]],
    began_ns: int,
    timeout: float,
    problems: Callable[[], dict[str, str]],
) -> int:
    """How many did not get it.  All are looked at in turn, so that none is measured with another's
    time.
    """
    waiting = dict(sinks)
    while waiting and (time.monotonic_ns() - began_ns) / 1e9 <= timeout:
        for sink in [sink for sink, ready in waiting.items() if ready()]:
            del waiting[sink]
            took = (time.monotonic_ns() - began_ns) / 1e6
            print(f"OK   {sink}: {took:.0f} ms after the second free")
        time.sleep(0.002)
    why: dict[str, str] = {}
    # What the daemon says of itself is as old as its last tick.
    told_by = time.monotonic() + _TELLS_SECONDS
    while waiting and not waiting.keys() & (why := problems()).keys():
        if time.monotonic() > told_by:
            break
        time.sleep(0.1)
    for sink in waiting:
        reason = f": {why[sink]}" if sink in why else ""
        print(f"FAIL {sink}: no finding within {timeout:g} s{reason}")
    return len(waiting)


def _metric(url: str, timeout: float) -> float | None:
    """How many test findings /metrics counts, over all confidences; None where we may not look."""
    try:
        text = _scrape(url, timeout)
    except OSError as error:
        if getattr(error, "code", 0) == 401 or "SSL" in str(error):
            return None
        raise EbpfwatchError(f"cannot read {url}/metrics: {error}", "", Exit.UNAVAILABLE) from None
    wanted = {_METRIC % confidence for confidence in ("confirmed", "probable", "undecidable")}
    values = [line.rsplit(" ", 1) for line in text.splitlines()]
    return sum(float(value) for name, *rest in values if name in wanted for value in rest)


def _scrape(url: str, timeout: float) -> str:
    context = None
    if url.startswith("https:"):
        import ssl

        # Who answers we know from the daemon's lock; a name in a certificate would add nothing.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    # Not through a proxy of the environment's: it would ask its own machine.
    direct = urllib.request.ProxyHandler({})
    opener = urllib.request.build_opener(direct, urllib.request.HTTPSHandler(context=context))
    with opener.open(f"{url}/metrics", timeout=timeout) as answer:
        return str(answer.read().decode())
