"""`make bench-vm`: the cost on kprobe and fentry rungs, in arm64 guests that count instructions."""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import tempfile
from pathlib import Path

from tests.bench.verdicts import by_role, table
from tests.trust.figures import between
from tests.vm import guest, kernels
from tests.vm.matrix import payload

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Boot:
    """A guest; with ``append`` on the kernel's command line only the storm is measured."""

    kernel: str
    name: str
    append: str = ""


BOOTS = (
    Boot("6.12", "ebpfwatch"),
    Boot("6.12", "slub_debug=FZPU on ext4's cache", "slub_debug=FZPU,ext4_inode_cache"),
    Boot("6.12", "KFENCE at 100 ms", "kfence.sample_interval=100"),
    Boot("4.19", "ebpfwatch"),
    Boot("4.19", "slub_debug=FZPU on ext4's cache", "slub_debug=FZPU,ext4_inode_cache"),
)

#: What a line of scripts/cost.py about a program begins with.
_PROGRAM = "program "

#: What a kprobe costs on arm64, in nanoseconds, when it is hit again and again, and the first time.
_TRAP_NS, _COLD_TRAP_NS = 290, 1530

_HEAD = f"""\
Two thousand files created and deleted by one task, nine pairs, in an arm64 guest whose clock
counts instructions (QEMU `-icount`), so a kprobe's trap, caches and pipelines are not in it: the
median ratio, and where it lies with 96 %. The kernel's own debugging has a boot of its own, and
is compared with the plain boot.

The traps are counted by programs of their own on the same kprobes, and priced with what was
measured on a Kunpeng 920 (Hip08): {_TRAP_NS} ns for an empty function with a kprobe at its entry
and a probe at its return when it is called again and again, {_COLD_TRAP_NS} ns the first time (Qi
Liu, "arm64: Enable OPTPROBE for arm64", v3, linux-kernel, 10 August 2021). That is the price of a
breakpoint and a single step, and a little more.

| kernel | subject | to nothing, or number | interval, or each |
|---|---|---|---|
"""


def run(boot: Boot, results: Path) -> list[list[str]]:
    """Lines of (name, median, spread); raises ``SystemExit`` with the last words of the guest."""
    kernel = kernels.kernel(boot.kernel)
    alone = " alone" if boot.append else ""
    script = (
        f". ./common.sh\nPYTHONPATH=/payload python3 cost.py{alone}"
        " >/results/figures 2>/results/err || exit 1\n"
    )
    with tempfile.TemporaryDirectory(prefix="ebpfwatch-payload-", dir="/var/tmp") as name:
        content = payload(kernel, Path(name), script)
        words = ["aarch64-linux-gnu-gcc", "-O2", "-static", "-o", str(content / "storm")]
        subprocess.run([*words, str(ROOT / "tests/live/storm.c")], check=True)
        outcome = guest.run(kernel, content, results, boot.append, timeout=1800, icount=True)
    print(outcome.text("err"), outcome.text("figures"), f"{outcome.seconds:.0f} s", flush=True)
    if outcome.exit_code != 0:
        raise SystemExit(f"{boot}: {outcome.text('err')[-500:]} {outcome.text('output')[-500:]}")
    return [line.split("|") for line in outcome.text("figures").splitlines()]


def _priced(name: str, traps: str, _: str) -> tuple[str, str, str]:
    """What so many traps cost, by what was published."""
    warm, cold = (float(traps) * price / 1000 for price in (_TRAP_NS, _COLD_TRAP_NS))
    return f"{name}, their price in us", f"{warm:.2f}", f"{cold:.2f} where nothing is in the caches"


def main() -> None:
    """Print the table; with --write put it into the documentation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", default="", help="default all")
    parser.add_argument("--results", type=Path, default=Path("/var/tmp/ebpfwatch-bench-vm"))
    parser.add_argument("--write", type=Path)
    parser.add_argument("--plain", action="store_true", help="not the kernel's own debugging")
    arguments = parser.parse_args()
    named = arguments.kernels.split()
    wanted = named or [boot.kernel for boot in BOOTS]
    plain: dict[str, float] = {}
    rows: list[tuple[str, ...]] = []
    verdicts: list[str] = []
    for number, boot in enumerate(BOOTS):
        if boot.kernel not in wanted or (arguments.plain and boot.append):
            continue
        if boot.kernel not in named and (why := kernels.absent(boot.kernel)):
            rows.append((boot.kernel, boot.name, "not run", why))
            continue
        (_, us, _), *ratios = run(boot, arguments.results / str(number))
        if boot.append:
            ratio = float(us) / plain[boot.kernel]
            rows.append((boot.kernel, boot.name, f"{ratio:.4f}", "another boot"))
            continue
        plain[boot.kernel] = float(us)
        if programs := [line for line in ratios if line[0].startswith(_PROGRAM)]:
            cost = {name[len(_PROGRAM) :]: (float(runs), float(n)) for name, n, runs in programs}
            verdicts += ["", f"What each verdict costs on {boot.kernel}:", ""]
            verdicts += table("instructions", by_role(cost))
        for line in ratios:
            if line in programs:
                continue
            rows.append((boot.kernel, *line))
            if line[0].endswith(("traps a life", "traps a pipe made and closed")):
                rows.append((boot.kernel, *_priced(*line)))
    text = _HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)
    text += "".join(f"{line}\n" for line in verdicts)
    print(text)
    if arguments.write:
        between(arguments.write, "bench-vm", text)


if __name__ == "__main__":
    main()
