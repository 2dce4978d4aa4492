"""A fresh Debian with systemd as its PID 1, in which one script runs to its end.

Debian 12, or the suite that EBPFWATCH_SUITE names (`make test-install SUITE=trixie`).  The system
is a container (systemd-nspawn) on this machine's kernel and network, so it needs the ports 9090,
9093, 9866 and 9867.  One thing is not as on a machine of its own: the kernel shows our
programs this machine's process numbers, and a container has others, so Python is told the kernel's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deb.chroot import unpack

__all__ = ["ROOT", "OWN_NUMBERS", "run", "system"]

ROOT = Path(__file__).parents[2]
SUITE = os.environ.get("EBPFWATCH_SUITE") or "bookworm"
_PYTHON = {"bookworm": "python3.11", "trixie": "python3.13"}[SUITE]
#: Authorities that this machine trusts besides Debian's: of a proxy before the registries.
_AUTHORITIES = Path("/usr/local/share/ca-certificates")

_RUN = r"""[Unit]
After=multi-user.target
[Service]
Type=oneshot
WorkingDirectory=/root/ebpfwatch
Environment=DEBIAN_FRONTEND=noninteractive HOME=/root LC_ALL=C.UTF-8
Environment=PIP_CERT=/etc/ssl/certs/ca-certificates.crt
ExecStart=/bin/sh -c 'bash -ex /root/steps >/root/said 2>&1; echo $? >/root/exit; \
    journalctl --no-pager -n 40 -u ebpfwatch >/root/journal'
ExecStopPost=systemctl poweroff
"""


_PTH = f"usr/local/lib/{_PYTHON}/dist-packages/pid.pth"
#: A step: Python says the container's process numbers again, as all but a daemon of ours needs it.
OWN_NUMBERS = f"rm /{_PTH}\n"

#: One line: that is all a .pth file may have. The loader child asks who its parent is, too.
_PID = (
    "import os; os.getpid = lambda: int(os.readlink('/hostproc/self'));"
    " os.getppid = lambda: int(open('/hostproc/self/stat').read().rpartition(')')[2].split()[1])\n"
)


@pytest.fixture
def system() -> Iterator[Path]:
    """Its root directory, with a clone of this repository in /root; needs root."""
    if os.geteuid() != 0 or not shutil.which("systemd-nspawn"):
        pytest.skip("needs root and systemd-nspawn (systemd-container): sudo make test-install")
    directory = Path("/var/tmp") / f"ebpfwatch-install-{os.getpid()}"
    directory.mkdir()
    try:
        chroot = unpack(directory, SUITE)
        shutil.copytree(_AUTHORITIES, directory / str(_AUTHORITIES)[1:], dirs_exist_ok=True)
        chroot.run("update-ca-certificates")
        (directory / "usr/sbin/policy-rc.d").unlink()
        subprocess.run(["git", "clone", "-q", ROOT, directory / "root/ebpfwatch"], check=True)
        units = directory / "etc/systemd/system"
        (units / "install.service").write_text(_RUN)
        wants = units / "multi-user.target.wants"
        wants.mkdir(exist_ok=True)
        (wants / "install.service").symlink_to("../install.service")
        (directory / _PTH).parent.mkdir(parents=True)
        (directory / _PTH).write_text(_PID)
        yield directory
    finally:
        shutil.rmtree(directory)


def run(system: Path, steps: str, minutes: float) -> str:
    """Boot it, run these steps of bash, each of which must succeed; what they said."""
    (system / "root/steps").write_text(steps)
    words = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit"]
    words += ["--capability=all", "--resolv-conf=off", "--bind=/proc:/hostproc", "--bind=/dev/kmsg"]
    environment = {
        **os.environ,
        "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "yes",
        "SYSTEMD_SECCOMP": "0",
    }
    with open(system / "root/console", "wb") as console:
        container = subprocess.Popen(
            [*words, f"--directory={system}"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
        )
        try:
            container.wait(minutes * 60)
        except subprocess.TimeoutExpired:
            container.terminate()  # systemd-nspawn(1): an orderly power-off
            container.wait(60)
    said = (system / "root/said").read_text()
    assert (system / "root/exit").exists(), f"not done in {minutes} minutes:\n{said[-3000:]}"
    journal = (system / "root/journal").read_text()
    assert (system / "root/exit").read_text() == "0\n", f"{said[-3000:]}\n{journal}"
    return said
