"""What docs/install.md says, typed into a fresh Debian 12 with systemd as its PID 1.

The system is a container (systemd-nspawn) on this machine's kernel and network, so it needs the
ports 9090, 9093, 9866 and 9867.  One thing is not as on a machine of its own: the kernel shows our
programs this machine's process numbers, and a container has others, so Python is told the kernel's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deb.chroot import Chroot, unpack

ROOT = Path(__file__).parents[2]
_MINUTES = 15

_RUN = """\
[Unit]
After=multi-user.target
[Service]
Type=oneshot
WorkingDirectory=/root/ebpfwatch
Environment=DEBIAN_FRONTEND=noninteractive HOME=/root
ExecStart=/bin/sh -c 'bash -ex /root/steps >/root/said 2>&1; echo $? >/root/exit'
ExecStopPost=systemctl poweroff
"""


def steps() -> str:
    """The blocks a reader types, in order."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs/install.md").read_text(), re.M | re.S)
    assert len(blocks) > 4
    return "\n".join(blocks)


@pytest.fixture
def system() -> Iterator[Chroot]:
    """A fresh Debian 12 with a clone of this repository; needs root."""
    if os.geteuid() != 0 or not shutil.which("systemd-nspawn"):
        pytest.skip("needs root and systemd-nspawn (systemd-container): sudo make test-install")
    directory = Path("/var/tmp") / f"ebpfwatch-install-{os.getpid()}"
    directory.mkdir()
    try:
        chroot = unpack(directory)
        (directory / "usr/sbin/policy-rc.d").unlink()
        subprocess.run(["git", "clone", "-q", ROOT, directory / "root/ebpfwatch"], check=True)
        (directory / "root/steps").write_text(steps())
        units = directory / "etc/systemd/system"
        (units / "install.service").write_text(_RUN)
        wants = units / "multi-user.target.wants"
        wants.mkdir(exist_ok=True)
        (wants / "install.service").symlink_to("../install.service")
        python = directory / "usr/local/lib/python3.11/dist-packages"
        python.mkdir(parents=True)
        pid = "import os; os.getpid = lambda: int(os.readlink('/hostproc/self'))\n"
        (python / "pid.pth").write_text(pid)
        yield chroot
    finally:
        shutil.rmtree(directory)


def test_from_nothing_to_an_alert(system: Chroot) -> None:
    """In under fifteen minutes, and with no word that is not in the document."""
    words = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit"]
    words += ["--capability=all", "--resolv-conf=off", "--bind=/proc:/hostproc", "--bind=/dev/kmsg"]
    environment = {
        **os.environ,
        "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "yes",
        "SYSTEMD_SECCOMP": "0",
    }
    began = time.monotonic()
    with open(system.path / "root/console", "wb") as console:
        container = subprocess.Popen(
            [*words, f"--directory={system.path}"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
        )
        try:
            container.wait(_MINUTES * 60)
        except subprocess.TimeoutExpired:
            container.terminate()  # systemd-nspawn(1): an orderly power-off
            container.wait(60)
    said = (system.path / "root/said").read_text()
    print(f"{time.monotonic() - began:.0f} s from nothing to the alert")
    assert (system.path / "root/exit").exists(), f"not done in {_MINUTES} minutes:\n{said[-3000:]}"
    assert (system.path / "root/exit").read_text() == "0\n", said[-3000:]
    assert re.search(r'^/selftest .*"alertname": ?"EbpfwatchSelftest"', said, re.M), said[-3000:]
    assert "TEST: double_free" in said, "the journal did not show the finding"
