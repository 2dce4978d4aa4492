"""`make test-postmortem`, second part: dumps of guests in which ebpfwatch did not run, audited.

A busy, healthy guest: no anomaly in any dump.  The same guest with mistakes made by causes.ko: each
object is named, with the number of references that are missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.vm import dumps, kernels
from tests.vm.arm64 import compress, unpacked
from tests.vm.asked import DEAD
from tests.vm.debuginfo import vmlinux
from tests.vm.reading import audit, too_much

#: Path, kinds of which one must be told, and how many references are missing (None: any).
_MISTAKES: tuple[tuple[str, tuple[str, ...], int | None], ...] = (
    ("/mnt/vdb/dir", ("name_too_few",), 146),
    ("/mnt/vdb/iput_open", ("inode_too_few",), 1),
    ("/mnt/vdb/iput_idle", ("inode_too_few",), 1),
    ("/mnt/vdb/dput_open", ("name_too_few",), 1),
    *((f"/mnt/vdb/dput_many{number}", ("name_too_few",), 1) for number in range(1, 41)),
    ("/mnt/vdb/freed", ("inode_freed_on_list",), None),
)
_LEAKED = 300
#: As kdump-tools calls makedumpfile: LZO, zlib, and without what an audit does not need.
_MAKEDUMPFILE = (("-l", "-d", "31"), ("-c", "-d", "31"))


def wrong(name: str, said: Any) -> Iterator[str]:
    """What audit should have said of the dump of this name, and has not."""
    found = said["anomalies"]
    if name.startswith("healthy"):
        if found or not said["looked_at"]["names"]:
            yield f"{len(found)} anomalies of a healthy machine"
    elif name == DEAD:
        if not found:
            yield "nothing in the dump of a machine that died of it"
    else:
        for path, kinds, missing in _MISTAKES:
            told = [
                one["anomaly"]
                for one in found
                if one["path"] == path and one["anomaly"]["kind"] in kinds
            ]
            if not told or missing is not None and told[0]["missing"] != missing:
                yield f"{path}: {[(one['kind'], one['missing']) for one in told]}"
        innocent = [one["path"] for one in found if one["path"] not in {m[0] for m in _MISTAKES}]
        if innocent:
            yield f"innocent: {innocent[:5]}"
        held = sum(count for count, _ in said["held_by_nobody"].values())
        if held < _LEAKED:
            yield f"{held} files that no process has, of {_LEAKED}"


def main() -> int:
    """1 if an audit is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", default="6.1")
    parser.add_argument("--form", default="elf", help="of QEMU's dump")
    parser.add_argument("--healthy", type=int, default=5, help="dumps of the busy machine")
    parser.add_argument("--results", type=Path, default=Path("/var/tmp/ebpfwatch-audited"))
    parser.add_argument(
        "--live", action="store_true", help="read the living kernel in the guest, too: minutes"
    )
    parser.add_argument("--again", action="store_true", help="read the dumps that are there")
    arguments = parser.parse_args()
    kernel = kernels.kernel(arguments.kernel)
    symbols = vmlinux(kernel)
    results = arguments.results / kernel.name
    if arguments.again:
        found = {
            file.stem.partition(f"{kernel.name}-")[2]: file
            for file in sorted(arguments.results.glob(f"{kernel.name}-*.vmcore"))
        }
    else:
        trees = {}
        if arguments.live:
            trees["drgn"] = unpacked("trixie", ["python3-drgn", "python3", "coreutils"])
            trees["vmlinux"] = symbols.resolve()
        script = f"set -- {arguments.healthy}\n. ./audit.sh\n"
        found = dumps.make(
            kernel, script, results, arguments.form, modules=("loop", "overlay"), trees=trees
        )

    bad = 0 if "mistakes" in found else 1
    if arguments.form == "elf" and "mistakes" in found:
        for options in _MAKEDUMPFILE:
            name = f"mistakes{'-'.join(options)}"
            found[name] = found["mistakes"].with_name(f"{kernel.name}-{name}.kdump")
            compress(found["mistakes"], found[name], options)
    for name in ("live-busy", "live-mistakes"):
        if (results / f"{name}.json").exists():
            said = json.loads((results / f"{name}.json").read_text() or "{}")
            problems = (
                list(wrong(name.replace("live-busy", "healthy"), said)) if said else ["nothing"]
            )
            bad += bool(problems)
            print(
                f"{'FAIL' if problems else 'ok  '} {kernel.release} {name}:"
                f" {len(said.get('anomalies', []))} anomalies, {said.get('moved')} seen by one look"
                f" only, {said.get('seconds')} s{'; ' if problems else ''}{'; '.join(problems)}"
            )
    for name, vmcore in found.items():
        try:
            said, seconds, memory = audit(vmcore, symbols)
        except RuntimeError as error:
            raise SystemExit(str(error)) from None
        problems = list(wrong(name, said))
        if too_much(seconds, memory):
            problems.append("too slow, or too large")
        bad += bool(problems)
        print(
            f"{'FAIL' if problems else 'ok  '} {kernel.release} {name}:"
            f" {len(said['anomalies'])} anomalies in {said['looked_at']['names']} names;"
            f" {vmcore.stat().st_size >> 20} MiB of dump read in {seconds:.1f} s with"
            f" {memory >> 10} MiB{'; ' if problems else ''}{'; '.join(problems)}",
            flush=True,
        )
    print(f"{len(found)} dumps audited, {bad} not as they must be")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
