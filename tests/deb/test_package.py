"""The package as dpkg sees it: installed, used, upgraded, removed, purged.

Built from deploy/debian and deploy/man by deploy/build-deb.sh.  What needs a kernel of its own (the
unit started by the installation, a finding, a purge that stops the daemon) is the guests' scenario
``service``.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpfwatch import __version__
from ebpfwatch.commands import COMMANDS
from tests.deb.chroot import Chroot, unpack

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, package: Path) -> Iterator[Chroot]:
    """A clean Debian 12 with what the package depends on, but not the package."""
    directory = tmp_path_factory.mktemp("bookworm")
    chroot = unpack(directory)
    depends = subprocess.run(
        ["dpkg-deb", "-f", package, "Depends"], check=True, capture_output=True, text=True
    ).stdout
    names = [word.split()[0].split(":")[0] for word in depends.split(",")]
    chroot.run(
        f"apt-get -q update && apt-get -q install -y --no-install-recommends {' '.join(names)}"
    )
    yield chroot
    shutil.rmtree(directory)


def _older(package: Path, directory: Path) -> Path:
    """The same package as an earlier version with another default configuration."""
    tree = directory / "older"
    subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace(f"Version: {__version__}", "Version: 0.0.1"))
    with open(tree / "etc/ebpfwatch/config.yaml", "a") as file:
        file.write("# the default of 0.0.1\n")
    older = directory / "ebpfwatch_0.0.1_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, older], check=True)
    return older


def _install(system: Chroot, package: Path) -> None:
    shutil.copy(package, system.path / "tmp")
    # As an operator who answers "keep my configuration".
    keep = "-o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confold"
    system.run(f"apt-get -q install -y {keep} /tmp/{package.name}")


def test_the_life_of_the_package(system: Chroot, package: Path, tmp_path: Path) -> None:
    """Install, use, upgrade over an edited configuration, remove, purge: nothing is left but
    findings and what the site put beside the configuration; and what is left is said.
    """
    before = system.files()
    _install(system, _older(package, tmp_path))
    config = system.path / "etc/ebpfwatch/config.yaml"
    config.write_text("findings:\n  keep: 17\n")
    state = system.path / "var/lib/ebpfwatch/findings"
    state.mkdir(parents=True)
    (state / "1.json").write_text("{}")

    _install(system, package)
    assert config.read_text() == "findings:\n  keep: 17\n", "the upgrade took the operator's words"
    assert system.run("ebpfwatch --version").stdout == f"ebpfwatch {__version__}\n"
    system.run("ebpfwatch check-config /etc/ebpfwatch/config.yaml")
    assert system.run("systemctl is-enabled ebpfwatch").stdout == "enabled\n"
    said = system.run("systemd-analyze verify ebpfwatch.service")
    assert "ebpfwatch" not in said.stdout + said.stderr
    # What this machine's /proc says, whatever it has of BTF: a chroot has no /sys.
    generator = "/lib/systemd/system-generators/ebpfwatch-generator"
    system.run(f"{generator} /tmp/units /tmp/early /tmp/late")
    linked = system.run("ls /tmp/units/ebpfwatch.service.d").stdout.split()
    sysctls = Path("/proc/sys/kernel")
    wanted = {"without-btf.conf"}
    if int((sysctls / "cap_last_cap").read_text()) < 39:
        wanted.add("before-cap-bpf.conf")
    if int((sysctls / "perf_event_paranoid").read_text()) >= 3:
        wanted.add("perf-restricted.conf")
    # At hand, and nowhere that systemd looks.
    found = system.run("find / -xdev -name 'evidence-exe*'").stdout.split()
    assert "/usr/share/ebpfwatch/evidence-exe.conf" in found
    assert not [name for name in found if "/systemd/" in name]
    assert set(linked) == wanted

    system.run("apt-get -q remove -y ebpfwatch")
    assert config.exists() and (state / "1.json").exists(), "a removal is no purge"
    key = system.path / "etc/ebpfwatch/tls.key"
    key.write_text("a key of the site")
    (state.parent / "boot.json").write_text("{}")
    purged = system.run("dpkg --purge ebpfwatch").stdout
    assert "to remove them: rm -r /var/lib/ebpfwatch /etc/ebpfwatch\n" in purged
    assert (state / "1.json").exists() and key.exists(), "evidence and keys are not ours to delete"
    assert not (state.parent / "boot.json").exists() and not config.exists()
    system.run(purged.partition("to remove them: ")[2])
    assert system.files() - before == set()
    assert before - system.files() == set()


def test_a_fresh_installation(system: Chroot, package: Path) -> None:
    """The configuration is the example; the catalog, the pages and the completion are at hand."""
    system.run("dpkg --purge ebpfwatch")
    _install(system, package)
    config = (system.path / "etc/ebpfwatch/config.yaml").read_text()
    assert config == (ROOT / "config.example.yaml").read_text()
    listed = system.run("journalctl --list-catalog").stdout
    assert "ebpfwatch: An ext4 inode object was freed a second time" in listed
    for page in ("ebpfwatch.8", *(f"ebpfwatch-{name}.8" for name in COMMANDS), "ebpfwatch.yaml.5"):
        number = page[-1]
        path = f"/usr/share/man/man{number}/{page}.gz"
        shown = subprocess.run(
            ["man", "--warnings", "-l", system.path / path[1:]], capture_output=True, text=True
        )
        assert shown.returncode == 0 and not shown.stderr, shown.stderr
        assert "NAME" in shown.stdout
    system.run("dpkg --purge ebpfwatch")


def test_the_completion_is_where_the_shells_look(system: Chroot, package: Path) -> None:
    """bash loads it by the command's name; that it works in real shells is a unit test."""
    _install(system, package)
    script = ". /usr/share/bash-completion/bash_completion; _completion_loader ebpfwatch"
    said = system.run(f"bash -c '{script}; complete -p ebpfwatch'").stdout
    assert said == "complete -F _ebpfwatch ebpfwatch\n"
    for place in ("zsh/vendor-completions/_ebpfwatch", "fish/vendor_completions.d/ebpfwatch.fish"):
        text = (system.path / "usr/share" / place).read_text()
        assert [name for name in COMMANDS if name not in text] == [], place
    system.run("dpkg --purge ebpfwatch")
