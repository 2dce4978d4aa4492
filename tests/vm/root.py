"""The guests' root file system: Debian's user space for arm64, built once and kept."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.vm.store import CACHE, fingerprint, locked, making

__all__ = ["mount_binfmt", "root_image"]

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
(cd /payload && exec sh ./run.sh) >/results/output 2>&1
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


def root_image(suite: str = "bookworm") -> Path:
    """The root file system of a suite as an ext4 image; kernel-agnostic."""
    made_by = fingerprint(*PACKAGES, _GUEST_RUN, _GUEST_UNIT)
    image = CACHE / f"root-{suite}-{made_by}.img"
    with locked():
        if image.exists():
            return image
        tree = CACHE / f"root-{suite}"
        _bootstrap(suite, tree)
        with making(image) as partial:
            words = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(tree), str(partial), "1500M"]
            subprocess.run(words, check=True)
        shutil.rmtree(tree)
    return image


def _bootstrap(suite: str, tree: Path) -> None:
    packed = CACHE / f"root-{suite}-{fingerprint(*PACKAGES)}.tar"
    if not packed.exists():
        _allow_arm64()
        with making(packed) as partial:
            words = [
                "mmdebstrap",
                "--architectures=arm64",
                "--variant=minbase",
                "--format=tar",
                f"--include={','.join(PACKAGES)}",
                '--aptopt=Acquire::Retries "3"',
                "--dpkgopt=path-exclude=/usr/share/doc/*",
                "--dpkgopt=path-exclude=/usr/share/locale/*",
                suite,
                str(partial),
            ]
            subprocess.run(words, check=True)
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


def mount_binfmt() -> bool:
    """Whether binfmt_misc is there, or could be mounted: qemu-user needs it."""
    if Path("/proc/sys/fs/binfmt_misc/register").exists():
        return True
    words = ["mount", "-t", "binfmt_misc", "none", "/proc/sys/fs/binfmt_misc"]
    return subprocess.run(words).returncode == 0


def _allow_arm64() -> None:
    """Debian's maintainer scripts of arm64 run through qemu-user."""
    if not mount_binfmt():
        raise SystemExit("binfmt_misc cannot be mounted, so no arm64 root image can be made")
    subprocess.run(["update-binfmts", "--enable", "qemu-aarch64"], check=True)
