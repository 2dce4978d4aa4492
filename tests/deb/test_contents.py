"""What is in the package, without installing it: rights, owners, and its bill of materials."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ebpfwatch import __version__
from tests.deb.conftest import ROOT
from tests.unit.test_links import broken

BILL = "./usr/share/ebpfwatch/sbom.cdx.json"


def archive(package: Path) -> tarfile.TarFile:
    """The files of a package as dpkg unpacks them."""
    words = ["dpkg-deb", "--fsys-tarfile", str(package)]
    return tarfile.open(
        fileobj=io.BytesIO(subprocess.run(words, check=True, capture_output=True).stdout)
    )


@pytest.fixture
def contents(package: Path) -> dict[str, tarfile.TarInfo]:
    """Every path of the package."""
    return {member.name: member for member in archive(package).getmembers()}


def test_nothing_in_it_can_be_written_or_runs_with_other_rights(
    contents: dict[str, tarfile.TarInfo],
) -> None:
    """Root's; no setuid, setgid or sticky bit, no device, no capability, no right to write for
    group or others; and executable is only what is to be run.
    """
    assert len(contents) > 150
    executable = set()
    for name, member in contents.items():
        assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "root", "root"), name
        assert member.isreg() or member.isdir() or member.issym(), name
        assert "SCHILY.xattr.security.capability" not in member.pax_headers, name
        if not member.issym():
            bad = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX | stat.S_IWGRP | stat.S_IWOTH
            assert not member.mode & bad, (name, oct(member.mode))
        if member.isreg() and member.mode & 0o111:
            executable.add(name)
    assert executable == {
        "./usr/bin/ebpfwatch",
        "./usr/lib/systemd/system-generators/ebpfwatch-generator",
    }


def read_bill(package: Path) -> dict[str, Any]:
    """The bill of materials in the package."""
    file = archive(package).extractfile(BILL)
    assert file is not None
    body: dict[str, Any] = json.load(file)
    return body


def test_the_bill_of_materials_is_of_this_very_package(package: Path) -> None:
    """Each file with its sum, none left out, and each package of Depends."""
    bill, files = read_bill(package), archive(package)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    assert bill["metadata"]["component"]["version"] == __version__
    told = {c["name"]: c["hashes"] for c in bill["components"] if c["type"] == "file"}
    packed = {}
    for member in files.getmembers():
        file = files.extractfile(member) if member.isreg() and member.name != BILL else None
        if file is not None:
            digest = hashlib.sha256(file.read()).hexdigest()
            packed[member.name[1:]] = [{"alg": "SHA-256", "content": digest}]
    assert told == packed
    depends = subprocess.run(
        ["dpkg-deb", "-f", package, "Depends"], check=True, capture_output=True, text=True
    ).stdout
    wanted = {word.split()[0].split(":")[0] for word in depends.split(",")}
    libraries = {c["name"]: c for c in bill["components"] if c["type"] == "library"}
    assert set(libraries) == wanted >= {"python3-bpfcc", "python3-yaml", "linux-libc-dev"}
    assert libraries["python3-bpfcc"]["properties"][0]["value"] == ">= 0.26"
    (dependencies,) = bill["dependencies"]
    assert dependencies["ref"] == bill["metadata"]["component"]["bom-ref"]
    assert set(dependencies["dependsOn"]) == {c["bom-ref"] for c in libraries.values()}


def test_the_same_source_gives_the_same_bill(package: Path, tmp_path: Path) -> None:
    """Built a second time, elsewhere and without any network: byte by byte."""
    words = ["unshare", "--net", "sh", str(ROOT / "deploy/build-deb.sh"), str(tmp_path)]
    subprocess.run(words, check=True)
    again = next(tmp_path.glob("ebpfwatch_*_all.deb"))
    first, second = (archive(p).extractfile(BILL) for p in (package, again))
    assert first is not None and second is not None
    assert first.read() == second.read()


def test_every_link_of_the_pages_works_where_they_are_installed(
    package: Path, tmp_path: Path
) -> None:
    """In /usr/share/doc/ebpfwatch as in a checkout."""
    subprocess.run(["dpkg-deb", "-x", package, tmp_path], check=True)
    pages = sorted((tmp_path / "usr/share/doc/ebpfwatch").rglob("*.md"))
    assert len(pages) > 20
    found = {page.name: list(broken(page, page.read_text())) for page in pages}
    assert {name: links for name, links in found.items() if links} == {}
