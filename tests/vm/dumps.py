"""Dumps of guests in which ebpfwatch does not run: healthy and busy, or with a mistake made.

The guest asks for a dump (asked.py), or dies; QEMU writes its memory as ELF or in the compressed
format of kdump.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.vm import guest, kernels
from tests.vm.asked import answering
from tests.vm.matrix import payload

__all__ = ["make"]


def make(
    kernel: kernels.Kernel,
    script: str,
    results: Path,
    form: str = "elf",
    megabytes: int = 512,
    modules: Sequence[str] = (),
    timeout: float = 1800,
    trees: Mapping[str, Path] | None = None,
    append: str = "panic=0",
) -> dict[str, Path]:
    """Boot, run, dump; the dumps by name.  ``form`` is "elf" or one of QEMU's ("kdump-zlib").
    ``trees`` are more files and directories of the payload, by name.
    """
    results.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ebpfwatch-payload-", dir="/var/tmp") as name:
        content = payload(kernel, Path(name), script)
        kernels.copy_modules(kernel, tuple(modules), content)
        for where, tree in (trees or {}).items():
            subprocess.run(["cp", "-a", tree, content / where], check=True)
            if tree.is_dir():  # it is a root for chroot
                for place in ("dev", "payload", "proc", "sys"):
                    (content / where / place).mkdir(exist_ok=True)
        with answering(Path(name), results, form, dead=True) as answers:
            guest.run(
                kernel,
                content,
                results,
                append=append,
                timeout=timeout,
                devices=("-m", str(megabytes), *answers.devices),
            )
    return answers.written
