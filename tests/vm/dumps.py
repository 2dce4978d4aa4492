"""Dumps of guests in which ebpfwatch does not run: healthy and busy, or with a mistake made.

The guest asks for a dump on its console (scripts/dump.sh), or dies; QEMU writes its memory, with
the kernel's own vmcoreinfo in it, as ELF or in the compressed format of kdump.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.vm import guest, kernels
from tests.vm.matrix import payload

__all__ = ["DEAD", "make"]

#: The name of the dump of a guest that has died.
DEAD = "dead"
_PANIC = "end Kernel panic"


class _Writer(threading.Thread):
    """Writes each dump that the guest asks for, and the one of its death; then ends it."""

    def __init__(self, qmp: Path, order: Path, results: Path, form: str, seconds: float) -> None:
        super().__init__(daemon=True)
        self._qmp, self._order, self._results, self._form = qmp, order, results, form
        self._deadline = time.monotonic() + seconds
        self.written: dict[str, Path] = {}
        self.ended = threading.Event()

    def run(self) -> None:
        console = self._results / "console"
        while time.monotonic() < self._deadline and not self.ended.is_set():
            said = console.read_text(errors="replace") if console.exists() else ""
            for name in re.findall(r"guest: dump (\S+)", said):
                if name not in self.written:
                    self._write(name)
                    self._order.write_bytes(f"\n{name}\n".encode().ljust(4096, b"\0"))
            if _PANIC in said:
                self._write(DEAD)
                with guest.qmp(self._qmp) as ask:
                    ask("quit")
                return
            time.sleep(0.3)

    def _write(self, name: str) -> None:
        file = self._results.parent / f"{self._results.name}-{name}.vmcore"
        file.unlink(missing_ok=True)
        words = {} if self._form == "elf" else {"format": self._form}
        with guest.qmp(self._qmp) as ask:
            ask("dump-guest-memory", paging=False, protocol=f"file:{file}", **words)
        self.written[name] = file


def make(
    kernel: kernels.Kernel,
    script: str,
    results: Path,
    form: str = "elf",
    megabytes: int = 512,
    modules: Sequence[str] = (),
    timeout: float = 1800,
    trees: Mapping[str, Path] | None = None,
) -> dict[str, Path]:
    """Boot, run, dump; the dumps by name.  ``form`` is "elf" or one of QEMU's ("kdump-zlib").
    ``trees`` are more files and directories of the payload, by name.
    """
    results.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ebpfwatch-payload-", dir="/var/tmp") as name:
        qmp, order = Path(name) / "qmp", Path(name) / "order"
        order.write_bytes(bytes(4096))
        content = payload(kernel, Path(name), script)
        kernels.copy_modules(kernel, ("qemu_fw_cfg", *modules), content)
        for where, tree in (trees or {}).items():
            subprocess.run(["cp", "-a", tree, content / where], check=True)
        (results / "console").unlink(missing_ok=True)
        writer = _Writer(qmp, order, results, form, timeout)
        writer.start()
        try:
            guest.run(
                kernel,
                content,
                results,
                append="panic=0",
                timeout=timeout,
                devices=(
                    *("-m", str(megabytes), "-device", "vmcoreinfo"),
                    *("-qmp", f"unix:{qmp},server=on,wait=off"),
                    *("-drive", f"file={order},if=none,id=asked,format=raw,cache=unsafe"),
                    *("-device", "virtio-blk-pci,drive=asked"),
                ),
            )
        finally:
            writer.ended.set()
            writer.join()
    return writer.written
