"""`make test-vm`: each crime in a guest of its own, and what the daemon made of it.

Prints one line a scenario, writes docs/detection.md, and exits 1 if a crime that the kernel leaves
time for went unnoticed, or named the wrong inode.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ebpfwatch.lastboot import BootRecord, TracedVerdict, traced
from tests.vm import guest, kernels, payloads
from tests.vm.root import mount_binfmt, root_image

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A crime, the verdict it must get, and what is special about it.

    ``guilty``: the module's own code is on the stack, so it must be named.  ``script`` replaces
    the crime and judges itself.  ``append`` goes to the kernel's command line and makes the guest
    one that is reset, not ended, by a panic; ``kernels`` are those that can do it (ramoops built
    in), () for all.  ``asked``: only run when it is named.
    """

    name: str
    verdict: str
    what: str
    guilty: bool = False
    script: str = ""
    timeout: float = 300
    append: str = ""
    kernels: tuple[str, ...] = ()
    asked: bool = False


SCENARIOS = (
    Scenario("benign", "double_free", "the first free swallowed, then ext4's callback again"),
    Scenario("destroy", "double_destroy", "ext4_destroy_inode again before the grace period ends"),
    Scenario("shrink", "double_destroy", "the same inside shrink_slab", guilty=True),
    Scenario("reused", "free_while_alive", "freed after another inode lives at the address"),
    Scenario("stranger", "double_free", "kmem_cache_free by the module itself", guilty=True),
    Scenario("again", "double_free", "a second RCU free at once"),
    Scenario("late", "double_free", "a second RCU free two seconds later"),
    Scenario(
        "service",
        "",
        "the package, its unit under systemd as PID 1",
        script=payloads.SERVICE,
        timeout=900,
    ),
    Scenario(
        "image",
        "",
        "the self-contained image, on a host without Python",
        script=payloads.IMAGE,
        timeout=900,
        kernels=("4.19",),
        asked=True,
    ),
    Scenario("churn", "", "storms, trees, drop_caches, kswapd", script=payloads.CHURN, timeout=500),
    Scenario("loads", "", "20 loads and unloads in a row", script=payloads.LOADS, timeout=1500),
    Scenario(
        "reboot",
        "",
        "a second RCU free; the next boot reads it back from pstore",
        script=payloads.REBOOT,
        timeout=400,
        append=payloads.RAMOOPS,
        kernels=("4.19",),
    ),
    Scenario("legal", "", "two tasks race to delete the same files; reclaim meanwhile"),
)


def payload(kernel: kernels.Kernel, scenario: Scenario, directory: Path) -> Path:
    """The checkout, the module, the headers, the script."""
    content = directory / "payload"
    content.mkdir()
    for part in ("ebpfwatch", "probes"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, content / part, ignore=ignore)
    shutil.copy(ROOT / "config.example.yaml", content)
    shutil.copy(kernels.build_module(kernel, directory / "module"), content)
    if kernel.needs_headers and kernel.headers is not None:
        shutil.copytree(kernel.headers, content / "headers", symlinks=True)
    if scenario.script == payloads.SERVICE:
        subprocess.run(["sh", str(ROOT / "deploy/build-deb.sh"), str(content)], check=True)
    if scenario.script == payloads.IMAGE:
        images = sorted((ROOT / "dist").glob("ebpfwatch-image_*_arm64.deb"))
        if not images:
            raise SystemExit("no image in dist/: make image")
        shutil.copy(images[-1], content)
    # Traced into /results/output, so that one that hangs says where.
    (content / "run.sh").write_text("set -x\n" + (scenario.script or payloads.crime(scenario.name)))
    return content


_COMPLAINT = (
    r"kernel BUG at \S+|Unable to handle [^\n\r]*|WARNING: CPU: \d+ PID: \d+ at \S+"
    r"|list_\w+ corruption|BUG: KFENCE[^\n\r]*|BUG ext4_inode_cache[^\n\r]*"
)


@dataclasses.dataclass(frozen=True)
class Row:
    """What came of one scenario."""

    kernel: str
    release: str
    scenario: str
    what: str
    verdict: str
    detected: list[str]
    places: list[str]
    named: bool
    lead_ms: float | None
    ended: str
    ok: bool
    why: str


def judge(kernel: kernels.Kernel, scenario: Scenario, outcome: guest.Outcome) -> Row:
    """Compare the findings with what the module confessed."""
    files = sorted((outcome.results / "state/findings").glob("*.json"))
    findings = [json.loads(file.read_text()) for file in files]
    findings = [f for f in findings if f["verdict"] != "concurrent_unlink"]
    dumped = [v for v in traced(outcome.console.splitlines()) if v.verdict == scenario.verdict]
    why = _objection(scenario, findings, dumped, outcome)
    boot = BootRecord.read(outcome.results / "state/boot.json")
    named = any("module crime" in f["responsible"]["who"] for f in findings)
    names = [f"{f['verdict']} {f['confidence']}" for f in findings]
    places = ["finding on disk"] if findings else []
    if dumped:
        places.append("trace buffer on the console")
        names = names or [f"{dumped[0].verdict} (by the probe)"]
        named |= any("[crime]" in boot.name(verdict.caller) for verdict in dumped if boot)
    if re.search(r"\] ebpfwatch: " + (scenario.verdict or "nothing"), outcome.console):
        places.append("kernel log")
    return Row(
        kernel.name,
        kernel.release,
        scenario.name,
        scenario.what,
        scenario.verdict,
        names,
        places,
        named,
        lead_ms(outcome),
        _ending(outcome),
        not why,
        why,
    )


def _objection(
    scenario: Scenario,
    findings: list[dict[str, Any]],
    dumped: list[TracedVerdict],
    outcome: guest.Outcome,
) -> str:
    """What is not as it must be; "" if all is."""
    if outcome.exit_code is None and not outcome.panicked:
        steps = re.findall(r"^\+ (.*)", outcome.text("output"), re.MULTILINE) or ["booting"]
        return f"stopped after {outcome.seconds:.0f} s in: {steps[-1]}"
    if "ready after" not in outcome.text("err"):
        return "the daemon was not ready"
    if scenario.script:
        if outcome.exit_code == 0:
            return ""
        said = "; ".join(outcome.text("why").split("\n")).strip("; ")
        return said or f"the payload ended with {outcome.exit_code}"
    if not scenario.verdict:
        return ", ".join(f["verdict"] for f in findings)
    confessed = re.search(r"crime: \w+ object=\S+ ino=(\d+) generation=(\d+)", outcome.console)
    if not confessed:
        return "the crime was not committed"
    found = next((f for f in findings if f["verdict"] == scenario.verdict), None)
    if found is None and not dumped:
        return "not detected"
    # No finding: the kernel died before user space could run, and the probe's own print is there.
    ino = found["identity"]["ino"] if found else dumped[0].ino
    if scenario.name != "reused" and ino != int(confessed.group(1)):
        return "the wrong inode"
    accused = [f["responsible"]["who"] for f in findings if f["responsible"]["who"]]
    if any("module crime" not in who for who in accused):
        return f"an innocent is accused: {accused}"
    if scenario.guilty and found and not accused:
        return "the guilty module is not named"
    return ""


def _ending(outcome: guest.Outcome) -> str:
    complaint = re.search(_COMPLAINT, outcome.console)
    says = complaint.group(0).strip("!") if complaint else "silent"
    return f"{says}{'; panic' if outcome.panicked else ''}"


def lead_ms(outcome: guest.Outcome) -> float | None:
    """From the crime (when the verdict fell) to the kernel's own first complaint, by its log."""
    crime = _stamp(outcome, r"crime: \w+ object=")
    complaint = _stamp(outcome, _COMPLAINT)
    return None if crime is None or complaint is None else (complaint - crime) * 1000


def _stamp(outcome: guest.Outcome, pattern: str) -> float | None:
    found = re.search(r"\[ *(\d+\.\d+)\][^\n]*?(?:" + pattern + ")", outcome.console)
    return float(found.group(1)) if found else None


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    """Several runs on one machine take turns, guest by guest, at this lock."""
    path = os.environ.get("EBPFWATCH_GUEST_LOCK")
    if not path:
        yield
        return
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run_one(kernel: kernels.Kernel, scenario: Scenario, results: Path) -> Row:
    """One boot; its outcome is kept as row.json beside the console."""
    with tempfile.TemporaryDirectory(prefix="ebpfwatch-payload-", dir="/var/tmp") as name:
        content = payload(kernel, scenario, Path(name))
        with _turn():
            outcome = guest.run(
                kernel,
                content,
                results,
                timeout=scenario.timeout,
                append=scenario.append,
                reset=bool(scenario.append),
            )
    row = judge(kernel, scenario, outcome)
    (results / "row.json").write_text(json.dumps(dataclasses.asdict(row)))
    verdicts = ", ".join(row.detected) or "nothing"
    print(
        f"{'ok  ' if row.ok else 'FAIL'} {kernel.name} {scenario.name}: {verdicts};"
        f" {', '.join(row.places)}; {row.ended}; {row.why}\n"
        f"     {outcome.seconds:.0f} s, console: {results / 'console'}"
        + ("" if row.ok else _tails(outcome)),
        flush=True,
    )
    return row


def _tails(outcome: guest.Outcome) -> str:
    """The last lines of each, for whoever reads the log of a failed run."""
    said = {
        "console": outcome.console,
        "err": outcome.text("err"),
        "output": outcome.text("output"),
    }
    lines = (
        f"\n     {name}| {line}" for name, text in said.items() for line in text.splitlines()[-12:]
    )
    return "".join(lines)


def table(rows: list[Row]) -> str:
    """docs/detection.md."""
    lines = [
        "# Detection in guests",
        "",
        "Written by `make test-vm`: each scenario of tests/vm/modules/crime.c in an arm64 guest of",
        "its own. *Lead* is the time from the verdict in the kernel to the kernel's own first",
        "complaint in its log; none where the kernel never complained.",
        "",
        "| kernel | scenario | detected | where it survived | guilty module named | lead"
        " | the kernel itself |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        detected = "; ".join(row.detected[:3]) or row.why or "nothing, rightly"
        lead = "" if row.lead_ms is None else f"{row.lead_ms:.0f} ms"
        named = "yes" if row.named else ""
        lines.append(
            f"| {row.release} | {row.what} | {detected} | {', '.join(row.places)} | {named}"
            f" | {lead} | {row.ended} |"
        )
    return "\n".join(lines) + "\n"


def _possible(name: str) -> bool:
    """Whether this machine can run a guest with this kernel; prints what is missing."""
    why = ""
    if not mount_binfmt():
        why = "binfmt_misc cannot be mounted, so no arm64 root image can be made"
    if name == "4.19" and not kernels.SHARED.joinpath("Image.gz").exists():
        why = f"no kernel image in {kernels.SHARED} (set KERNELS_DIR)"
    if why:
        print(f"SKIPPED guest {name}: {why}", flush=True)
    return not why


def main() -> int:
    """Run the matrix; 1 if anything is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", default="", help="names or an image; default all")
    parser.add_argument("--scenarios", default="", help="default all")
    parser.add_argument("--results", type=Path, default=Path("/var/tmp/ebpfwatch-vm"))
    parser.add_argument("--jobs", type=int, default=2, help="guests at once")
    parser.add_argument(
        "--ci", action="store_true", help="leave out what this machine cannot do, and say so"
    )
    parser.add_argument("--table", type=Path, help="write the table here")
    arguments = parser.parse_args()
    wanted = arguments.scenarios.replace(",", " ").split()
    unknown = set(wanted) - {scenario.name for scenario in SCENARIOS}
    if unknown:
        parser.error(f"no scenario {', '.join(sorted(unknown))}")
    names = arguments.kernels.replace(",", " ").split() or list(kernels.names())
    wished = len(names)
    if arguments.ci:
        names = [name for name in names if _possible(name)]
    skipped = wished - len(names)
    if not names:
        print(f"0 scenarios run, {skipped} kernels skipped")
        return 0
    root_image()
    todo = []
    for name in names:
        kernel = kernels.kernel(name)
        for scenario in SCENARIOS:
            if scenario.kernels and kernel.name not in scenario.kernels:
                continue
            if scenario.name in wanted or not (wanted or scenario.asked):
                todo.append((kernel, scenario, arguments.results / kernel.name / scenario.name))
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        rows = list(pool.map(lambda job: run_one(*job), todo))
    if arguments.table:
        arguments.table.write_text(table(rows))
    bad = [row for row in rows if not row.ok]
    print(
        f"{len(rows)} scenarios, {len(bad)} not as they must be"
        + (f"; {skipped} kernels skipped" if skipped else "")
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
