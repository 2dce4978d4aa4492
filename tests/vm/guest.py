"""One boot: a payload directory in, a results directory out, whatever becomes of the kernel.

Booting and loading BPF cost an emulated guest a minute, a crime seconds.  So a guest can be
stopped where it waits for its order (``prepare``) and be brought to life from there as often as
wanted (``resume``), each time with disks of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable

from tests.vm.kernels import Kernel, page_kib
from tests.vm.root import root_image

__all__ = ["READY", "Outcome", "Ready", "held_up", "kept", "prepare", "qmp", "resume", "run"]

#: What a guest prints on its console when it waits for an order on its last disk.
READY = "guest: ready"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How it ended: the payload's exit code (None if it never ended), and the console's text."""

    exit_code: int | None
    panicked: bool
    seconds: float
    results: Path
    console: str

    @property
    def died(self) -> bool:
        """Whether the kernel ended it before the script did."""
        return self.panicked or bool(re.search(r"Internal error|Oops", self.console))

    def text(self, name: str) -> str:
        """One file of the results, "" if it is not there."""
        path = self.results / name
        return path.read_text(errors="replace") if path.exists() else ""


@dataclasses.dataclass(frozen=True)
class Ready:
    """A guest that waits for its order: its memory and its disks in ``directory``."""

    kernel: Kernel
    directory: Path
    seconds: float
    console: str


def run(
    kernel: Kernel,
    payload: Path,
    results: Path,
    append: str = "",
    timeout: float = 300,
    reset: bool = False,
    icount: bool = False,
    devices: Sequence[str] = (),
) -> Outcome:
    """Boot, run ``payload/run.sh`` as root under systemd, power off; never raises for a panic.

    With ``reset`` a panic boots the same machine again, its memory kept, as ramoops needs it.
    ``timeout`` is in seconds in which the guest was not held up (``held_up``).
    With ``icount`` the guest's time is the number of its instructions, two nanoseconds each.
    ``devices`` are more words for QEMU.
    """
    with _directory() as directory:
        _disks(directory, payload)
        words = [*devices] if reset else [*devices, "-no-reboot"]
        words += ["-icount", "shift=1,sleep=off"] if icount else []
        return _until_off(_command(kernel, directory, append) + words, directory, results, timeout)


def prepare(kernel: Kernel, payload: Path, directory: Path, timeout: float = 1200) -> Ready:
    """Boot until the guest waits for its order, and keep it.

    Raises ``TimeoutError`` with the last words of the console and of the daemon.
    """
    _disks(directory, payload)
    console, monitor = directory / "console", directory / "monitor"
    words = _command(kernel, directory, "")
    words += ["-serial", f"file:{console}", "-qmp", f"unix:{monitor},server=on,wait=off"]
    began = time.monotonic()
    with subprocess.Popen(words) as machine:
        try:
            while READY not in (console.read_text(errors="replace") if console.exists() else ""):
                waited = time.monotonic() - began - held_up(machine.pid)
                if machine.poll() is not None or waited > timeout:
                    raise TimeoutError(f"{kernel.name} did not get ready: {_words(directory)}")
                time.sleep(0.5)
            _keep(monitor, directory / "memory")
        finally:
            machine.kill()
    seconds = time.monotonic() - began
    (directory / "seconds").write_text(f"{seconds:.0f}")
    return Ready(kernel, directory, seconds, console.read_text(errors="replace"))


def kept(kernel: Kernel, directory: Path) -> Ready | None:
    """What ``prepare`` has kept there before; None if it did not come to its end."""
    try:
        seconds = float((directory / "seconds").read_text())
        return Ready(
            kernel, directory, seconds, (directory / "console").read_text(errors="replace")
        )
    except (OSError, ValueError):
        return None


def resume(ready: Ready, order: str, results: Path, timeout: float = 300) -> Outcome:
    """Bring a kept guest to life with an order: a script of the payload and its arguments."""
    with _directory() as directory:
        for disk in _DISKS:
            copied = ["cp", "--sparse=always", ready.directory / disk, directory / disk]
            subprocess.run(list(map(str, copied)), check=True)
        (directory / "order.img").write_bytes(order.encode().ljust(4096, b"\0"))
        words = _command(ready.kernel, directory, "") + ["-no-reboot"]
        words += ["-incoming", f"exec:cat {ready.directory / 'memory'}"]
        return _until_off(words, directory, results, timeout)


def held_up(pid: int) -> float:
    """Seconds that a process has waited for a CPU of this machine: its most delayed thread.

    A guest's limit does not count them.  Beside other work an emulated guest may get a third of
    the CPUs and be three times as slow without anything being wrong with it; one that hangs has
    all the CPU that it wants.  The second figure of ``schedstat`` is the time on a run queue, ns.
    """
    delays = [0]
    for file in Path("/proc", str(pid), "task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # the thread has ended, or the process
            delays += map(int, file.read_text().split()[1:2])
    return max(delays) / 1e9


def _words(directory: Path) -> str:
    """Why a guest may not have got ready."""
    words = ["debugfs", "-R", "cat /err", str(directory / "results.img")]
    err = subprocess.run(words, capture_output=True, text=True).stdout
    console = (directory / "console").read_text(errors="replace")
    return "\n".join([*console.splitlines()[-8:], *err.splitlines()[-8:]])


_DISKS = ("root.img", "payload.img", "results.img", "scratch.img", "order.img", "state.img")


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ebpfwatch-vm-", dir="/var/tmp") as name:
        yield Path(name)


def _disks(directory: Path, payload: Path) -> None:
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(root_image())]
    subprocess.run([*words, str(directory / "root.img")], check=True)
    _disk(directory / "payload.img", "512M", payload)
    _disk(directory / "results.img", "256M")
    _disk(directory / "scratch.img", "1G")
    _disk(directory / "state.img", "256M")
    (directory / "order.img").write_bytes(bytes(4096))


def _disk(path: Path, size: str, content: Path | None = None) -> None:
    words: list[object] = ["mke2fs", "-q", "-F", "-t", "ext4"]
    if content is not None:
        words += ["-d", content]
    subprocess.run([*map(str, words), str(path), size], check=True, stdout=subprocess.DEVNULL)


def _command(kernel: Kernel, directory: Path, append: str) -> list[str]:
    # A cortex-a72 has no pages of 16 KiB.  QEMU's own pointer authentication is far cheaper to
    # emulate than the architecture's.
    cpu = "max,pauth-impdef=on" if page_kib(kernel.image) == 16 else "cortex-a72"
    words = ["qemu-system-aarch64", "-M", "virt", "-cpu", cpu, "-smp", "2", "-m", "1024"]
    words += ["-nic", "none", "-display", "none", "-monitor", "none", "-kernel", str(kernel.image)]
    if kernel.initrd is not None:
        words += ["-initrd", str(kernel.initrd)]
    words += [
        "-append",
        "root=/dev/vda rw console=ttyAMA0 panic=-1 oops=panic systemd.show_status=0"
        f" systemd.log_target=null {append}",
    ]
    for number, disk in enumerate(_DISKS):
        form = "qcow2" if disk == "root.img" else "raw"
        drive = f"file={directory / disk},if=none,id=d{number},format={form},cache=unsafe"
        words += ["-drive", drive, "-device", f"virtio-blk-pci,drive=d{number}"]
    return words


def _until_off(words: list[str], directory: Path, results: Path, timeout: float) -> Outcome:
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    console = results / "console"
    began = time.monotonic()
    with subprocess.Popen([*words, "-serial", f"file:{console}"]) as machine:
        try:
            while machine.poll() is None:
                if time.monotonic() - began - held_up(machine.pid) > timeout:
                    machine.kill()
                    machine.wait()
                    with open(console, "a") as log:
                        log.write(f"\n[guest stopped after {timeout:.0f} s]\n")
                time.sleep(0.2)
        finally:
            machine.kill()
    seconds = time.monotonic() - began
    for name in ("results.img", "state.img"):
        disk = directory / name
        subprocess.run(["e2fsck", "-fy", disk], capture_output=True)
        subprocess.run(["debugfs", "-R", f"rdump / {results}", disk], capture_output=True)
    text = console.read_text(errors="replace")
    code = (results / "exit").read_text().strip() if (results / "exit").exists() else ""
    ended = code.isdigit()  # or the kernel died while it was written
    panicked = bool(re.search(r"Kernel panic - not syncing", text))
    return Outcome(int(code) if ended else None, panicked, seconds, results, text)


@contextlib.contextmanager
def qmp(monitor: Path) -> Iterator[Callable[..., Any]]:
    """A function that asks QEMU, by QMP: ``ask(command, **arguments)`` returns the answer or raises
    ``RuntimeError``.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(monitor))
        lines = connection.makefile("r")

        def ask(command: str, **arguments: object) -> Any:
            request = {"execute": command, "arguments": arguments}
            connection.sendall(json.dumps(request).encode() + b"\n")
            while True:
                answer = json.loads(lines.readline())
                if "error" in answer:
                    raise RuntimeError(f"QEMU: {command}: {answer['error']['desc']}")
                if "return" in answer:
                    return answer["return"]

        lines.readline()  # the greeting
        ask("qmp_capabilities")
        yield ask


def _keep(monitor: Path, memory: Path) -> None:
    """Write the machine's memory to a file, as a migration to nowhere; it stops there."""
    with qmp(monitor) as ask:
        ask("migrate-set-parameters", **{"max-bandwidth": 1 << 40, "downtime-limit": 20000})
        ask("migrate", uri=f"exec:cat >{memory}")
        while (status := ask("query-migrate")["status"]) != "completed":
            if status in ("failed", "cancelled"):
                raise RuntimeError(f"QEMU: the machine could not be kept: {status}")
            time.sleep(0.2)
