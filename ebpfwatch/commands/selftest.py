"""``ebpfwatch selftest``: a made-up double free, through the running daemon, to every sink.

Opens the daemon's own programs by their ids and runs them with BPF_PROG_TEST_RUN, then looks at
each sink as a user would.  The finding is marked as a test and counted apart.

Programs on kprobes cannot be run by hand, nor any before Linux 5.10: there the daemon itself
feeds a made-up record to its sinks, and the canary is what proves the kernel side.
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

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.kernel.libbpf import object_fd_by_id
from ebpfwatch.kernel.playback import Playback
from ebpfwatch.kernel.protocol import Learned
from ebpfwatch.sinks import journal, store
from ebpfwatch.system import durable
from ebpfwatch.system.lock import SELFTEST, running_daemon

_METRIC = 'ebpfwatch_findings_total{confidence="%s",test="true",verdict="double_free"}'


def configure(parser: argparse.ArgumentParser) -> None:
    """How patient to be."""
    parser.add_argument(
        "--timeout",
        type=float,
        default=5.0,
        metavar="S",
        help="seconds a sink may take (default 5)",
    )
    parser.add_argument(
        "--run-directory",
        type=Path,
        default=Path(os.environ.get("RUNTIME_DIRECTORY", "/run/ebpfwatch")),
        metavar="DIR",
        help="where the daemon's lock is (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Exit 1 if a sink did not get the finding."""
    daemon = running_daemon(arguments.run_directory)
    if "programs" not in daemon:
        raise EbpfwatchError("the daemon is still loading", "try again in a second", Exit.TEMPFAIL)
    wanted = _identity()
    before = _metric(daemon["url"], arguments.timeout) if daemon["url"] != "off" else None
    if before is None and daemon["url"] != "off":
        print(
            "NOTE metrics: metrics.web_config asks for a password or a certificate: not looked at"
        )
    try:
        bed = open_playback(daemon)
        bed.inode.ino, bed.inode.generation = wanted
        began_ns = double_free(bed)
    except EbpfwatchError as error:
        if error.exit_code is not Exit.UNAVAILABLE:
            raise
        print(f"NOTE the probes cannot be played here: {error.message}")
        print("     so the sinks get a made-up record, and the canary vouches for the hooks")
        began_ns = _made_up(daemon, arguments.run_directory, wanted)
    outcomes = [_expect_file(daemon, wanted, began_ns, arguments.timeout)]
    if daemon["journal"]:
        outcomes.append(
            _wait("journal", lambda: _find(journal.read_all(), wanted), began_ns, arguments.timeout)
        )
    if before is not None:
        outcomes.append(
            _wait(
                "metrics",
                lambda: (_metric(daemon["url"], arguments.timeout) or 0) > before,
                began_ns,
                arguments.timeout,
            )
        )
    return Exit.OK if all(outcomes) else Exit.FAILED


def _identity() -> tuple[int, int]:
    """An inode number and generation that no other self-test of this boot has.

    Not from the kernel's random numbers: before Linux 5.6 a machine without a source of entropy
    makes getrandom() wait for ever.
    """
    return time.monotonic_ns() >> 10 & 2**32 - 1, os.getpid()


def open_playback(daemon: dict[str, Any]) -> Playback:
    """The daemon's programs and maps, by id; raises ``EbpfwatchError``."""
    try:
        programs = {n: object_fd_by_id("prog", i) for n, i in daemon["programs"].items()}
        maps = {n: object_fd_by_id("map", i) for n, i in daemon["maps"].items()}
    except OSError as error:
        raise EbpfwatchError(
            f"cannot open the daemon's programs: {error.strerror}", "run it as root", Exit.NOPERM
        ) from None
    return Playback(programs, maps, daemon["offsets"], Learned(**daemon["learned"]))


def double_free(bed: Playback) -> int:
    """The history: born, unlinked, evicted, freed, and freed again; CLOCK_MONOTONIC ns of the
    crime.
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


def _made_up(daemon: dict[str, Any], run: Path, wanted: tuple[int, int]) -> int:
    """Ask the daemon to judge a record of its own making; CLOCK_MONOTONIC ns of the request."""
    try:
        durable.write(run / SELFTEST, f"{wanted[0]} {wanted[1]}".encode())
        began_ns = time.monotonic_ns()
        os.kill(int(daemon["pid"]), signal.SIGUSR1)
    except OSError as error:
        raise EbpfwatchError(
            f"cannot ask the daemon: {error.strerror}", "run it as root", Exit.NOPERM
        ) from None
    return began_ns


def _expect_file(
    daemon: dict[str, Any], wanted: tuple[int, int], began_ns: int, timeout: float
) -> bool:
    directory = Path(daemon["state_directory"])
    found: list[dict[str, Any]] = []

    def look() -> bool:
        body = _find(store.read_all(directory), wanted)
        found.extend([body] if body else [])
        return body is not None

    if not _wait("report", look, began_ns, timeout):
        return False
    body = found[0]
    print(f"   {body['verdict']}, {body['confidence']}: {body['summary']}")
    print(f"   show it: ebpfwatch report --tests {body['id']}")
    return bool(body["verdict"] == "double_free" and body["test"])


def _find(bodies: Iterator[dict[str, Any]], wanted: tuple[int, int]) -> dict[str, Any] | None:
    for _, body in zip(range(50), bodies):
        identity = body.get("identity", {})
        if (identity.get("ino"), identity.get("generation")) == wanted:
            return body
    return None


def _wait(sink: str, ready: Callable[[], object], began_ns: int, timeout: float) -> bool:
    while not ready():
        if (time.monotonic_ns() - began_ns) / 1e9 > timeout:
            print(f"FAIL {sink}: no finding within {timeout:g} s")
            return False
        time.sleep(0.002)
    print(f"OK   {sink}: {(time.monotonic_ns() - began_ns) / 1e6:.0f} ms after the second free")
    return True


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
