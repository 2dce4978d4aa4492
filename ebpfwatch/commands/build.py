"""``ebpfwatch build``: compile before there is trouble, for the running kernel."""

from __future__ import annotations

import argparse
import dataclasses
import os

from ebpfwatch import config
from ebpfwatch.commands.daemon import add_config, settings
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.host.mounts import ext4_mounts
from ebpfwatch.kernel.pending import build
from ebpfwatch.paths import Paths
from ebpfwatch.system.log import say

EXAMPLES = """\
The daemon's first start under a kernel does the same. A start that finds what it needs compiles
nothing: it takes a fraction of the time, and no compiler has to fit into memory.
Only the running kernel can be built for: which hooks it offers is found out by trying.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Where the configuration is: it decides what is compiled."""
    add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exit 1 if the kernel refuses a program, 73 if nothing can be written."""
    os.umask(0o077)
    chosen, file = settings(arguments.config)
    request = config.loader_request(chosen, keep=config.programs_directory(chosen))
    # Where nobody tells the offsets, they are found in files there.
    mounts = tuple(mount.path for mount in ext4_mounts(Paths()) if not mount.read_only)
    examined = build(dataclasses.replace(request, mounts=mounts))
    for program in examined.dry_run.refused:
        say(f"{program.role}: the kernel refuses {program.function}: {program.refusal}", "err")
    if examined.dry_run.refused:
        return Exit.FAILED
    if examined.origin.not_kept:
        raise EbpfwatchError(
            f"nothing is kept: {examined.origin.not_kept}",
            "make it writable for root, or set state_directory to another place",
            Exit.CANTCREAT,
        )
    print(f"compiled for this kernel and {file}: {examined.origin.file}")
    return Exit.OK
