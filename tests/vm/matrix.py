"""`make test-vm`: each crime in a guest of its own, and what the daemon made of it.

Prints one line a scenario, writes docs/detection.md, and exits 1 if a crime that the kernel leaves
time for went unnoticed, or named the wrong inode.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.vm import cache, guest

ROOT = Path(__file__).parents[2]
MODULES = Path(__file__).parent / "modules"


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A crime, the verdict it must get, and what is special about it.

    ``deadly``: the kernel dies in the very softirq of the second free, before user space can run.
    ``guilty``: the module's own code is on the stack, so it must be named.
    """

    name: str
    verdict: str
    what: str
    deadly: bool = False
    guilty: bool = False


SCENARIOS = (
    Scenario("benign", "double_free", "the first free swallowed, then ext4's callback again"),
    Scenario("destroy", "double_destroy", "ext4_destroy_inode again before the grace period ends"),
    Scenario("reused", "free_while_alive", "freed after another inode lives at the address"),
    Scenario("stranger", "double_free", "kmem_cache_free by the module itself", guilty=True),
    Scenario("again", "double_free", "a second RCU free at once", deadly=True),
    Scenario("late", "double_free", "a second RCU free two seconds later", deadly=True),
    Scenario("legal", "", "two tasks race to delete the same files; reclaim meanwhile"),
)

_RUN = """\
mkdir -p /lib/modules/$(uname -r)
ln -sfn /payload/headers /lib/modules/$(uname -r)/build
export PYTHONDONTWRITEBYTECODE=1
sed 's#/var/lib/ebpfwatch#/results/state#' config.example.yaml >/tmp/config.yaml
python3 -m ebpfwatch run --config /tmp/config.yaml >/results/out 2>/results/err &
alive='hook_alive.hook=.any_free.. 1.0'
for i in $(seq 200); do
    curl -s localhost:9866/metrics | grep -q "$alive" && break
    sleep 0.5
done
"""

_CRIME = """\
echo x >/mnt/vdb/victim
insmod crime.ko path=/mnt/vdb/victim scenario={name} || exit 3
rm /mnt/vdb/victim
"""

_REUSE = """\
for cpu in 0 1; do
    taskset -c $cpu sh -c "for i in \\$(seq 3000); do : >/mnt/vdb/new-$cpu-\\$i; done" &
    last=$!
done
wait $last
"""

_LEGAL = """\
for i in $(seq 300); do : >/mnt/vdb/race-$i; done
for task in 1 2; do
    (for i in $(seq 300); do rm -f /mnt/vdb/race-$i; done) &
    last=$!
done
echo 2 >/proc/sys/vm/drop_caches
wait $last
"""

_END = """\
sleep 6
curl -s localhost:9866/metrics >/results/metrics
dmesg >/results/dmesg
"""


def script(scenario: Scenario) -> str:
    """What the guest runs."""
    crime = _LEGAL if scenario.name == "legal" else _CRIME.format(name=scenario.name)
    return _RUN + crime + (_REUSE if scenario.name == "reused" else "") + _END


def build_module(kernel: cache.Kernel, directory: Path) -> Path:
    """Cross-build crime.ko for a kernel."""
    shutil.copytree(MODULES, directory)
    words = ["make", "-s", "-C", kernel.headers, f"M={directory}", "ARCH=arm64"]
    subprocess.run([*words, "CROSS_COMPILE=aarch64-linux-gnu-", "modules"], check=True)
    return directory / "crime.ko"


def payload(kernel: cache.Kernel, scenario: Scenario, directory: Path) -> Path:
    """The checkout, the module, the headers, the script."""
    content = directory / "payload"
    content.mkdir()
    for part in ("ebpfwatch", "probes"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, content / part, ignore=ignore)
    shutil.copy(ROOT / "config.example.yaml", content)
    shutil.copy(build_module(kernel, directory / "module"), content)
    shutil.copytree(kernel.headers, content / "headers", symlinks=True)
    (content / "run.sh").write_text(script(scenario))
    return content


@dataclasses.dataclass(frozen=True)
class Row:
    """What came of one scenario."""

    scenario: Scenario
    findings: list[dict[str, Any]]
    ended: str
    ok: bool
    why: str


def judge(scenario: Scenario, outcome: guest.Outcome) -> Row:
    """Compare the findings with what the module confessed."""
    files = sorted((outcome.results / "state/findings").glob("*.json"))
    findings = [json.loads(file.read_text()) for file in files]
    ended = _ending(outcome)
    if "ready after" not in outcome.text("err"):
        return Row(scenario, findings, ended, False, "the daemon was not ready")
    if not scenario.verdict:
        alarms = [f["verdict"] for f in findings if f["verdict"] != "concurrent_unlink"]
        return Row(scenario, findings, ended, not alarms, ", ".join(alarms))
    confessed = re.search(r"crime: \w+ object=\S+ ino=(\d+) generation=(\d+)", outcome.console)
    if not confessed:
        return Row(scenario, findings, ended, False, "the crime was not committed")
    found = next((f for f in findings if f["verdict"] == scenario.verdict), None)
    if found is None:
        return Row(scenario, findings, ended, scenario.deadly, "died before user space could run")
    if scenario.name != "reused" and found["identity"]["ino"] != int(confessed.group(1)):
        return Row(scenario, findings, ended, False, "the wrong inode")
    if scenario.guilty and not any("[crime]" in frame for frame in found["second"]["stack"]):
        return Row(scenario, findings, ended, False, "the guilty module is not named")
    return Row(scenario, findings, ended, True, "")


def _ending(outcome: guest.Outcome) -> str:
    complaint = re.search(
        r"(kernel BUG at \S+|Unable to handle [^\n\r]*|WARNING: CPU: \d+ PID: \d+ at \S+"
        r"|list_\w+ corruption)",
        outcome.console,
    )
    says = complaint.group(1).strip("!") if complaint else "silent"
    return f"{says}{'; panic' if outcome.panicked else ''}"


def table(kernel: str, rows: list[Row]) -> str:
    """docs/detection.md."""
    lines = [
        "# Detection in guests",
        "",
        "Written by `make test-vm`: each scenario of tests/vm/modules/crime.c in its own boot.",
        "",
        "| kernel | scenario | detected | the kernel itself |",
        "|---|---|---|---|",
    ]
    for row in rows:
        verdicts = "; ".join(f"{f['verdict']} ({f['confidence']})" for f in row.findings[:3])
        detected = verdicts or ("nothing, rightly" if not row.scenario.verdict else row.why)
        lines.append(f"| {kernel} | {row.scenario.what} | {detected} | {row.ended} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the matrix; 1 if anything is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", default="4.19")
    parser.add_argument("--scenarios", default="", help="comma-separated; default all")
    parser.add_argument("--results", type=Path, default=Path("/var/tmp/ebpfwatch-vm"))
    arguments = parser.parse_args()
    wanted = set(filter(None, arguments.scenarios.split(",")))
    kernel = cache.kernel(arguments.kernel)
    cache.root_image()
    rows = []
    for scenario in SCENARIOS:
        if wanted and scenario.name not in wanted:
            continue
        results = arguments.results / arguments.kernel / scenario.name
        with tempfile.TemporaryDirectory(prefix="ebpfwatch-payload-", dir="/var/tmp") as name:
            content = payload(kernel, scenario, Path(name))
            outcome = guest.run(kernel, content, results, timeout=240)
        row = judge(scenario, outcome)
        rows.append(row)
        verdicts = ", ".join(f"{f['verdict']} {f['confidence']}" for f in row.findings) or "nothing"
        mark = "ok  " if row.ok else "FAIL"
        print(f"{mark} {arguments.kernel} {scenario.name}: {verdicts}; {row.ended}; {row.why}")
        print(f"     {outcome.seconds:.0f} s, console: {results / 'console'}", flush=True)
    if not wanted:
        (ROOT / "docs/detection.md").write_text(table(arguments.kernel, rows))
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
