"""The RPM: built here, and installed by rpm into a clean Debian 12 that has what it requires.

No RHEL or openEuler is here: that the names in Requires are theirs is not shown by this.
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
from tests.deb.conftest import ROOT
from tests.unit.test_links import broken

pytestmark = pytest.mark.needs("rpm")

#: Debian's names of what the spec requires.
_REQUIRED = "python3-bpfcc python3-prometheus-client python3-systemd python3-yaml procps"


@pytest.fixture(scope="module")
def rpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the checkout, and read by rpmlint."""
    directory = tmp_path_factory.mktemp("rpm")
    subprocess.run(["sh", str(ROOT / "deploy/build-rpm.sh"), str(directory)], check=True)
    return next(directory.glob("*.noarch.rpm"))


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chroot]:
    """A clean system with what the RPM requires."""
    directory = tmp_path_factory.mktemp("bookworm")
    chroot = unpack(directory)
    chroot.run(f"apt-get -q update && apt-get -q install -y --no-install-recommends {_REQUIRED}")
    yield chroot
    shutil.rmtree(directory)


def _rpm(system: Chroot, *words: str) -> str:
    done = subprocess.run(
        ["rpm", "--root", str(system.path), "--nodeps", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_life_of_the_rpm(system: Chroot, rpm: Path) -> None:
    """Installed, used, removed: nothing is left but the configuration that was changed."""
    before = system.files()
    _rpm(system, "-i", str(rpm))
    assert system.run("ebpfwatch --version").stdout == f"ebpfwatch {__version__}\n"
    system.run("cd /tmp && ebpfwatch check-config")
    assert "int kmem_cache_free(" in system.run("ebpfwatch print-probes").stdout
    said = system.run("systemd-analyze verify ebpfwatch.service")
    assert "ebpfwatch" not in said.stdout + said.stderr
    for page in ("ebpfwatch", *(f"ebpfwatch-{name}" for name in COMMANDS)):
        assert (system.path / f"usr/share/man/man8/{page}.8.gz").exists()
    pages = sorted((system.path / "usr/share/doc/ebpfwatch").rglob("*.md"))
    assert len(pages) > 20
    assert {
        page.name: found for page in pages if (found := list(broken(page, page.read_text())))
    } == {}
    (system.path / "etc/ebpfwatch/config.yaml").write_text("findings:\n  keep: 17\n")
    _rpm(system, "-e", "ebpfwatch")
    # Directories that others share belong to the package `filesystem` of an RPM distribution.
    left = {
        name
        for name in system.files() - before
        if "ebpfwatch" in name or not (system.path / name).is_dir()
    }
    left = {name for name in left if not name.startswith("./root/.rpmdb")}  # rpm's own books
    assert left == {"./etc/ebpfwatch", "./etc/ebpfwatch/config.yaml.rpmsave"}


def test_both_packages_bring_the_same(rpm: Path, package: Path) -> None:
    """What is outside the program's own directory and the pages, by its place."""

    def places(text: str) -> set[str]:
        names = {line.lstrip(".").rstrip("/") for line in text.split("\n")}
        names = {name.replace("/lib/systemd", "/usr/lib/systemd") for name in names if name}
        names = {name.replace("/usr/usr/", "/usr/") for name in names}
        names = {name.replace("zsh/site-functions", "zsh/vendor-completions") for name in names}
        outside = (
            "/usr/lib/python3",
            "/usr/lib/ebpfwatch",
            "/usr/share/doc",
            "/usr/share/licenses",
        )
        return {
            name
            for name in names
            if "ebpfwatch" in name and not name.startswith(outside) and "sbom" not in name
        }

    listed = subprocess.run(["rpm", "-qpl", rpm], check=True, capture_output=True, text=True)
    tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, capture_output=True)
    files = subprocess.run(["tar", "-t"], input=tar.stdout, check=True, capture_output=True)
    ours, theirs = places(listed.stdout), places(files.stdout.decode())
    assert (ours - theirs, theirs - ours - {"/usr/share/lintian"}) == (set(), set())
