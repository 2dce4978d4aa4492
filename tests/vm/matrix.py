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
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.trust.figures import between, record
from tests.vm import guest, kernels
from tests.vm.arm64 import unpacked
from tests.vm.asked import answering
from tests.vm.judge import Row, judge, tails
from tests.vm.reading import found_in_ci
from tests.vm.root import mount_binfmt, root_image
from tests.vm.scenarios import SCENARIOS, Scenario
from tests.vm.survival import survival, whole
from tests.vm.table import sections, table

ROOT = Path(__file__).parents[2]


def payload(
    kernel: kernels.Kernel, directory: Path, script: str, scenario: Scenario | None = None
) -> Path:
    """The checkout, the module, the headers or the BTF, the scripts; ``script`` is what runs."""
    content = directory / "payload"
    content.mkdir()
    for part in ("ebpfwatch", "probes"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, content / part, ignore=ignore)
    # The guest's clock runs on while its CPUs wait for this machine's: compiling takes minutes.
    pending = content / "ebpfwatch/kernel/pending.py"
    pending.write_text(re.sub(r"(LOADER_SECONDS =) .*", r"\1 1200.0", pending.read_text()))
    shutil.copy(ROOT / "config.example.yaml", content)
    for file in (Path(__file__).parent / "scripts").iterdir():
        shutil.copy(file, content)
    for module in kernels.build_modules(kernel, directory / "module"):
        shutil.copy(module, content)
    wanted = ("loop", "overlay", "fuse", "quota_tree", "quota_v2", "qemu_fw_cfg")
    kernels.copy_modules(kernel, wanted, content)
    if scenario is not None and scenario.detached and kernel.needs_headers:
        shutil.copy(kernels.detached_btf(kernel, directory / "types"), content)
    elif kernel.needs_headers and kernel.headers is not None:
        shutil.copytree(kernel.headers, content / "headers", symlinks=True)
    if scenario is not None:
        _package(scenario, content)
        if scenario.reset:
            kernels.copy_modules(kernel, ("reed_solomon", "ramoops"), content)
        if scenario.in_memory:
            kernels.copy_modules(kernel, ("ext4",), content)
        if scenario.name == "accounts":
            kernels.copy_modules(kernel, ("dm-mod", "dm-flakey"), content)
    # Traced into /results/output, so that one that hangs says where.
    (content / "run.sh").write_text(f"set -x\n. ./common.sh\n{script}")
    return content


def _package(scenario: Scenario, content: Path) -> None:
    """What "service", "starved", "actions" and "image" install, what "soak" and "accounts"
    run, what "tight" watches with.
    """
    if scenario.name == "accounts":
        tree = unpacked("bookworm", ["dmsetup"])
        subprocess.run(["cp", "-a", tree, content / "dmsetup"], check=True)
    if scenario.name in ("service", "starved", "actions"):
        subprocess.run(["sh", str(ROOT / "deploy/build-deb.sh"), str(content)], check=True)
    if scenario.name == "tight":
        shutil.copy(ROOT / "tests/bench/starting.py", content)
    if scenario.name == "soak":
        for part in ("tests/live", "tests/trust"):
            shutil.copytree(ROOT / part, content / part)
        shutil.copy(ROOT / "tests/__init__.py", content / "tests")
        words = ["aarch64-linux-gnu-gcc", "-O2", "-static", "-pthread"]
        words += ["-o", str(content / "storm"), str(ROOT / "tests/live/storm.c")]
        subprocess.run(words, check=True)
    if scenario.name == "image":
        images = sorted((ROOT / "dist").glob("ebpfwatch-image_*_arm64.deb"))
        if not images:
            raise SystemExit("no image in dist/: make image")
        shutil.copy(images[-1], content)


class Waiting:
    """The guests that wait with a daemon that is ready: one a kernel, booted when first wanted."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._ready: dict[str, guest.Ready] = {}
        self._tried: set[str] = set()

    def get(self, kernel: kernels.Kernel) -> guest.Ready:
        """Raises ``TimeoutError`` if the daemon does not get ready, or did not the first time."""
        with self._lock:
            lock = self._locks.setdefault(kernel.name, threading.Lock())
        with lock:
            if kernel.name not in self._ready:
                if kernel.name in self._tried:
                    raise TimeoutError("its kernel did not get ready")
                self._tried.add(kernel.name)
                directory = self._directory / kernel.name
                kept = guest.kept(kernel, directory)
                if kept is not None:
                    self._ready[kernel.name] = kept
                    return kept
                shutil.rmtree(directory, ignore_errors=True)
                directory.mkdir(parents=True)
                content = payload(kernel, directory, ". ./ready.sh\n")
                with _turn():
                    self._ready[kernel.name] = guest.prepare(kernel, content, directory)
                shutil.rmtree(content)
                print(f"     {kernel.name}: ready in {self._ready[kernel.name].seconds:.0f} s")
        return self._ready[kernel.name]


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


def boot(
    kernel: kernels.Kernel, scenario: Scenario, results: Path, waiting: Waiting
) -> guest.Outcome:
    """A boot of its own, or from where the daemon was ready."""
    order = f"{scenario.script} {' '.join(scenario.arguments)}"
    if scenario.ready:
        ready = waiting.get(kernel)
        with _turn() if scenario.heavy else contextlib.nullcontext():
            outcome = guest.resume(ready, order, results, scenario.timeout)
        (results / "console-boot").write_text(ready.console)
        return outcome
    script = f"set -- {order}\nscript=$1; shift\n. ./$script.sh\n"
    with tempfile.TemporaryDirectory(prefix="ebpfwatch-payload-", dir="/var/tmp") as name:
        content = payload(kernel, Path(name), script, scenario)
        with _turn(), contextlib.ExitStack() as stack:
            devices: tuple[str, ...] = ("-m", "3072") if scenario.in_memory else ()
            if scenario.asks:
                devices = stack.enter_context(answering(Path(name), results)).devices
            return guest.run(
                kernel,
                content,
                results,
                f"{scenario.append} {kernels.ROOT_IN_MEMORY if scenario.in_memory else ''}",
                scenario.timeout,
                scenario.reset,
                scenario.icount,
                devices,
            )


def run_one(kernel: kernels.Kernel, scenario: Scenario, results: Path, waiting: Waiting) -> Row:
    """One boot; its outcome is kept as row.json beside the console."""
    for vmcore in results.parent.glob(f"{results.name}-*.vmcore"):
        vmcore.unlink()  # of an earlier run
    outcome = boot(kernel, scenario, results, waiting)
    row = judge(kernel, scenario, outcome)
    for vmcore in results.parent.glob(f"{results.name}-*.vmcore"):
        why = found_in_ci(vmcore)
        if why:
            row = dataclasses.replace(row, ok=False, why=row.why or f"its dump: {why}")
        else:
            vmcore.unlink()
    (results / "row.json").write_text(json.dumps(dataclasses.asdict(row)))
    verdicts = ", ".join(row.detected) or "nothing"
    print(
        f"{'ok  ' if row.ok else 'FAIL'} {kernel.name} {scenario.name}: {verdicts};"
        f" {', '.join(whole(row.places))}; {row.ended}; {row.why}\n"
        f"     {outcome.seconds:.0f} s, console: {results / 'console'}"
        + ("" if row.ok else tails(outcome)),
        flush=True,
    )
    return row


def _lacking(name: str) -> str:
    """Why this machine cannot run a guest with this kernel; "" if it can."""
    if not mount_binfmt():
        return "binfmt_misc cannot be mounted, so no arm64 root image can be made"
    return kernels.absent(name)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", default="", help="names or an image; default all")
    parser.add_argument("--scenarios", default="", help="names or families; default all")
    parser.add_argument("--results", type=Path, default=Path("/var/tmp/ebpfwatch-vm"))
    parser.add_argument("--minutes", type=float, help="how long a load lasts that can last")
    parser.add_argument("--jobs", type=int, default=2, help="guests at once")
    parser.add_argument(
        "--ci", action="store_true", help="leave out what this machine cannot do, and say so"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep what has passed in --results, run the rest"
    )
    parser.add_argument(
        "--ready", type=Path, help="keep the guests that wait here, and take them again next time"
    )
    parser.add_argument(
        "--collect", action="store_true", help="run nothing: the table of what is in --results"
    )
    parser.add_argument("--table", type=Path, help="write the table here")
    parser.add_argument("--sections", type=Path, help="write the tables of what was run here")
    parser.add_argument("--survival", type=Path, help="write what survived into this page")
    arguments = parser.parse_args()
    arguments.scenarios = arguments.scenarios.replace(",", " ").split()
    unknown = {
        wanted
        for wanted in arguments.scenarios
        if not any(wanted in _names(scenario) for scenario in SCENARIOS)
    }
    if unknown:
        parser.error(f"no scenario {', '.join(sorted(unknown))}")
    return arguments


def _names(scenario: Scenario) -> tuple[str, str]:
    """Its own name and its family's: "rungs" is all of "rungs:..."."""
    return scenario.name, scenario.name.partition(":")[0]


def _todo(kernel: kernels.Kernel, wanted: list[str], minutes: float | None) -> list[Scenario]:
    return [
        _lasting(scenario, minutes or scenario.minutes) if scenario.minutes else scenario
        for scenario in SCENARIOS
        if (not scenario.kernels or kernel.name in scenario.kernels)
        and (any(name in wanted for name in _names(scenario)) or not (wanted or scenario.asked))
    ]


def _lasting(scenario: Scenario, minutes: float) -> Scenario:
    return dataclasses.replace(
        scenario,
        arguments=(*scenario.arguments, f"{minutes:g}"),
        timeout=scenario.timeout + 60 * minutes,
        minutes=minutes,
    )


def _kept(results: Path) -> Row | None:
    """What an earlier run found."""
    try:
        return Row(**json.loads((results / "row.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def main() -> int:
    """Run the matrix; 1 if anything is not as it must be."""
    arguments = _arguments()
    named = arguments.kernels.replace(",", " ").split()
    names = named or list(kernels.names())
    # A kernel that somebody names must be there; one that belongs to a list may be absent.
    skipped = {name: _lacking(name) for name in names} if arguments.ci or not named else {}
    skipped = {name: why for name, why in skipped.items() if why}
    for name, why in skipped.items():
        print(f"SKIPPED guest {name}: {why}; KERNELS_DIR is {kernels.BROUGHT}", flush=True)
    possible = [name for name in names if name not in skipped]
    if not possible:
        print(f"0 scenarios run; {len(skipped)} kernels skipped")
        return 0

    def run(job: tuple[kernels.Kernel, Scenario]) -> Row | str:
        kernel, scenario = job
        results = arguments.results / kernel.name / scenario.name
        kept = _kept(results)
        if arguments.collect:
            return kept or "not run"
        if arguments.resume and kept is not None and kept.ok:
            return kept
        try:
            return run_one(kernel, scenario, results, waiting)
        except (OSError, RuntimeError) as error:  # the guest never got ready: the others may
            print(f"FAIL {kernel.name} {scenario.name}: {error}", flush=True)
            return str(error).splitlines()[0]

    with tempfile.TemporaryDirectory(prefix="ebpfwatch-ready-", dir="/var/tmp") as name:
        waiting = Waiting(arguments.ready or Path(name))
        root_image()
        found = [kernels.kernel(name) for name in possible]
        wanted, minutes = arguments.scenarios, arguments.minutes
        jobs = [(k, scenario) for k in found for scenario in _todo(k, wanted, minutes)]
        with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
            outcomes = list(pool.map(run, jobs))
    rows = [row for row in outcomes if isinstance(row, Row)]
    missing = {
        f"{k.name} {s.name}": row for (k, s), row in zip(jobs, outcomes) if isinstance(row, str)
    }
    if arguments.table:
        arguments.table.write_text(table(rows, {**skipped, **missing}))
    if arguments.sections:
        for mark, text in sections(rows, {}).items():
            if text:
                between(arguments.sections, mark, text)
    if arguments.survival:
        between(arguments.survival, "survival", survival(rows))
    for row in rows:
        if row.scenario == "soak" and row.ok:
            command = f"make test-vm KERNELS={row.kernel} SCENARIOS=soak"
            machine = f"an emulated arm64 guest, Linux {row.release}, 2 CPUs"
            record("guest-soak", command, row.extra.splitlines(), machine=machine)
    bad = len([row for row in rows if not row.ok]) + (0 if arguments.collect else len(missing))
    print(
        f"{len(outcomes)} scenarios, {bad} not as they must be"
        + (f"; {len(skipped)} kernels skipped" if skipped else "")
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
