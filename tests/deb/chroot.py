"""A clean Debian to install into: built once by mmdebstrap, unpacked for each test."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

__all__ = ["Chroot", "unpack"]

CACHE = Path(os.environ.get("EBPFWATCH_DEB_CACHE", "/var/cache/ebpfwatch-deb"))
_PACKAGES = "systemd,systemd-sysv,bash-completion,man-db,curl,ca-certificates"
#: A chroot has no kernel of its own: services of packages must not start.
_POLICY = "#!/bin/sh\nexit 101\n"


class Chroot:
    """A root directory in which commands run as root, with /proc and a resolver."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A shell command inside; raises ``AssertionError`` with what it said if it fails."""
        # A mount and PID namespace of its own: /proc is there, and gone with the command.
        words = ["unshare", "--mount", "--pid", "--fork", "--mount-proc=" + str(self.path / "proc")]
        words += ["chroot", str(self.path), "/bin/sh", "-ec", command]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
        environment["DEBIAN_FRONTEND"] = "noninteractive"
        done = subprocess.run(words, capture_output=True, text=True, env=environment)
        assert not check or done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
        return done

    def files(self) -> set[str]:
        """Everything that is there, but for dpkg's and apt's own books."""
        books = (
            "./run/",
            "./var/lib/dpkg/",
            "./var/lib/apt/",
            "./var/cache/",
            "./var/log/",
            "./tmp/",
        )
        found = self.run("cd / && find . -xdev").stdout.splitlines()
        return {name for name in found if not name.startswith(books)}


def unpack(directory: Path, suite: str = "bookworm") -> Chroot:
    """A clean system of this suite in this empty directory, the package lists read."""
    packed = CACHE / f"{suite}.tar"
    if not packed.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = CACHE / f"{suite}-{os.getpid()}.partial.tar"
        words = ["mmdebstrap", "--variant=minbase", f"--include={_PACKAGES}"]
        words += ["--skip=cleanup/apt/lists", suite, str(partial)]
        subprocess.run(words, check=True)
        partial.rename(packed)
    subprocess.run(["tar", "-xpf", packed, "-C", directory, "--exclude=./dev/*"], check=True)
    for name, minor in (("null", "3"), ("zero", "5"), ("urandom", "9")):
        subprocess.run(
            ["mknod", "-m", "666", directory / "dev" / name, "c", "1", minor], check=True
        )
    policy = directory / "usr/sbin/policy-rc.d"
    policy.write_text(_POLICY)
    policy.chmod(0o755)
    (directory / "etc/resolv.conf").write_text(Path("/etc/resolv.conf").read_text())
    return Chroot(directory)
