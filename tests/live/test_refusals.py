"""What machine or user gets wrong: one clear line, its own exit code, nothing left loaded."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.conftest import ROOT, loaded_programs, write_config
from tests.live.harness import PATIENCE, until

RUN = [sys.executable, "-m", "ebpfwatch", "run", "--config"]


def refuse(words: list[object], directory: Path, cwd: Path = ROOT) -> tuple[int, str]:
    """Run a command that must fail: its exit code and the one line it says."""
    before = loaded_programs()
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, "RUNTIME_DIRECTORY": str(directory / "run")},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    # Where this machine has no journald, what other tests left in its kernel log, and a slow one.
    apart = ("no journald", "the kernel log of this boot already holds", "still loading")
    said = [line for line in done.stderr.splitlines() if not any(part in line for part in apart)]
    assert len(said) == 1, done.stderr
    assert "Traceback" not in done.stderr
    # The kernel frees them after a grace period.
    until(lambda: loaded_programs() <= before, lambda: loaded_programs() - before)
    return done.returncode, said[0]


@pytest.fixture
def anybody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[object]]:
    """The words to run ebpfwatch as nobody, from a copy that nobody may read."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        for part in ("ebpfwatch", "probes"):
            shutil.copytree(ROOT / part, directory / part)
        shutil.copy(ROOT / "config.example.yaml", directory)
        setpriv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        python = ["env", f"PYTHONPATH={directory}", "PYTHONDONTWRITEBYTECODE=1", "/usr/bin/python3"]
        yield [*setpriv, *python, "-m", "ebpfwatch"]


def test_run_not_root(anybody: list[object]) -> None:
    """Exit 77 and "run it as root"."""
    config = str(anybody[5]).partition("=")[2] + "/config.example.yaml"
    code, line = refuse([*anybody, "run", "--config", config], Path("/run"), Path("/"))
    assert code == 77, line
    assert "root" in line


def test_check_not_root(anybody: list[object]) -> None:
    """`check` says which capability it misses."""
    code, line = refuse([*anybody, "check"], Path("/run"), Path("/"))
    assert code == 77, line
    assert "CAP_BPF" in line


def test_check_shows_anybody_what_it_can(anybody: list[object]) -> None:
    """Not root: what can be seen is judged, what cannot is UNKNOWN; not being able to look is no
    "fine", so the exit code is 77.
    """
    words = [str(word) for word in (*anybody, "check", "--json")]
    done = subprocess.run(words, cwd="/", capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 77, done.stderr
    said = json.loads(done.stdout)["advice"]
    levels = {(line["section"], line["item"]): line["level"] for line in said}
    assert levels["hooks", "all"] == levels["memory", "slabinfo"] == "UNKNOWN"
    assert levels["survival", "slub_debug"] == "UNKNOWN"
    assert levels["survival", "panic_on_oops"] != "UNKNOWN"
    assert levels["memory", "overcommit"] != "UNKNOWN"


def test_root_without_capabilities(tmp_path: Path) -> None:
    """Exit 77 from a service that was stripped too far: it is the capability that counts."""
    strip = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    code, line = refuse([*strip, *RUN, write_config(tmp_path)], tmp_path)
    assert code == 77, line
    assert "CAP_BPF" in line


def test_no_btf(tmp_path: Path) -> None:
    """Exit 69; the directory really is empty, in a mount namespace of its own."""
    config = write_config(tmp_path)
    script = 'mount -t tmpfs none /sys/kernel/btf && exec "$@"'
    code, line = refuse(["unshare", "-m", "sh", "-c", script, "-", *RUN, config], tmp_path)
    assert code == 69, line
    assert "the kernel has no BTF" in line


def test_no_ext4_can_be_seen(tmp_path: Path) -> None:
    """Exit 69 in a chroot that lies on an overlay, as a container does: that there is ext4 on the
    machine is said, and where to run instead.
    """
    script = """
        mount -t tmpfs none "$0" && cd "$0" && mkdir up work root &&
        mount -t overlay none -o lowerdir=/,upperdir=up,workdir=work root &&
        mount -t proc proc root/proc && mount -t sysfs sys root/sys && mkdir -p "root$1" &&
        mount --bind /dev root/dev &&
        cp "$2" "root$2" && shift 2 && exec chroot root "$@"
    """
    place, config = tmp_path / "place", write_config(tmp_path)
    place.mkdir()
    words = ["unshare", "-m", "sh", "-c", script, place, tmp_path, config]
    code, line = refuse([*words, "env", "-C", ROOT, *RUN, config], tmp_path)
    assert code == 69, line
    assert "where this process can see it" in line and "run it outside" in line


def test_a_pid_namespace_of_its_own(tmp_path: Path) -> None:
    """Exit 69: the kernel has other task numbers than the daemon there, and that is said."""
    words = ["unshare", "--pid", "--fork", "--mount-proc", *RUN, write_config(tmp_path)]
    code, line = refuse(words, tmp_path)
    assert code == 69, line
    assert "in a PID namespace of its own" in line and "--pid=host" in line


def test_no_raw_tracepoints(tmp_path: Path) -> None:
    """Exit 69, naming the role that has no rung; seccomp plays the older kernel."""
    deny = tmp_path / "deny"
    subprocess.run(["gcc", "-o", deny, ROOT / "tests/live/deny_raw_tracepoints.c"], check=True)
    code, line = refuse([deny, *RUN, write_config(tmp_path)], tmp_path)
    assert code == 69, line
    assert "no way to hook evict" in line and "Invalid argument" in line


def test_bad_config(tmp_path: Path) -> None:
    """Exit 78 with file, line, key and the nearest valid one."""
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace("table_slots", "table_slot"))
    number = next(
        n for n, line in enumerate(config.read_text().splitlines(), 1) if "table_slot:" in line
    )
    code, line = refuse([*RUN, config], tmp_path)
    assert code == 78
    assert f"{config}:{number}: unknown key kernel.table_slot" in line
    assert "did you mean kernel.table_slots?" in line


def test_port_taken(tmp_path: Path) -> None:
    """Exit 71 naming the address, before anything is loaded."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        code, line = refuse([*RUN, write_config(tmp_path, listen=address)], tmp_path)
    assert code == 71
    assert address in line and "in use" in line


def test_read_only_state_directory(tmp_path: Path) -> None:
    """Exit 73; really read-only, by a mount."""
    state = tmp_path / "state"
    state.mkdir()
    config = write_config(tmp_path)
    script = 'mount -t tmpfs -o ro none "$0" && exec "$@"'
    code, line = refuse(["unshare", "-m", "sh", "-c", script, state, *RUN, config], tmp_path)
    assert code == 73, line
    assert "Read-only" in line and str(state) in line


def test_selftest_without_a_daemon(tmp_path: Path) -> None:
    """Exit 69."""
    code, line = refuse([sys.executable, "-m", "ebpfwatch", "selftest"], tmp_path)
    assert code == 69
    assert "no ebpfwatch daemon is running" in line
