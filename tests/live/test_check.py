"""The doctor on this kernel: the real programs are loaded, attached nowhere, and leave nothing; a
program that the verifier refuses is FAIL with its reason, and what is advised then really helps.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ebpfwatch import config
from ebpfwatch.catalogue.ladder import LADDER
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.kernel.pending import probe
from ebpfwatch.system.lock import running_daemon
from tests.live.conftest import ROOT, DaemonProcess, write_config
from tests.live.harness import PATIENCE, selftest, until

#: What no verifier lets pass: a read behind the end of its context.
BROKEN = "\treturn *(volatile int *)((char *)ctx + 4096);\n"
REASON = "invalid bpf_context access off=4096 size=4"


def objects() -> dict[str, set[int]]:
    """The ids of all BPF objects in this kernel."""
    found = {}
    for kind in ("prog", "map", "link"):
        listing = subprocess.run(["bpftool", "-j", kind], capture_output=True, check=True).stdout
        found[kind] = {
            one["id"] for one in json.loads(listing or "[]") if one.get("name") != "pid_iter.rodata"
        }
    return found


def assert_nothing_more(before: dict[str, set[int]]) -> None:
    """What was not there before is gone within the kernel's own grace period."""

    def left() -> dict[str, set[int]]:
        return {kind: now - before[kind] for kind, now in objects().items()}

    until(lambda: not any(left().values()), left)


def check(
    *words: object, root: Path = ROOT, wrap: tuple[str, ...] = ()
) -> tuple[int, dict[str, Any]]:
    """`ebpfwatch check --json` of the package in ``root``: exit code and what it says."""
    done = subprocess.run(
        [*wrap, sys.executable, "-m", "ebpfwatch", "check", "--json", *map(str, words)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)


def hooks(said: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The lines of the section, by item."""
    return {line["item"]: line for line in said["advice"] if line["section"] == "hooks"}


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[Path]:
    """A copy of ebpfwatch, one probe of which no verifier lets pass: ``break_probe`` says which."""
    for part in ("ebpfwatch", "probes"):
        shutil.copytree(ROOT / part, tmp_path / "copy" / part)
    yield tmp_path / "copy"


def break_probe(root: Path, file: str, function: str) -> None:
    """Put the bad read at the beginning of every variant of a program."""
    path = root / "probes" / file
    text, count = re.subn(
        rf"(?m)^(int {function}\(struct \w+ \*ctx\)\n{{\n)",
        lambda match: match.group(1) + BROKEN,
        path.read_text(),
    )
    assert count >= 1, function
    path.write_text(text)


def test_every_real_program_is_loaded_and_none_is_left() -> None:
    """Each role that has a rung was loaded, with the programs that `run` would attach, learn.c's
    and the self-test's; no program, map or link outlives the command.
    """
    before = objects()
    code, said = check("--config", ROOT / "config.example.yaml")
    assert code in (0, 1) and said["usable"], said
    programs = said["dry_run"]["programs"]
    assert said["dry_run"]["error"] is None and {one["refusal"] for one in programs} == {""}
    own = {hook["role"] for hook in said["hooks"] if hook["rung"] and "shared" not in hook["rung"]}
    assert {one["role"] for one in programs} == own | {"learner", "selftest"}
    for role in own:
        wanted = next(
            rung
            for rung in LADDER[role]
            for hook in said["hooks"]
            if hook["role"] == role and hook["rung"] == rung.name
        )
        loaded = [one["function"] for one in programs if one["role"] == role]
        assert loaded == [attachment.function for attachment in wanted.attachments]
        assert "the verifier takes it" in hooks(said)[role]["value"]
    assert_nothing_more(before)


@pytest.mark.needs("strace")
def test_nothing_real_is_attached(tmp_path: Path) -> None:
    """Told by the system calls: what is attached, for a moment, are the empty programs of the
    ladder; every program that was compiled is loaded and never named again.
    """
    log = tmp_path / "trace"
    words = ["strace", "-f", "-qq", "-e", "trace=bpf", "-o", str(log)]
    check("--config", ROOT / "config.example.yaml", wrap=tuple(words))
    fds: dict[str, str] = {}
    attached = []
    for line in log.read_text().splitlines():
        loaded = re.search(r'BPF_PROG_LOAD, .*prog_name="(\w+)".* = (\d+)$', line)
        opened = re.search(r"BPF_RAW_TRACEPOINT_OPEN, .*prog_fd=(\d+).* = (\d+)$", line)
        if loaded:
            fds[loaded.group(2)] = loaded.group(1)
        if opened:
            attached.append(fds[opened.group(1)])
    assert {"ext4_evict_inod", "kmem_cache_free"} <= set(fds.values())  # 15 letters is all it keeps
    assert attached and set(attached) == {"probe"}


@pytest.mark.parametrize(
    ("file", "function", "role", "instead"),
    [
        ("shrink_slab.c", "mm_shrink_slab_end", "reclaim", "none"),
        ("ext4_unlink.c", "ext4_unlink_enter", "unlink", "none"),
    ],
)
def test_a_refused_program_is_a_fail_and_the_advice_helps(
    broken: Path, tmp_path: Path, file: str, function: str, role: str, instead: str
) -> None:
    """The verifier's own reason; `run` really does not start, and does with what is advised."""
    break_probe(broken, file, function)
    before = objects()
    code, said = check(root=broken)
    line = hooks(said)[role]
    assert code == 1 and line["level"] == "FAIL"
    assert f"{function}: {REASON}" in line["why"] and "lost: " in line["why"]
    wish = f"{role}={instead}"
    assert said["dry_run"]["instead"] == wish and wish in line["command"]
    others = [one for item, one in hooks(said).items() if item != role]
    assert "FAIL" not in {one["level"] for one in others}
    assert_nothing_more(before)

    code, said = check("--rungs", wish, root=broken)
    assert said["usable"] and said["dry_run"]["error"] is None
    assert "FAIL" not in {one["level"] for one in hooks(said).values()}
    assert run_until_ready(broken, tmp_path, "") == "refused"
    assert run_until_ready(broken, tmp_path, wish) == "ready"


def run_until_ready(root: Path, directory: Path, rungs: str) -> str:
    """`run` of that copy: "ready" or "refused", and what else would be said is the failure."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ebpfwatch", "run", "--config"]
        + [str(write_config(directory, rungs=f'"{rungs}"'))],
        cwd=root,
        env={
            **os.environ,
            "PYTHONPATH": str(root),
            "RUNTIME_DIRECTORY": str(directory / "run"),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = ""
    try:
        for line in process.stderr:
            said += line
            if "ready after" in line:
                return "ready"
        assert process.wait(PATIENCE) == Exit.SOFTWARE, said
        assert "loading the probes failed" in said and "ebpfwatch check" in said
        return "refused"
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)


@pytest.mark.parametrize(
    ("file", "function", "item"),
    [
        ("ext4_evict_inode.c", "ext4_evict_inode", "evict"),
        ("learn.c", "kmem_cache_free", "learner"),
        ("selftest.c", "find_selftest_page", "selftest"),
    ],
)
def test_where_nothing_helps_the_watcher_cannot_work(
    broken: Path, file: str, function: str, item: str
) -> None:
    """Exit 69: what nothing works without is refused, and no other rung of it is here."""
    break_probe(broken, file, function)
    code, said = check(root=broken)
    if item == "evict" and said["dry_run"]["instead"]:
        assert said["dry_run"]["instead"].startswith("evict=kprobe")  # a kernel that has kprobes
        return
    assert code == Exit.UNAVAILABLE and not said["usable"]
    assert hooks(said)[item]["level"] == "FAIL" and REASON in hooks(said)[item]["why"]
    assert said["dry_run"]["instead"] == "" and hooks(said)[item]["command"] == ""


def test_what_does_not_compile_is_a_defect(broken: Path) -> None:
    """Exit 70, FAIL, with clang's word."""
    path = broken / "probes/shrink_slab.c"
    path.write_text(path.read_text() + "\nint nonsense(void) { return undeclared_thing; }\n")
    code, said = check(root=broken)
    assert code == Exit.SOFTWARE and not said["usable"]
    assert hooks(said)["all"]["level"] == "FAIL"
    assert "undeclared_thing" in hooks(said)["all"]["value"]


def test_beside_a_daemon(daemon: DaemonProcess) -> None:
    """Checked twice while one watches: its programs are the same, its hooks alive, nothing is lost
    but runs that the kernel skips by itself where an interrupt comes in between, a self-test's
    double free is found, and the sysctl that it holds stays.
    """
    ours = running_daemon(daemon.run_directory)
    sysctl = Path("/proc/sys/kernel/ftrace_dump_on_oops")
    before, held = objects(), sysctl.read_text() if sysctl.exists() else ""
    for _ in range(2):
        code, said = check("--config", daemon.config)
        assert code in (0, 1) and said["usable"]
    assert_nothing_more(before)
    assert objects()["prog"] >= set(ours.programs.values())
    assert objects()["map"] >= set(ours.maps.values())
    assert (sysctl.read_text() if sysctl.exists() else "") == held
    assert selftest(daemon).returncode == 0
    metrics = daemon.settled_metrics()
    alive = {name: value for name, value in metrics.items() if "hook_alive" in name}
    assert alive and 0.0 not in alive.values()  # NaN: what no canary can prove, as reclaim
    lost = {name: v for name, v in metrics.items() if "lost_events_total" in name and v}
    skipped = lost.pop('ebpfwatch_lost_events_total{kind="recursion"}', 0)
    assert lost.pop('ebpfwatch_lost_events_total{kind="free_missed"}', 0) <= skipped
    assert lost == {}
    assert "WARN" not in daemon.log.read_text() and daemon.process.poll() is None


def test_the_configuration_decides_what_is_tried(tmp_path: Path) -> None:
    """hooks.alloc and hooks.any_free of a file; the command line over it."""
    file = write_config(tmp_path, alloc="always", any_free="never")
    _, said = check("--config", file)
    tried = {one["role"] for one in said["dry_run"]["programs"]}
    assert "alloc" in tried
    _, said = check("--config", file, "--rungs", "alloc=none")
    assert "alloc" not in {one["role"] for one in said["dry_run"]["programs"]}
    code, said = check("--config", "/nonexistent")
    assert code == Exit.CONFIG and hooks(said)["all"]["level"] == "UNKNOWN"


def test_without_btf_or_headers_nobody_knows() -> None:
    """Nobody can say where things lie: nothing is loaded, UNKNOWN with the reason, exit 69."""
    if Path(f"/lib/modules/{os.uname().release}/build/include").is_dir():
        pytest.skip("this kernel's headers are installed: it can do without BTF")
    hide = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs none /sys/kernel/btf && exec "$@"', "-")
    code, said = check(wrap=hide)
    assert code == Exit.UNAVAILABLE and not said["usable"]
    lines = hooks(said)
    assert lines["programs"]["level"] == lines["evict"]["level"] == "UNKNOWN"
    assert "the kernel has no BTF" in lines["programs"]["value"]
    assert "not loaded" in lines["evict"]["value"] and said["dry_run"]["programs"] == []


def test_without_bcc_nobody_knows(broken: Path) -> None:
    """The compiler is not there: UNKNOWN, and what to install."""
    (broken / "bcc.py").write_text("raise ImportError('no bcc here')\n")
    code, said = check(root=broken)
    assert code == Exit.UNAVAILABLE
    assert "no bcc here" in hooks(said)["programs"]["value"]
    assert "python3-bpfcc" in hooks(said)["programs"]["why"]
    assert hooks(said)["evict"]["level"] == "UNKNOWN"


def test_it_is_bounded_in_time() -> None:
    """A child that does not answer in time is killed, and what it had loaded is gone with it."""
    before = objects()
    with pytest.raises(EbpfwatchError, match="did not end within 0.3 s") as raised:
        probe(config.loader_request(config.Config()), seconds=0.3)
    assert raised.value.exit_code is Exit.OSERR
    assert_nothing_more(before)


def test_the_compiler_stays_in_the_child() -> None:
    """LLVM's memory is the child's: the command itself has mapped neither it nor bcc."""
    script = (
        "import sys; from ebpfwatch.commands import main; main(['check', '--json']);"
        "maps = open('/proc/self/maps').read();"
        "assert 'libbcc.so' not in maps and 'LLVM' not in maps and 'bcc' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
