"""deploy/: what a test can hold it to without installing it (`make test-deb` does that)."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ebpfwatch import __version__
from ebpfwatch.commands import COMMANDS
from ebpfwatch.daemon import loop
from ebpfwatch.errors import Exit

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "ebpfwatch.service"
DROP_INS = DEPLOY / "ebpfwatch.service.d"


class _Unit(dict[str, list[str]]):
    """Every "section.Key" of a unit file with all its values; lines may repeat."""

    def __init__(self, *files: Path) -> None:
        section = ""
        for file in files:
            for line in file.read_text().splitlines():
                if line.startswith("["):
                    section = line.strip("[]")
                elif line and not line.startswith("#"):
                    key, _, value = line.partition("=")
                    self.setdefault(f"{section}.{key}", []).append(value)


def _installed(tmp_path: Path, *drop_ins: str) -> Path:
    """A root directory with the unit, these drop-ins, and a command to start."""
    units = tmp_path / "etc/systemd/system"
    (units / "ebpfwatch.service.d").mkdir(parents=True)
    shutil.copy(UNIT, units)
    for name in drop_ins:
        shutil.copy(DROP_INS / name, units / "ebpfwatch.service.d")
    command = tmp_path / "usr/bin/ebpfwatch"
    command.parent.mkdir(parents=True)
    shutil.copy("/bin/true", command)
    return tmp_path


@pytest.mark.needs("systemd")
@pytest.mark.parametrize(
    ("drop_ins", "limit"),
    [
        ((), 2.6),
        (("before-cap-bpf.conf", "without-btf.conf"), 3.2),
        (("perf-restricted.conf",), 2.9),
        (("evidence-exe.conf",), 2.9),
        (("actions-crash.conf",), 2.6),
        (("actions-network.conf",), 2.9),
    ],
    ids=[
        "5.8 and later",
        "4.19",
        "perf_event_paranoid 3",
        "evidence.exe",
        "actions.crash",
        "actions.command",
    ],
)
def test_the_unit_exposes_little(tmp_path: Path, drop_ins: tuple[str, ...], limit: float) -> None:
    """systemd-analyze security: what is open is what the watcher needs."""
    root = _installed(tmp_path, *drop_ins)
    words = ["systemd-analyze", "security", "--offline=yes", f"--root={root}", "--no-pager"]
    words += [f"--threshold={round(limit * 10)}", "ebpfwatch.service"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-200:] + done.stderr
    level = re.search(r"exposure level for ebpfwatch.service: ([\d.]+)", done.stdout)
    assert level and float(level.group(1)) <= limit


@pytest.mark.needs("systemd")
def test_systemd_has_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    """systemd-analyze verify, without and with the drop-ins."""
    old = ("before-cap-bpf.conf", "without-btf.conf")
    actions = ("actions-crash.conf", "actions-network.conf")
    sets = ((), old, ("perf-restricted.conf",), ("evidence-exe.conf",), actions)
    for number, drop_ins in enumerate(sets):
        unit = _installed(tmp_path / str(number), *drop_ins) / "etc/systemd/system" / UNIT.name
        unit.write_text(unit.read_text().replace("/usr/bin/ebpfwatch", "/bin/true"))
        words = ["systemd-analyze", "verify", "--man=no", str(unit)]
        done = subprocess.run(words, capture_output=True, text=True)
        ours = [line for line in done.stderr.splitlines() if "ebpfwatch" in line]
        assert (done.returncode, ours) == (0, []), done.stderr


def test_the_capabilities_are_the_documented_ones() -> None:
    """docs/install.md has a row for each, and for no other."""
    rows = re.findall(
        r"^\| `(CAP_\w+)` \| ([^|]+) \|", (ROOT / "docs/install.md").read_text(), re.M
    )
    documented = {name: when.strip() for name, when in rows}
    base = set(" ".join(_Unit(UNIT)["Service.CapabilityBoundingSet"]).split())
    old = set(
        " ".join(_Unit(DROP_INS / "before-cap-bpf.conf")["Service.CapabilityBoundingSet"]).split()
    )
    exe = set(_Unit(DROP_INS / "evidence-exe.conf")["Service.CapabilityBoundingSet"])
    assert {name for name, when in documented.items() if not when.startswith("only")} == base
    assert {n for n, when in documented.items() if when == "only with evidence-exe.conf"} == exe
    assert exe == {"CAP_SYS_PTRACE"}
    restricted = set(_Unit(DROP_INS / "perf-restricted.conf")["Service.CapabilityBoundingSet"])
    assert restricted == old == {"CAP_SYS_ADMIN"}
    assert documented["CAP_SYS_ADMIN"].startswith("only before 5.8, or where")


def test_the_drop_in_for_a_crash_opens_one_file() -> None:
    """The unit's list of what is read-only is repeated there, without /proc/sysrq-trigger."""
    (ours,) = _Unit(UNIT)["Service.ReadOnlyPaths"]
    cleared, theirs = _Unit(DROP_INS / "actions-crash.conf")["Service.ReadOnlyPaths"]
    assert cleared == ""
    assert [path for path in ours.split() if path != "-/proc/sysrq-trigger"] == theirs.split()
    assert "-/proc/sysrq-trigger" in ours.split()


def test_a_restart_is_for_what_it_can_heal() -> None:
    """No exit code that says "it will be the same next time", and never many starts in a row."""
    unit = _Unit(UNIT)
    stays = {int(code) for code in unit["Service.RestartPreventExitStatus"][0].split()}
    assert stays == {int(code) for code in Exit} - {
        Exit.OK,
        Exit.FAILED,
        Exit.OSERR,
        Exit.CANTCREAT,
    }
    assert int(unit["Unit.StartLimitBurst"][0]) * int(unit["Service.RestartSec"][0]) < int(
        unit["Unit.StartLimitIntervalSec"][0]
    )
    assert unit["Service.Type"] == ["notify"] and "Service.WatchdogSec" in unit


def test_the_unit_waits_longer_than_the_daemon_does() -> None:
    """A disk that does not answer costs a stop _STOP_SECONDS; systemd must not kill it before."""
    unit = (DEPLOY / "ebpfwatch.service").read_text()
    (patience,) = re.findall(r"(?m)^TimeoutStopSec=(\d+)$", unit)
    assert loop._STOP_SECONDS * 2 <= int(patience)


def test_the_unit_argues() -> None:
    """Each group of lines stands below a comment: the longest run without a reason is short."""
    run = longest = 0
    for line in UNIT.read_text().splitlines():
        run = 0 if line.startswith("#") or not line else run + 1
        longest = max(longest, run)
    assert longest <= 13, "say why, above the lines"


@pytest.mark.parametrize(
    ("last_cap", "paranoid", "btf", "wanted"),
    [
        (37, 2, False, {"before-cap-bpf.conf", "without-btf.conf"}),
        (39, None, False, {"without-btf.conf"}),
        (40, 3, True, {"perf-restricted.conf"}),
        (40, -1, True, set()),
    ],
)
def test_the_generator_asks_the_kernel(
    tmp_path: Path, last_cap: int, paranoid: int | None, btf: bool, wanted: set[str]
) -> None:
    """It links the drop-ins that a kernel needs, and every link is a file of the package."""
    files = {"proc/sys/kernel/cap_last_cap": f"{last_cap}\n"}
    files.update({"sys/kernel/btf/vmlinux": "x"} if btf else {})
    if paranoid is not None:
        files["proc/sys/kernel/perf_event_paranoid"] = f"{paranoid}\n"
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    words = [str(DEPLOY / "ebpfwatch-generator"), str(tmp_path / "units"), "early", "late"]
    environment = {**os.environ, "EBPFWATCH_ROOT": str(tmp_path)}
    subprocess.run(words, env=environment, check=True)
    links = {
        path.name: os.readlink(path) for path in (tmp_path / "units").glob("ebpfwatch.service.d/*")
    }
    assert set(links) == wanted
    assert all(target == f"/usr/share/ebpfwatch/{name}" for name, target in links.items())
    install = (DEPLOY / "debian/ebpfwatch.install").read_text()
    assert "ebpfwatch.service.d/*.conf usr/share/ebpfwatch" in install
    assert wanted <= {path.name for path in DROP_INS.iterdir()}


def test_the_package_has_our_version() -> None:
    """debian/changelog and ebpfwatch.__version__."""
    first = (DEPLOY / "debian/changelog").read_text().splitlines()[0]
    assert first.startswith(f"ebpfwatch ({__version__}) ")


def test_every_dependency_of_the_package_is_installed_for_the_run() -> None:
    """What apt installs for the package, `make run` installs for a checkout."""
    control = (DEPLOY / "debian/control").read_text()
    makefile = (ROOT / "Makefile").read_text()
    depends = control.partition("\nDepends:")[2].partition("\nSuggests")[0]
    for name in re.findall(r"^ ([a-z][\w-]+)", depends, re.MULTILINE):
        assert name in makefile.partition("TEST_PACKAGES")[0], name
    build = control.partition("Build-Depends:")[2].partition("Standards")[0]
    for name in re.findall(r"^ ([a-z][\w-]+)", build, re.MULTILINE):
        wanted = name.replace("debhelper-compat", "debhelper")
        assert wanted in makefile.partition("DEB_PACKAGES")[2], name


@pytest.mark.slow
@pytest.mark.needs("help2man")
def test_the_man_pages_say_what_the_parser_says(tmp_path: Path) -> None:
    """One page a command with all its options, and every key of the configuration."""
    words = ["sh", str(DEPLOY / "man/build.sh"), str(tmp_path), __version__]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(words, cwd=ROOT, check=True, env={**os.environ, "PATH": path})
    overview = (tmp_path / "ebpfwatch.8").read_text().replace("\\-", "-")
    for name in COMMANDS:
        assert f"\n{name}\n" in overview, name
        page = (tmp_path / f"ebpfwatch-{name}.8").read_text()
        assert "SYNOPSIS" in page and "--help" in page.replace("\\-", "-"), name
    keys = (tmp_path / "ebpfwatch.yaml.5").read_text().replace("\\-", "-")
    for line in (ROOT / "config.example.yaml").read_text().splitlines():
        assert line in keys


@pytest.mark.needs("dpkg")
def test_installing_what_is_there_touches_nothing(tmp_path: Path) -> None:
    """deploy/install-packages.sh: no network for what is installed, and one line for the rest."""
    script = str(DEPLOY / "install-packages.sh")
    done = subprocess.run(["sh", script, "dpkg", "bash"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    words = ["setpriv", "--reuid=65534", "--clear-groups", "sh", "-s", "dpkg", "no-such-package"]
    words = words if os.getuid() == 0 else words[3:]
    with open(script) as text:
        done = subprocess.run(words, stdin=text, capture_output=True, text=True)
    assert done.returncode == Exit.NOPERM
    assert "no-such-package; run it as root" in done.stderr and "Traceback" not in done.stderr


def test_the_bill_of_materials_names_files_and_dependencies(tmp_path: Path) -> None:
    """deploy/sbom.py on a small tree; on the real one: tests/deb/test_contents.py."""
    (tmp_path / "DEBIAN").mkdir()
    (tmp_path / "DEBIAN/control").write_text(
        "Package: p\nVersion: 1\nArchitecture: all\n"
        "Depends: python3:any (>= 3.9~), a | b,\n c (<< 2)\n"
        "Description: of\n Depends: nothing\n"
    )
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr/file").write_text("abc")
    (tmp_path / "usr/link").symlink_to("/etc/passwd")
    (tmp_path / "usr/old.cdx.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, DEPLOY / "sbom.py", tmp_path], capture_output=True, text=True, check=True
    )
    bill = json.loads(done.stdout)
    assert bill["metadata"]["component"]["purl"] == "pkg:deb/debian/p@1?arch=all"
    parts = {part["name"]: part for part in bill["components"]}
    asked = {n: [p["value"] for p in part.get("properties", [])] for n, part in parts.items()}
    assert asked == {"python3": [">= 3.9~"], "a": [], "c": ["<< 2"], "/usr/file": []}
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert parts["/usr/file"]["hashes"] == [{"alg": "SHA-256", "content": abc}]


@pytest.mark.needs("make")
def test_make_help_tells_every_target() -> None:
    """One line each, with words: a target that nobody can find is run by nobody."""
    targets = re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text())
    # Not as a child of the make that runs the tests: that would say which directory it enters.
    apart = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    done = subprocess.run(
        ["make", "help"], cwd=ROOT, env=apart, capture_output=True, text=True, check=True
    )
    told = [line.split()[0] for line in done.stdout.splitlines() if len(line.split()) > 1]
    assert told == targets


#: What of deploy/ is run or read as it is shipped, and by whom.
EXERCISED = {
    "build-deb.sh": "tests/deb/conftest.py",
    "build-rpm.sh": "tests/deb/test_rpm.py",
    "build_triage.py": "tests/unit/test_triage.py",
    "completion.sh": "tests/deb/test_package.py",
    "copy-tree.sh": "tests/deb/conftest.py",
    "debian/*": "tests/deb/test_package.py",
    "ebpfwatch-generator": "tests/unit/test_deploy.py",
    "ebpfwatch.catalog": "tests/deb/test_package.py",
    "ebpfwatch.service": "tests/vm/scripts/service.sh",
    "ebpfwatch.service.d/*": "tests/unit/test_deploy.py",
    "fleet/playbook.yml": "tests/install/test_playbook.py",
    "fleet/*": "tests/deploy/test_fleet.py",
    "grafana/*": "tests/deploy/test_grafana.py",
    "image/*": "tests/vm/scripts/image.sh",
    "install-packages.sh": "tests/unit/test_deploy.py",
    "supported.sh": "tests/unit/test_supported.py",
    "kubernetes/*": "tests/deb/test_container.py",
    "man/*": "tests/unit/test_deploy.py",
    "prometheus/*": "tests/deploy/test_alerts.py",
    "release.sh": "tests/unit/test_release.py",
    "rpm/*": "tests/deb/test_rpm.py",
    "sbom.py": "tests/unit/test_deploy.py",
}


@pytest.mark.needs("git")
def test_every_file_of_deploy_is_exercised_by_a_test() -> None:
    """A file that nothing exercises is a promise that nobody keeps: who adds one says who does."""
    listed = subprocess.run(
        ["git", "ls-files", "deploy"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    names = {name.removeprefix("deploy/") for name in listed}
    assert not [n for n in names if not any(fnmatch.fnmatch(n, key) for key in EXERCISED)]
    assert not [key for key in EXERCISED if not fnmatch.filter(names, key)]
    for key, test in EXERCISED.items():
        assert (ROOT / test).exists(), (key, test)


def test_each_folder_of_the_package_is_installed() -> None:
    """A checkout has each folder, whether or not it is listed; a package only what is listed."""
    listed = re.findall(r'(?m)^    "(ebpfwatch[\w.]*)",$', (ROOT / "pyproject.toml").read_text())
    folders = {file.parent for file in (ROOT / "ebpfwatch").rglob("*.py")}
    there = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert sorted(there | {"ebpfwatch.docs", "ebpfwatch.probes"}) == sorted(set(listed))
