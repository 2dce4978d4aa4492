"""What the loader child is asked for; it is asked before the rest of the daemon is imported."""

from __future__ import annotations

import dataclasses

from ebpfwatch import config
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.host import mounts
from ebpfwatch.kernel.protocol import LoadRequest
from ebpfwatch.paths import Paths

__all__ = ["load_request"]


def load_request(settings: config.Config, paths: Paths, verbose: bool) -> LoadRequest:
    """What the loader child is asked for; raises ``EbpfwatchError`` where there is no ext4."""
    found = mounts.ext4_mounts(paths)
    if not found:
        what, remedy = mounts.none_visible(mounts.ext4_elsewhere(paths))
        raise EbpfwatchError(what, f"{remedy}, then start again", Exit.UNAVAILABLE)
    return dataclasses.replace(
        config.loader_request(settings, keep=config.programs_directory(settings)),
        mounts=tuple(mount.path for mount in found if not mount.read_only),
        verbose=verbose,
    )
