"""``ebpfwatch audit VMCORE...|live``: every reference of the VFS counted, and what cannot be."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from ebpfwatch.commands import seconds
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.postmortem.account import Account, Located, audit, in_common, summary
from ebpfwatch.postmortem.dump import Dump
from ebpfwatch.postmortem.opening import add_vmlinux
from ebpfwatch.text.wrapped import wrapped

EXAMPLES = """\
exit code 0: every count agrees; 1: something cannot be

examples:
  ebpfwatch audit /var/crash/202611281200/dump.202611281200
  ebpfwatch audit vmcore --vmlinux vmlinux       the dump of another machine
  ebpfwatch audit live                           this kernel, as root
"""

_LIVE = "live"


def configure(parser: argparse.ArgumentParser) -> None:
    """The dumps, their debug information, and how much to show."""
    parser.add_argument(
        "vmcore",
        metavar="VMCORE",
        nargs="+",
        help="a dump (ELF or kdump-compressed); several are compared; `live`: the running kernel",
    )
    add_vmlinux(parser)
    parser.add_argument(
        "--threshold",
        type=int,
        default=10,
        metavar="N",
        help="list names with N or more references that nothing explains (default 10)",
    )
    parser.add_argument(
        "--most", type=int, default=50, metavar="N", help="anomalies to show in full (default 50)"
    )
    parser.add_argument(
        "--seconds",
        type=seconds,
        default=600.0,
        metavar="S",
        help="most time for one look (default 600); what is left out is said",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a dump")


def run(arguments: argparse.Namespace) -> int:
    """Exit 1 if anything cannot be."""
    names = list(dict.fromkeys(arguments.vmcore))
    for name in names:
        if name != _LIVE and not Path(name).is_file():
            raise EbpfwatchError(f"no file {name}", f"give a vmcore, or {_LIVE}", Exit.USAGE)
    accounts: list[tuple[str, Account]] = []
    for name in names:
        dump = Dump(None if name == _LIVE else Path(name), arguments.vmlinux)
        account = audit(
            dump.drgn,
            dump.program,
            dump.name,
            name == _LIVE,
            arguments.threshold,
            arguments.seconds,
        )
        accounts.append((name, account))
        if arguments.json:
            print(json.dumps(_json(name, dump.types, account), ensure_ascii=True))
        else:
            print(*_text(name, dump.types, account, arguments.most), sep="\n")
    if len(accounts) > 1 and not arguments.json:
        print("", "All dumps together:", *(f"  {line}" for line in in_common(accounts)), sep="\n")
    return Exit.FAILED if any(account.anomalies for _, account in accounts) else Exit.OK


def _text(name: str, types: str, account: Account, most: int) -> list[str]:
    lines = [f"{name}: kernel {account.release}, read by its {types}", ""]
    lines += summary(account)
    for number, one in enumerate(account.anomalies[:most], 1):
        lines += ["", *_one(number, one)]
    if len(account.anomalies) > most:
        lines += ["", f"{len(account.anomalies) - most} more are not shown: --most"]
    lines += ["", *_unexplained(account)]
    counted = ", ".join(f"{count} {what}" for what, count in account.looked_at.items())
    lines += ["", f"Looked at in {account.seconds:.1f} s: {counted}."]
    if account.changing:
        lines.append(
            f"Not judged: {account.changing} objects whose lock was held, so that they were just"
            " being changed."
        )
    if account.moved:
        lines.append(f"Left out: {account.moved} that only one of two looks saw.")
    lines += [f"Not looked at: {what}." for what in account.unread]
    return list(wrapped(lines))


def _one(number: int, one: Located) -> list[str]:
    """An anomaly's paragraph: object, path, file system, too few of what, who holds the rest."""
    anomaly = one.anomaly
    lines = [f"{number}. {anomaly.what} {one.path or hex(anomaly.object)}: {anomaly.says}"]
    about = [f"object {anomaly.object:#x}"]
    if anomaly.number:
        about.append(f"inode {anomaly.number}")
    if one.filesystem:
        about.append(f"file system {one.filesystem}")
    lines.append("   " + ", ".join(about))
    if anomaly.missing:
        lines.append(f"   references: {anomaly.missing} too few")
    if anomaly.holders:
        lines.append(f"   found: {', '.join(anomaly.holders)}")
    return lines


def _unexplained(account: Account) -> list[str]:
    """What is held by something that was not looked at: no mistake by itself."""
    lines = []
    for filesystem, (count, paths) in sorted(
        account.held_by_nobody.items(), key=lambda item: -item[1][0]
    ):
        lines.append(
            f"Open files that no process has, on {filesystem or 'an unknown file system'}: {count}"
            f" ({', '.join(paths)}{', ...' if count > len(paths) else ''}). The kernel holds them:"
            " for a loop device, a swap file, a socket on the way to another process, or because a"
            " module never closed them."
        )
    for path, filesystem, has, more in account.more:
        lines.append(
            f"Held by something that was not looked at: {path} on {filesystem}, {more} of its {has}"
            " references."
        )
    if account.more_by_filesystem:
        each = (
            f"{filesystem or 'unknown'}: {references} of {objects} names"
            for filesystem, (objects, references) in sorted(account.more_by_filesystem.items())
        )
        lines.append(f"References that nothing explains, by file system: {'; '.join(each)}.")
    return lines


def _json(name: str, types: str, account: Account) -> dict[str, object]:
    whole = dataclasses.asdict(account)
    for kept, one in zip(account.anomalies, whole["anomalies"]):
        one["anomaly"]["missing"] = kept.anomaly.missing
    return {"name": name, "types": types, "summary": summary(account), **whole}
