"""One boot: a payload directory in, a results directory out, whatever becomes of the kernel."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tests.vm.kernels import Kernel
from tests.vm.root import root_image

__all__ = ["Outcome", "run"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How it ended: the payload's exit code (None if it never ended), and the console's text."""

    exit_code: int | None
    panicked: bool
    seconds: float
    results: Path
    console: str

    def text(self, name: str) -> str:
        """One file of the results, "" if it is not there."""
        path = self.results / name
        return path.read_text(errors="replace") if path.exists() else ""


def run(
    kernel: Kernel,
    payload: Path,
    results: Path,
    append: str = "",
    memory_mb: int = 1024,
    timeout: float = 300,
    suite: str = "bookworm",
    reset: bool = False,
) -> Outcome:
    """Boot, run ``payload/run.sh`` as root under systemd, power off; never raises for a panic.

    With ``reset`` a panic boots the same machine again, its memory kept, as ramoops needs it.
    """
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    console = results / "console"
    with tempfile.TemporaryDirectory(prefix="ebpfwatch-vm-", dir="/var/tmp") as name:
        directory = Path(name)
        disks = {
            "payload": _disk(directory / "payload.img", "512M", payload),
            "results": _disk(directory / "results.img", "256M"),
            "scratch": _disk(directory / "scratch.img", "1G"),
        }
        began = time.monotonic()
        _boot(kernel, root_image(suite), disks, append, memory_mb, timeout, console, reset)
        seconds = time.monotonic() - began
        subprocess.run(["e2fsck", "-fy", disks["results"]], capture_output=True)
        subprocess.run(
            ["debugfs", "-R", f"rdump / {results}", disks["results"]], capture_output=True
        )
    text = console.read_text(errors="replace")
    code = (results / "exit").read_text().strip() if (results / "exit").exists() else ""
    return Outcome(
        int(code) if code else None,
        bool(re.search(r"Kernel panic - not syncing", text)),
        seconds,
        results,
        text,
    )


def _disk(path: Path, size: str, content: Path | None = None) -> Path:
    words: list[object] = ["mke2fs", "-q", "-F", "-t", "ext4"]
    if content is not None:
        words += ["-d", content]
    subprocess.run([*map(str, words), str(path), size], check=True, stdout=subprocess.DEVNULL)
    return path


def _boot(
    kernel: Kernel,
    root: Path,
    disks: dict[str, Path],
    append: str,
    memory_mb: int,
    timeout: float,
    console: Path,
    reset: bool,
) -> None:
    drives = [f"file={root},if=none,id=d0,format=raw,snapshot=on"]
    drives += [
        f"file={disk},if=none,id=d{number},format=raw,cache=unsafe"
        for number, disk in enumerate(disks.values(), 1)
    ]
    words: list[object] = ["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a72", "-smp", "2"]
    words += ["-m", memory_mb, "-nic", "none", "-display", "none"]
    words += [] if reset else ["-no-reboot"]
    if kernel.initrd is not None:
        words += ["-initrd", kernel.initrd]
    words += ["-serial", f"file:{console}", "-monitor", "none", "-kernel", kernel.image]
    words += [
        "-append",
        "root=/dev/vda rw console=ttyAMA0 panic=-1 oops=panic systemd.show_status=0"
        f" systemd.log_target=null {append}",
    ]
    for number, drive in enumerate(drives):
        words += ["-drive", drive, "-device", f"virtio-blk-pci,drive=d{number}"]
    try:
        subprocess.run([str(word) for word in words], timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        with open(console, "a") as log:
            log.write(f"\n[guest stopped after {timeout:.0f} s]\n")
