"""`make test-postmortem`, third part: a dump that the machine itself makes, by kexec.

As Debian's kdump-tools do it, by makedumpfile, in a guest (scripts/kdump.sh): with the mistakes of
audited.py, and read in the same way, by debug information, or by its own BTF.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.vm import guest, kernels
from tests.vm.arm64 import unpacked
from tests.vm.audited import wrong
from tests.vm.debuginfo import vmlinux
from tests.vm.matrix import payload
from tests.vm.reading import audit, postmortem, too_much


def make(kernel: kernels.Kernel, results: Path) -> Path:
    """Boot, load the second kernel, panic, and come back with what it wrote."""
    with tempfile.TemporaryDirectory(prefix="ebpfwatch-payload-", dir="/var/tmp") as name:
        content = payload(kernel, Path(name), ". ./kdump.sh\n")
        tools = unpacked("bookworm", ["makedumpfile", "kexec-tools"])
        subprocess.run(["cp", "-a", tools, content / "tools"], check=True)
        (content / "Image").write_bytes(kernels.unpacked_image(kernel.image))
        if kernel.initrd is not None:
            (content / "initrd").write_bytes(kernel.initrd.read_bytes())
        outcome = guest.run(kernel, content, results, append="crashkernel=320M", timeout=1800)
    dump = results / "dump"
    if not dump.exists() or outcome.exit_code != 0:
        raise SystemExit(f"the guest left no dump: {results / 'console'}")
    return dump


def main() -> int:
    """1 if a reading is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", default="6.1")
    parser.add_argument("--results", type=Path, default=Path("/var/tmp/ebpfwatch-kdump"))
    parser.add_argument("--again", action="store_true", help="read the dump that is there")
    parser.add_argument("--btf", action="store_true", help="read it without debug information")
    arguments = parser.parse_args()
    kernel = kernels.kernel(arguments.kernel)
    dump = arguments.results / "dump" if arguments.again else make(kernel, arguments.results)
    symbols = None if arguments.btf else vmlinux(kernel)
    said, seconds, memory = audit(dump, symbols)
    problems = list(wrong("mistakes", said))
    text, more, most = postmortem(dump, symbols)
    for what, pattern in (
        ("the crashed stack", r"Crashed in sh .*\n(  .*\n)*  sysrq_handle_crash at "),
        ("the modules", r"\nModules:\n(  .*\n)*  cause1, \d+ KiB \(O"),
        ("the log", r"Kernel panic - not syncing: sysrq triggered crash"),
    ):
        if not re.search(pattern, text):
            problems.append(f"postmortem: {what}")
    if too_much(max(seconds, more), max(memory, most)):
        problems.append("too slow, or too large")
    print(
        f"{'FAIL' if problems else 'ok  '} {kernel.release} kdump by {said['types']}:"
        f" {len(said['anomalies'])} anomalies in {said['looked_at']['names']} names;"
        f" {dump.stat().st_size >> 20} MiB audited in {seconds:.1f} s with {memory >> 10} MiB,"
        f" read by postmortem in {more:.1f} s{'; ' if problems else ''}{'; '.join(problems)}",
        flush=True,
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
