"""`make test-postmortem`: a real arm64 vmcore of a second free, read on this machine.

The guest dies of crime.ko's second RCU free and stays where it died (panic=0); QEMU writes its
memory as an ELF vmcore, with the kernel's own vmcoreinfo in it, as kdump would.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.vm import guest, kernels
from tests.vm.debuginfo import vmlinux
from tests.vm.matrix import payload

ROOT = Path(__file__).parents[2]

_SCRIPT = """\
insmod qemu_fw_cfg.ko  # it tells QEMU where the kernel's vmcoreinfo is
watch
mkdir -p /mnt/vdb/a/b
echo x >/mnt/vdb/a/b/victim
insmod crime.ko path=/mnt/vdb/a/b/victim scenario=again || exit 3
sleep 8
rm /mnt/vdb/a/b/victim
sleep 60
"""


def dump_when_dead(monitor: Path, console: Path, vmcore: Path, seconds: float) -> None:
    """Wait for the panic on the console, let QEMU write the dump, and end it."""
    deadline = time.monotonic() + seconds
    while "end Kernel panic" not in (
        console.read_text(errors="replace") if console.exists() else ""
    ):
        if time.monotonic() > deadline:
            return
        time.sleep(0.5)
    with guest.qmp(monitor) as ask:
        ask("dump-guest-memory", paging=False, protocol=f"file:{vmcore}")
        ask("quit")


def make_vmcore(kernel: kernels.Kernel, results: Path) -> Path:
    """Boot, die, dump; ``SystemExit`` with the console's place if there is no dump."""
    vmcore = results.with_suffix(".vmcore")
    vmcore.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="ebpfwatch-payload-", dir="/var/tmp") as name:
        qmp = Path(name) / "qmp"
        watcher = threading.Thread(
            target=dump_when_dead, args=(qmp, results / "console", vmcore, 600)
        )
        content = payload(kernel, Path(name), _SCRIPT)
        kernels.copy_modules(kernel, ("qemu_fw_cfg",), content)
        watcher.start()
        guest.run(
            kernel,
            content,
            results,
            append="panic=0",
            timeout=600,
            devices=("-device", "vmcoreinfo", "-qmp", f"unix:{qmp},server=on,wait=off"),
        )
        watcher.join()
    if not vmcore.exists():
        raise SystemExit(f"the guest did not die, or left no dump: {results / 'console'}")
    return vmcore


def check(said: str, console: str) -> list[str]:
    """What the post-mortem must say, judged by what the module confessed; the missing lines."""
    confessed = re.search(r"crime: again object=(\S+) ino=(\d+) generation=(\d+)", console)
    if not confessed:
        return ["the crime was not committed"]
    object_, ino, generation = confessed.groups()
    address = f"{int(object_, 16):#x}"
    wanted = {
        "the verdict": rf"double_free \(\w+\): ext4 inode {ino} on ",
        "the identity": rf"Inode: {ino} generation {generation} on ",
        "the culprit": r"Most likely responsible: module crime \(out-of-tree, unsigned\)",
        "who unlinked it": r"Unlinked by rm ",
        "the path": r"Path: /a/b/victim",
        "the object's transitions": rf"{address} inode {ino} on \S+ freed by ",
        "the page": rf"Is the page of object {address} still a slab page\? yes, of ext4_inode",
        "ps": r"\nTasks:\n  \d+ tasks by state: ",
        "the memory": r"\nMemory:\n  total [\d.]+ MiB, free ",
        "the mounts": r"\n  /dev/vdd on /mnt/vdb type ext4",
        "the modules": r"\nModules:\n(  .*\n)*  crime, \d+ KiB \(O",
        "the log as triage reads it": r"THIS BUG|SUSPECTED",
        "the crashed stack": r"Crashed in .*\n(  .*\n)*  ext4_free_in_core_inode at ",
    }
    missing = [what for what, pattern in wanted.items() if not re.search(pattern, said)]
    if "1970" in said:
        missing.append("the time of day")
    if not told_by_the_kernel(console) <= set(re.findall(r"\n  (\w+) at 0x", said)):
        missing.append("the kernel's own call trace")
    return missing


def told_by_the_kernel(console: str) -> set[str]:
    """The functions of its oops's first frames, which the dump must have, too; one of a module
    without symbols has no name there.
    """
    trace = console[console.rindex("Call trace:") :]
    frames = re.findall(r"\]  (\w+)\+0x\w+/0x\w+( \[\w+\])?", trace)[:8]
    return {name for name, module in frames if not module}


def main() -> int:
    """1 if the post-mortem does not tell what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", default="6.1")
    parser.add_argument("--results", type=Path, default=Path("/var/tmp/ebpfwatch-postmortem"))
    parser.add_argument("--vmcore", type=Path, help="read this one instead of making one")
    arguments = parser.parse_args()
    kernel = kernels.kernel(arguments.kernel)
    symbols = vmlinux(kernel)
    vmcore = arguments.vmcore or make_vmcore(kernel, arguments.results)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "ebpfwatch", "postmortem", vmcore, "--vmlinux", symbols],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    print(done.stdout, done.stderr, sep="")
    missing = check(done.stdout, (arguments.results / "console").read_text(errors="replace"))
    print(f"{kernel.release}: {vmcore.stat().st_size >> 20} MiB of dump read in", end=" ")
    print(f"{time.monotonic() - began:.1f} s; missing: {', '.join(missing) or 'nothing'}")
    return 1 if missing or done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
