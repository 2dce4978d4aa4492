"""What guests are made of, built once and kept: the root image and the kernels.

Everything lies in $EBPFWATCH_VM_CACHE (default /var/cache/ebpfwatch-vm).  A step that is done is
not done again; two runs at once wait for each other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import gzip
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["CACHE", "KERNELS", "Kernel", "kernel", "root_image"]

CACHE = Path(os.environ.get("EBPFWATCH_VM_CACHE", "/var/cache/ebpfwatch-vm"))
ROOT = Path(__file__).parents[2]
SHARED_KERNELS = Path(os.environ.get("KERNELS_DIR", ROOT.parent / "shared/kernels"))

PACKAGES = (
    "systemd systemd-sysv dbus udev kmod procps e2fsprogs curl bpftool linux-libc-dev libbpfcc"
    " python3-bpfcc python3-prometheus-client python3-yaml python3-systemd"
).split()

#: Runs in every guest: the payload, its exit code, power off. What it printed survives a panic.
_GUEST_RUN = """\
#!/bin/sh
mount -o ro /dev/vdb /payload
mount -o sync /dev/vdc /results
mount /dev/vdd /mnt/vdb
mount -t tracefs none /sys/kernel/tracing 2>/dev/null
cd /payload
sh ./run.sh >/results/output 2>&1
echo $? >/results/exit
dmesg >/results/dmesg
sync
systemctl poweroff -ff
"""

_GUEST_UNIT = """\
[Unit]
Description=The payload of this guest
After=multi-user.target systemd-journald.service

[Service]
Type=oneshot
StandardOutput=journal+console
ExecStart=/sbin/guest-run

[Install]
WantedBy=multi-user.target
"""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel to boot: its image, its modules and headers by directory (empty: none)."""

    name: str
    image: Path
    headers: Path
    release: str


KERNELS = ("4.19",)


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def kernel(name: str) -> Kernel:
    """Unpack a kernel; raises ``SystemExit`` naming the file that is missing."""
    source = SHARED_KERNELS / "4.19.78-arm64"
    if name != "4.19" or not (source / "Image.gz").exists():
        raise SystemExit(f"no kernel {name}: looked for {source}/Image.gz; set KERNELS_DIR")
    target = CACHE / "kernels" / name
    with _lock():
        if not (target / "done").exists():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            with gzip.open(source / "Image.gz") as packed, open(target / "Image", "wb") as image:
                shutil.copyfileobj(packed, image)
            with tarfile.open(source / "headers.tar.xz") as headers:
                headers.extractall(target / "headers")
            (target / "done").touch()
    headers = target / "headers"
    inner = [path for path in headers.iterdir() if (path / "Makefile").exists()]
    return Kernel(name, target / "Image", inner[0] if inner else headers, "4.19.78-arm64-desktop")


def root_image(suite: str = "bookworm") -> Path:
    """The root file system of a suite as an ext4 image; kernel-agnostic."""
    image = CACHE / f"root-{suite}.img"
    with _lock():
        if image.exists():
            return image
        tree = CACHE / f"root-{suite}"
        _bootstrap(suite, tree)
        partial = image.with_suffix(".partial")
        subprocess.run(
            ["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, partial, "1500M"], check=True
        )
        partial.rename(image)
        shutil.rmtree(tree)
    return image


def _bootstrap(suite: str, tree: Path) -> None:
    packed = CACHE / f"root-{suite}.tar"
    if not packed.exists():
        _allow_arm64()
        subprocess.run(
            [
                "mmdebstrap",
                "--architectures=arm64",
                "--variant=minbase",
                f"--include={','.join(PACKAGES)}",
                "--dpkgopt=path-exclude=/usr/share/doc/*",
                "--dpkgopt=path-exclude=/usr/share/locale/*",
                suite,
                f"{packed}.partial.tar",
            ],
            check=True,
        )
        Path(f"{packed}.partial.tar").rename(packed)
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    subprocess.run(["tar", "-xpf", packed, "-C", tree, "--exclude=./dev/*"], check=True)
    for directory in ("payload", "results", "mnt/vdb"):
        (tree / directory).mkdir(parents=True)
    script = tree / "sbin/guest-run"
    script.write_text(_GUEST_RUN)
    script.chmod(0o755)
    unit = tree / "etc/systemd/system/guest.service"
    unit.write_text(_GUEST_UNIT)
    wants = tree / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    (wants / "guest.service").symlink_to("/etc/systemd/system/guest.service")
    (tree / "etc/hostname").write_text("guest\n")
    (tree / "etc/fstab").write_text("")


def _allow_arm64() -> None:
    """Debian's maintainer scripts of arm64 run through qemu-user."""
    if not Path("/proc/sys/fs/binfmt_misc/register").exists():
        subprocess.run(
            ["mount", "-t", "binfmt_misc", "none", "/proc/sys/fs/binfmt_misc"], check=True
        )
    subprocess.run(["update-binfmts", "--enable", "qemu-aarch64"], check=True)
