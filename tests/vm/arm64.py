"""Debian's arm64 programs with all that they need, unpacked into a directory of their own.

They run through qemu-user on this machine, or by chroot in a guest.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.vm.kernels import apt_get
from tests.vm.root import mount_binfmt
from tests.vm.store import CACHE, locked, making

__all__ = ["compress", "unpacked"]


def unpacked(suite: str, packages: Sequence[str]) -> Path:
    """The directory; made once, from packages whose signatures apt has checked."""
    target = CACHE / "arm64" / f"{suite}-{'-'.join(packages)}"
    with locked():
        if target.exists():
            return target
        target.parent.mkdir(exist_ok=True)
        with making(target) as directory:
            command = apt_get(suite, directory)
            apt = directory / "apt"
            words = [
                *command,
                "install",
                "--print-uris",
                "-y",
                "--no-install-recommends",
                *packages,
            ]
            listed = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            wanted = sorted(set(re.findall(r"/([a-z0-9.%+-]+)_[^/']*\.deb'", listed)))
            wanted = [name.replace("%2b", "+") for name in wanted]
            subprocess.run(
                [*command, "download", *wanted], check=True, cwd=apt, stdout=subprocess.DEVNULL
            )
            for name in ("bin", "sbin", "lib"):  # merged /usr
                (directory / "usr" / name).mkdir(parents=True, exist_ok=True)
                (directory / name).symlink_to(f"usr/{name}")
            for package in sorted(apt.glob("*.deb")):
                tar = subprocess.Popen(
                    ["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE
                )
                subprocess.run(
                    ["tar", "-x", "--keep-directory-symlink", "-C", directory],
                    check=True,
                    stdin=tar.stdout,
                )
                tar.wait()
            subprocess.run(["rm", "-rf", apt], check=True)
    return target


def compress(vmcore: Path, target: Path, options: Sequence[str]) -> None:
    """An ELF dump of QEMU's through Debian's own makedumpfile, as kdump-tools calls it."""
    if not mount_binfmt():
        raise SystemExit("binfmt_misc cannot be mounted, so arm64's makedumpfile does not run")
    tree = unpacked("bookworm", ["makedumpfile"])
    ordinary = target.with_suffix(".elf")
    _headers_in_front(vmcore, ordinary)
    target.unlink(missing_ok=True)
    words: list[str | Path] = ["qemu-aarch64-static", "-L", tree, tree / "usr/bin/makedumpfile"]
    words += ["--message-level", "0", *options, ordinary, target]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    ordinary.unlink()


def _headers_in_front(vmcore: Path, target: Path) -> None:
    """A copy whose program headers follow the ELF header at once: makedumpfile looks for them
    there, and QEMU has put the section headers in between since 7.2.
    """
    subprocess.run(["cp", "--sparse=always", vmcore, target], check=True)
    target.chmod(0o600)
    with open(target, "r+b") as file:
        header = bytearray(file.read(64))
        start = int.from_bytes(header[32:40], "little")
        count = int.from_bytes(header[56:58], "little")
        file.seek(start)
        programs = file.read(56 * count)
        header[32:48] = (64).to_bytes(8, "little") + bytes(8)
        header[58:64] = bytes(6)  # no section headers
        file.seek(0)
        file.write(header + programs)
