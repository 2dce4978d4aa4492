"""File and line of a frame, from a vmlinux with debug information, by binutils' addr2line.

One process for the whole log, asked one address at a time; a limit of time for each answer, and of
addresses for all, because DWARF of a whole kernel can be slow.
"""

from __future__ import annotations

import contextlib
import re
import selectors
import shutil
import subprocess
from pathlib import Path
from types import TracebackType

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.kernellog.report import Frame

__all__ = ["Lines"]

_SECONDS = 20.0  # for one answer: the first one reads the image's index
_MOST = 500  # frames looked up in one run


class Lines:
    """Names frames; without a vmlinux it is ``str``."""

    def __init__(self, vmlinux: str | None) -> None:
        self._symbols: dict[str, list[int]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._known: dict[Frame, str] = {}
        if vmlinux is not None:
            self._symbols = _symbols(vmlinux)
            self._process = _addr2line(vmlinux)

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def name(self, frame: Frame) -> str:
        """``symbol+0x10 (fs/dcache.c:338)``; without the brackets where nothing is known."""
        if frame not in self._known:
            place = "" if frame.module or len(self._known) >= _MOST else self._place(frame)
            self._known[frame] = f"{frame} ({place})" if place else str(frame)
        return self._known[frame]

    def _place(self, frame: Frame) -> str:
        addresses = self._symbols.get(frame.symbol, [])
        if len(addresses) != 1:  # unknown, or several functions of that name: no guess
            return ""
        # A return address lies behind its call: ask for the call itself.
        return self._ask(addresses[0] + max(0, frame.offset - 1))

    def _ask(self, address: int) -> str:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return ""
        with contextlib.suppress(OSError):
            process.stdin.write(f"{address:#x}\n".encode())
            process.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                if not selector.select(_SECONDS):
                    process.kill()
                    self._process = None
                    return ""
            answer = process.stdout.readline().decode("utf-8", "replace").strip()
            return _short(answer)
        return ""


def _short(answer: str) -> str:
    """The path below the source tree; "" for addr2line's question marks."""
    place = answer.split(" (discriminator")[0]
    if place.startswith("?") or place.endswith((":0", ":?")):
        return ""
    top = re.search(
        r"(?:^|/)((?:arch|block|crypto|drivers|fs|include|init|ipc|kernel|lib|mm|net|security|sound"
        r"|virt)/\S+:\d+)$",
        place,
    )
    return top[1] if top else place


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise EbpfwatchError(
            f"--vmlinux needs {name}", "install it: apt-get install binutils", Exit.UNAVAILABLE
        )
    return found


def _symbols(vmlinux: str) -> dict[str, list[int]]:
    """Functions of the image by name; raises ``EbpfwatchError`` if it is none."""
    if not Path(vmlinux).is_file():
        raise EbpfwatchError(
            f"cannot read {vmlinux}", "give the vmlinux of that very kernel build", Exit.USAGE
        )
    done = subprocess.run([_tool("nm"), vmlinux], capture_output=True, check=False, timeout=120)
    symbols: dict[str, list[int]] = {}
    for line in done.stdout.splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in (b"T", b"t", b"W", b"w"):
            symbols.setdefault(words[2].decode("ascii", "replace"), []).append(int(words[0], 16))
    if not symbols:
        raise EbpfwatchError(
            f"{vmlinux} has no symbols",
            "give the vmlinux with debug information, not the boot image",
            Exit.USAGE,
        )
    return symbols


def _addr2line(vmlinux: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [_tool("addr2line"), "-e", vmlinux],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
