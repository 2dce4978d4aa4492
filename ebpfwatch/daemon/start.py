"""What the daemon does once, between its start and the first event."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from typing import TYPE_CHECKING, Callable

from ebpfwatch import __version__, config
from ebpfwatch.daemon.delivery import Delivery
from ebpfwatch.errors import EbpfwatchError
from ebpfwatch.kernel import libbpf
from ebpfwatch.kernel.playback import PAGE_BYTES, Playback
from ebpfwatch.kernel.protocol import Origin
from ebpfwatch.kernel.session import Session
from ebpfwatch.system import log, privileges, seccomp
from ebpfwatch.system.imports import absent, without
from ebpfwatch.system.lock import Running
from ebpfwatch.system.log import say

if TYPE_CHECKING:
    from ebpfwatch.sinks.web import Web

__all__ = ["bind", "give_up", "introduce", "running", "test_page", "tidy"]


def bind(settings: config.Config) -> Web | None:
    """The web server, bound and not yet serving; None where it is off.  Raises
    ``EbpfwatchError``.
    """
    address = config.split_address(settings.metrics.listen)
    if address is None:
        return None
    with without("ssl"), absent("_hashlib"):
        from ebpfwatch.sinks.web import Web

    return Web(*address, settings.metrics.web_config)


def test_page(session: Session) -> range:
    """The addresses of the self-test's objects, empty where the kernel has no
    BPF_PROG_TEST_RUN for them.
    """
    loaded = session.loaded
    try:
        bed = Playback(session.programs, session.maps, loaded.offsets, loaded.learned)
    except EbpfwatchError:
        return range(0)
    return range(bed.object, bed.object + PAGE_BYTES)


def give_up(
    session: Session,
    settings: config.Config,
    configure: Callable[[], None],
    dormant: tuple[str, ...],
) -> tuple[str, ...]:
    """Give up what is not needed from here on, before the first thread starts; the capabilities
    that were kept.
    """

    def touch() -> None:
        """Do once whatever later needs the kernel's permission."""
        session.counters()
        session.misses()
        session.scan()
        configure()

    exe = ("sys_ptrace",) if settings.evidence.exe else ()
    kept = privileges.drop(touch, exe, dormant=dormant)
    why_not = seccomp.confine(bool(settings.actions.command))
    if why_not:
        say(f"system calls are not filtered, which is optional: {why_not}", "notice")
    log.from_a_thread()
    return kept


def running(session: Session, settings: config.Config, url: str, journal: bool) -> Running:
    """What other commands (root only) may know of us: ``Lock.publish``."""
    return Running(
        os.getpid(),
        version=__version__,
        url=url,
        state_directory=settings.state_directory,
        journal=journal,
        programs={n: int(libbpf.prog_info(fd).id) for n, fd in session.programs.items()},
        maps={n: int(libbpf.map_info(fd).id) for n, fd in session.maps.items()},
        offsets=session.loaded.offsets,
        learned=dict(vars(session.loaded.learned)),
    )


def introduce(
    session: Session,
    settings: config.Config,
    delivery: Delivery,
    kept: tuple[str, ...],
    url: str,
    no_kernel_log: str,
) -> None:
    """Say what was loaded, what is missing, and where everything goes."""
    loaded = session.loaded
    _tell_origin(loaded.origin)
    for hook in loaded.hooks:
        better = f" ({hook.why})" if hook.why and hook.has_rung else ""
        why = f": {hook.why}" if hook.why and not hook.has_rung else ""
        say(f"hook {hook.role}: {hook.name or 'absent'}{better}{why}")
    proof = f"not all proven: {loaded.unproven}" if loaded.unproven else "proven by files of ours"
    say(f"offsets: from {loaded.offsets_from}; {proof}", "warning" if loaded.unproven else "info")
    if loaded.slab_free_ns:
        say(
            f"each free from any slab costs {loaded.slab_free_ns:.0f} ns here, the"
            " kprobe's trap; the governor counts it"
        )
    say(f"kernel memory: {session.memory() / 2**20:.1f} MiB")
    say(f"capabilities kept: {', '.join(kept) or 'none'}")
    why_no_exe = privileges.why_no_exe(settings.evidence.exe, kept)
    if why_no_exe:
        say(why_no_exe, "warning")
    for missing in delivery.kernel_log.missing:
        say(f"findings cannot go to {missing}", "notice")
    if no_kernel_log:
        say(f"the kernel log cannot be followed: {no_kernel_log}", "notice")
    if settings.evidence.trace and loaded.dump.why_not:
        say(f"an oops will not print the verdicts: {loaded.dump.why_not}", "notice")
    say(f"metrics: {url}/metrics" if url != "off" else "metrics: off")
    say(f"findings: {delivery.store.directory}")


def _tell_origin(origin: Origin) -> None:
    if not origin.compiled:
        say(f"programs: as they were compiled before, from {origin.file}")
        return
    kept = "; kept for the next start" if origin.file else ""
    say(f"programs: compiled now ({origin.compiled}){kept}")
    if origin.not_kept:
        say(f"the next start compiles again: {origin.not_kept}", "warning")


def tidy() -> None:
    """Give back what only the start needed: half a megabyte; and never look at the rest again."""
    gc.collect()
    gc.freeze()
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
