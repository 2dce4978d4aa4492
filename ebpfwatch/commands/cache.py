"""``ebpfwatch cache``: the files and mounts that hold most page cache, and how many inodes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from ebpfwatch.commands import positive, seconds
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.host import meminfo, slabinfo, vfs
from ebpfwatch.pagecache.residency import Residency
from ebpfwatch.pagecache.survey import Limits, Result, Survey
from ebpfwatch.paths import Paths
from ebpfwatch.text.printable import printable


def configure(parser: argparse.ArgumentParser) -> None:
    """Limits, and where to look."""
    parser.add_argument(
        "path", nargs="*", metavar="DIR", help="walk only these, and no other process's files"
    )
    parser.add_argument("--top", type=positive, default=50, metavar="N", help="files to show (50)")
    parser.add_argument(
        "--seconds", type=seconds, default=10.0, metavar="S", help="time for all of it (10)"
    )
    parser.add_argument(
        "--inodes",
        type=positive,
        default=20000,
        metavar="N",
        help="end the walk when it has put N inodes into memory (20000)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Look, then say what was found and what was not looked at."""
    paths = Paths()
    roots = [_directory(path) for path in arguments.path]
    limits = Limits(arguments.seconds, arguments.inodes, arguments.top)
    progress = _Progress()
    survey = Survey(paths, limits, Residency(), progress.show)
    try:
        result = survey.run(roots)
    except (OSError, ValueError) as error:
        raise EbpfwatchError(f"cannot read the mounts: {error}", "", Exit.OSERR) from None
    finally:
        progress.clear()
    whole = _whole(paths)
    if arguments.json:
        print(json.dumps({"schema": 1, **vars(result), **whole}, ensure_ascii=True))
    else:
        print("\n".join(printable(line) for line in _text(result, whole)))
    return Exit.OK


def _directory(path: str) -> str:
    """Its full name; raises ``EbpfwatchError`` where it cannot be walked."""
    try:
        with os.scandir(path):
            return os.path.abspath(path)
    except OSError as error:
        raise EbpfwatchError(
            f'cannot walk "{path}": {error.strerror}',
            "give a directory that you may read",
            Exit.NOPERM if isinstance(error, PermissionError) else Exit.USAGE,
        ) from None


class _Progress:
    """One line that rewrites itself, on a terminal only."""

    def __init__(self) -> None:
        self._on = sys.stderr is not None and sys.stderr.isatty()

    def show(self, line: str) -> None:
        if self._on:
            print(f"\r\x1b[K{printable(line)[:78]}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._on:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _whole(paths: Paths) -> dict[str, Any]:
    """What the kernel says of the whole machine; what cannot be read is absent."""
    whole: dict[str, Any] = {}
    try:
        memory = meminfo.read(paths)
        whole["page_cache"] = (memory.cached or 0) + (memory.buffers or 0)
    except (OSError, ValueError):
        pass
    try:
        whole["vfs"] = vars(vfs.read(paths))
    except (OSError, ValueError):
        pass
    try:
        whole["slabs"] = [vars(cache) for cache in slabinfo.read(paths).caches]
    except (OSError, ValueError):
        whole["slabs_unknown"] = "only root may read /proc/slabinfo"
    return whole


def _text(result: Result, whole: dict[str, Any]) -> list[str]:
    lines = [f"{size:>10}  {name}" for size, name in ((_mib(b), n) for b, n in result.files)]
    if not lines:
        lines = ["no file with pages in the cache was found"]
    lines += ["", "By mount (bytes, files with pages in the cache):"]
    by_size = sorted(result.mounts.items(), key=lambda item: -item[1][1])
    lines += [f"{_mib(total):>10}  {count:>7}  {where}" for where, (count, total) in by_size[:20]]
    lines += ["", *_totals(result, whole), *_inodes(whole)]
    for what in result.unasked:
        lines.append(f"Not looked at: {what}.")
    if result.refused:
        lines.append(
            f"Not looked at: {result.refused} files or directories that this user may not ask"
            " about."
        )
    return lines


def _totals(result: Result, whole: dict[str, Any]) -> list[str]:
    found = (
        f"Found {_mib(result.bytes)} in {result.holding} of {result.asked} files asked, by"
        f" {result.method}, in {result.seconds:.1f} s"
    )
    total = whole.get("page_cache")
    if not total:
        return [f"{found}."]
    return [
        f"{found};",
        f"the kernel's page cache (Cached + Buffers) is {_mib(total)}: the rest is in files not"
        " asked, in shared memory, or changed meanwhile.",
    ]


def _inodes(whole: dict[str, Any]) -> list[str]:
    lines = []
    if "vfs" in whole:
        count = whole["vfs"]
        negative = count["dentries_negative"]
        lines.append(
            f"Inodes in memory: {count['inodes']} ({count['inodes_unused']} unused); dentries:"
            f" {count['dentries']} ({count['dentries_unused']} unused"
            + (f", {negative} of names that do not exist)" if negative is not None else ")")
            + "; open files: "
            + f"{count['files']}."
        )
    for cache in whole.get("slabs", []):
        lines.append(
            f"Slab {cache['name']}: {cache['active']} of {cache['total']} objects,"
            f" {_mib(cache['bytes'])}."
        )
    if "slabs_unknown" in whole:
        lines.append(f"Slabs of inodes and dentries: not known, {whole['slabs_unknown']}.")
    lines.append("The kernel does not tell to which mount these inodes belong.")
    return lines


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
