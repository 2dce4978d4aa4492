"""``ebpfwatch check``: the ladder as this kernel would take it, without staying loaded."""

from __future__ import annotations

import argparse
import json
import platform

from ebpfwatch.errors import Exit
from ebpfwatch.host.mounts import ext4_mounts
from ebpfwatch.kernel.ladder import LADDER, REQUIRED
from ebpfwatch.kernel.session import Ladder, probe
from ebpfwatch.paths import Paths


def configure(parser: argparse.ArgumentParser) -> None:
    """Output form."""
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--verbose", action="store_true", help="show what the loader says")


def run(arguments: argparse.Namespace) -> int:
    """Exit 0 if the watcher can do its work here, 69 if it cannot."""
    hooks, reply = probe(arguments.verbose)
    mounts = ext4_mounts(Paths())
    usable = _usable(hooks)
    if arguments.json:
        print(
            json.dumps(
                {
                    "kernel": platform.release(),
                    "machine": platform.machine(),
                    "usable": usable,
                    "hooks": [vars(hook) for hook in hooks],
                    "features": reply["features"],
                    "mounts": [mount.path for mount in mounts],
                }
            )
        )
        return Exit.OK if usable else Exit.UNAVAILABLE
    print(f"kernel {platform.release()} {platform.machine()}")
    for hook in hooks:
        best = LADDER[hook.role][0].name
        mark = "OK  " if hook.rung == best else "WARN" if hook.rung else "MISS"
        print(f"{mark} {hook.role:9} {hook.rung or 'no rung holds'}")
        if hook.reason:
            print(f"               {hook.reason}")
    for name, have in reply["features"].items():
        print(f"{'OK  ' if have else 'WARN'} {name:9} {'yes' if have else 'no'}")
    paths = ", ".join(mount.path for mount in mounts)
    print(f"{'OK  ' if mounts else 'MISS'} ext4      {paths or 'no ext4 filesystem is mounted'}")
    print("the watcher can do its work here" if usable else "the watcher cannot work here")
    return Exit.OK if usable else Exit.UNAVAILABLE


def _usable(hooks: list[Ladder]) -> bool:
    rungs = {hook.role: hook.rung for hook in hooks}
    frees = rungs.get("rcu_free") or rungs.get("any_free")
    return all(rungs.get(role) for role in REQUIRED) and bool(frees)
