"""`make contracts UNLINKS=n`: how often legal work breaks a contract: it must be never.

A watcher of its own with every hook that holds here, and an ext4 of its own: files live and die in
every legal way (legal.c), while caches are dropped, quotas are on, and the filesystem is mounted
anew.  Ends with exit 1 if any verdict fell.
"""

from __future__ import annotations

import argparse
import collections
import os
import subprocess
import tempfile
import time
from pathlib import Path

from ebpfwatch.events.wire import VerdictEvent, decode
from ebpfwatch.kernel.session import Session
from tests.live.harness import build_storm, load_session, loop_ext4
from tests.trust.figures import record
from tests.trust.soak import storm

_DOCUMENT = Path(__file__).parents[2] / "docs/contracts.md"
_ROUNDS = 400
_STORM = 100_000

#: Where rules are checked: by the counter of the hook's runs, the function and its verdicts.
CHECKED = {
    "evict": ("ext4_evict_inode", ("evicted_in_use",)),
    "unlink": ("ext4_unlink_enter", ("unlocked_unlink",)),
    "alloc": ("inode_init_always", ("written_after_free", "allocated_while_alive")),
    "dentry": ("__dentry_kill", ("dentry_killed_twice", "dentry_killed_in_use")),
    "put": ("iput", ("put_without_reference",)),
    "close": ("__fput", ("closed_after_death",)),
}


def build(directory: Path) -> Path:
    """legal.c, compiled."""
    binary = directory / "legal"
    source = Path(__file__).parent / "legal.c"
    subprocess.run(["gcc", "-O2", "-Wall", "-o", binary, source], check=True)
    return binary


def work(binary: Path, mount: Path, reclaim: bool) -> None:
    """Two tasks at once, and reclaim beside them."""
    tasks = [subprocess.Popen(["nice", "-n", "19", binary, mount, str(_ROUNDS)]) for _ in range(2)]
    while reclaim and any(task.poll() is None for task in tasks):
        Path("/proc/sys/vm/drop_caches").write_text("2")
        time.sleep(0.2)
    for task in tasks:
        assert task.wait() == 0


def trees(mount: Path) -> None:
    """A deep tree with many names, looked at, then reclaimed; its top renamed and removed."""
    root = mount / "tree"
    for number in range(20):
        deep = root / "/".join(f"{number}-{level}" for level in range(10))
        deep.mkdir(parents=True)
        for name in range(20):
            (deep / f"file-{name}").touch()
    subprocess.run(["find", root, "-ls"], check=True, stdout=subprocess.DEVNULL)
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("2")
    subprocess.run(["find", root, "-ls"], check=True, stdout=subprocess.DEVNULL)
    root.rename(mount / "renamed")
    subprocess.run(["rm", "-r", mount / "renamed"], check=True)


def mount_anew(mount: Path) -> None:
    """Everything that is cached of the filesystem dies at once; a bind mount goes first."""
    image = mount.parent / "image"
    beside = mount.parent / "beside"
    beside.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", mount, beside], check=True)
    (beside / "left").touch()
    subprocess.run(["umount", beside], check=True)
    subprocess.run(["umount", mount], check=True)
    subprocess.run(["mount", "-o", "loop", image, mount], check=True)


def verdicts(session: Session) -> collections.Counter[str]:
    """What was told since the last look."""
    session.consume()
    events = [decode(raw) for raw in session.records]
    session.records.clear()
    return collections.Counter(
        event.verdict.name.lower() for event in events if isinstance(event, VerdictEvent)
    )


def main() -> int:
    """Until so many files were deleted; prints the table, and writes it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unlinks", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=60, help="at most")
    parser.add_argument("--quota", action="store_true", help="where the kernel has it")
    arguments = parser.parse_args()
    found: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="contracts-", dir="/dev/shm") as name:
        directory = Path(name)
        quota = ("-O", "quota") if arguments.quota else ()
        with loop_ext4(directory, 1 << 30, quota) as mount:
            session = load_session(mount, alloc="always")
            binary, ends = build(directory), time.monotonic() + 60 * arguments.minutes
            number = 0
            storms = build_storm(directory)
            while session.counters()["unlink"] < arguments.unlinks and time.monotonic() < ends:
                work(binary, mount, reclaim=number % 8 == 0)
                for _ in range(4):
                    storm(storms, mount, _STORM, number)
                trees(mount)
                mount_anew(mount)
                found += verdicts(session)
                number += 1
            time.sleep(1)  # what died last is freed a grace period later
            found += verdicts(session)
            counters, rungs = session.counters(), {h.role: h.name for h in session.loaded.hooks}
            session.close()
    rows = ["| hook | rung here | passed | rules broken |", "|---|---|---|---|"]
    for role, (function, told) in CHECKED.items():
        rung = rungs.get(role, "")
        passed = str(counters.get(role, 0)) if rung else ""
        broken = str(sum(found.pop(name, 0) for name in told)) if rung else ""
        rows.append(f"| `{function}` | {rung or 'absent'} | {passed} | {broken} |")
    others = ", ".join(f"{count} {name}" for name, count in found.items()) or "none"
    rows += ["", f"Other verdicts in that time: {others}."]
    command = f"make contracts UNLINKS={arguments.unlinks}"
    record("contracts", command, rows, _DOCUMENT)
    return int(any(row.split("|")[4].strip() not in ("", "0") for row in rows[2:8]) or bool(found))


if __name__ == "__main__":
    raise SystemExit(main())
