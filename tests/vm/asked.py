"""What a guest asks of the machine that emulates it, by a line on its console.

``guest: dump NAME`` (scripts/dump.sh): its memory is written to a file, with the kernel's own
vmcoreinfo in it.  ``guest: pull NAME``: that device is taken away while it runs.  Both are answered
on a disk of its own; a guest that dies is dumped, too, where that is wanted.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.vm import guest

__all__ = ["DEAD", "Answers", "answering"]

#: The name of the dump of a guest that has died.
DEAD = "dead"
#: The disk that can be pulled: behind a port of its own, because nothing on the root bus can be.
PULLED = "pulled"
_PANIC = "end Kernel panic"


class Answers(threading.Thread):
    """``written`` are the dumps by name, ``devices`` more words for QEMU."""

    def __init__(self, directory: Path, results: Path, form: str, dead: bool) -> None:
        super().__init__(daemon=True)
        self._qmp, self._answer, pulled = (directory / name for name in ("qmp", "answer", "pulled"))
        self._results, self._form, self._dead = results, form, dead
        self._done: set[tuple[str, str]] = set()
        self.written: dict[str, Path] = {}
        self.ended = threading.Event()
        self._answer.write_bytes(bytes(4096))
        with open(pulled, "wb") as file:
            file.truncate(64 << 20)
        self.devices = (
            *("-device", "vmcoreinfo", "-qmp", f"unix:{self._qmp},server=on,wait=off"),
            *("-drive", f"file={self._answer},if=none,id=answer,format=raw,cache=unsafe"),
            *("-device", "virtio-blk-pci,drive=answer"),
            *("-drive", f"file={pulled},if=none,id=behind,format=raw,cache=unsafe"),
            *("-device", "pcie-root-port,id=socket,chassis=1"),
            *("-device", f"virtio-blk-pci,drive=behind,bus=socket,id={PULLED}"),
        )

    def run(self) -> None:
        console = self._results / "console"
        while not self.ended.is_set():
            said = console.read_text(errors="replace") if console.exists() else ""
            for order in re.findall(r"guest: (dump|pull) (\S+)", said):
                if order not in self._done:
                    self._do(*order)
                    self._done.add(order)
                    self._answer.write_bytes(f"\n{order[1]}\n".encode().ljust(4096, b"\0"))
            if self._dead and _PANIC in said:
                self._do("dump", DEAD)
                with guest.qmp(self._qmp) as ask:
                    ask("quit")
                return
            time.sleep(0.3)

    def _do(self, what: str, name: str) -> None:
        with guest.qmp(self._qmp) as ask:
            if what == "pull":
                ask("device_del", id=name)
                return
            file = self._results.parent / f"{self._results.name}-{name}.vmcore"
            file.unlink(missing_ok=True)
            words = {} if self._form == "elf" else {"format": self._form}
            ask("dump-guest-memory", paging=False, protocol=f"file:{file}", **words)
        self.written[name] = file


@contextlib.contextmanager
def answering(
    directory: Path, results: Path, form: str = "elf", dead: bool = False
) -> Iterator[Answers]:
    """While the guest runs; ``directory`` is for the files of QEMU, ``results`` the guest's."""
    (results / "console").unlink(missing_ok=True)
    answers = Answers(directory, results, form, dead)
    answers.start()
    try:
        yield answers
    finally:
        answers.ended.set()
        answers.join()
