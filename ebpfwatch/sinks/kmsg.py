"""One line a finding in the kernel log, and the whole of it in pstore's pmsg.

The kernel log reaches the console, pstore's dmesg record and vmcore-dmesg; /dev/pmsg0 is memory
that survives a warm reset, where the kernel has it.  Both are opened while we may.

By default the kernel takes ten lines in five seconds from whoever has the log open, and drops the
rest without an error (kernel.printk_devkmsg): so no more are written, and the rest is counted.
"""

from __future__ import annotations

import collections
import json
import os
import time

from ebpfwatch.text.printable import printable
from ebpfwatch.verdicts.finding import Actor, Finding

__all__ = ["KernelLog", "line"]

_LONGEST = 900  # bytes: printk's records hold 1024 with their prefix
_BURST, _BURST_SECONDS = 10, 5.1  # DEFAULT_RATELIMIT_BURST and _INTERVAL, and a jiffy or two


def line(finding: Finding) -> str:
    """The verdict, the inode and both contexts on one line."""
    identity = finding.identity
    parts = [
        f"ebpfwatch: {finding.verdict.value} ({finding.confidence.value})",
        f"ino {identity.ino} gen {identity.generation} dev {identity.dev_major}:"
        f"{identity.dev_minor} object {identity.object_address:x}",
        f"id {finding.id}",
        _who("now", finding.second),
        _who("first", finding.first),
    ]
    return printable("; ".join(filter(None, parts))).encode()[:_LONGEST].decode(errors="ignore")


def _who(role: str, actor: Actor | None) -> str:
    if actor is None:
        return ""
    frames = " < ".join(str(frame) for frame in actor.stack[:3])
    task = f"{actor.comm}[{actor.pid}]"
    who = {"task": task, "softirq": f"in softirq ({task} is a bystander)"}.get(
        actor.context, f"while {task} was running"
    )
    return f"{role} {who} cpu {actor.cpu}" + (f" at {frames}" if frames else "")


class KernelLog:
    """Writes findings; ``errors`` counts what was not taken, ``missing`` says which is absent."""

    def __init__(self, kmsg: str, pmsg: str) -> None:
        self.errors = 0
        self.missing: list[str] = []
        self._put_at: collections.deque[float] = collections.deque(maxlen=_BURST)
        self._kmsg = self._open(kmsg)
        self._pmsg = self._open(pmsg)

    def _open(self, path: str) -> int:
        if not path:
            return -1
        try:
            return os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as error:
            self.missing.append(f"{path}: {error.strerror}")
            return -1

    def write(self, finding: Finding) -> None:
        """Deliver one finding; never raises, and leaves the self-test's alone."""
        if finding.test:
            return
        if self._kmsg >= 0 and not self._has_room(time.monotonic()):
            self.errors += 1
        elif self._kmsg >= 0:
            self._put(self._kmsg, f"<{int(finding.severity)}>{line(finding)}\n")
        if self._pmsg >= 0:
            self._put(self._pmsg, json.dumps(finding.to_json(), ensure_ascii=True) + "\n")

    def _has_room(self, now: float) -> bool:
        if len(self._put_at) == _BURST and now - self._put_at[0] < _BURST_SECONDS:
            return False
        self._put_at.append(now)
        return True

    def _put(self, fd: int, text: str) -> None:
        try:
            os.write(fd, text.encode())
        except OSError:
            self.errors += 1
