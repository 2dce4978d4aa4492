"""deploy/release.sh: sizes, checksums, and a signature by a key that exists for the test alone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

RELEASE = Path(__file__).parents[2] / "deploy/release.sh"


def release(directory: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it over a directory."""
    return subprocess.run(
        ["sh", str(RELEASE), str(directory), *words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_what_is_built_is_listed_and_can_be_checked(tmp_path: Path) -> None:
    """A size a file; a file that was changed afterwards is found; no key is said."""
    (tmp_path / "one.deb").write_bytes(b"x" * 100)
    (tmp_path / "two.rpm").write_bytes(b"y")
    (tmp_path / "log").write_text("not for anybody")
    done = release(tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stdout.splitlines()[:2]] == [
        ["100", "one.deb"],
        ["1", "two.rpm"],
    ]
    assert "not signed" in done.stdout and not (tmp_path / "SHA256SUMS.asc").exists()
    check = ["sha256sum", "--status", "-c", "SHA256SUMS"]
    assert subprocess.run(check, cwd=tmp_path).returncode == 0
    (tmp_path / "two.rpm").write_bytes(b"z")
    assert subprocess.run(check, cwd=tmp_path).returncode == 1


def test_nothing_to_release(tmp_path: Path) -> None:
    """One line that says what to do."""
    done = release(tmp_path)
    assert done.returncode == 1 and "nothing is built" in done.stderr


@pytest.mark.slow
@pytest.mark.needs("gpg")
def test_a_key_signs_the_list(tmp_path: Path) -> None:
    """And the signature is good, until the list is changed."""
    keys, built = tmp_path / "keys", tmp_path / "built"
    keys.mkdir(mode=0o700)
    built.mkdir()
    (built / "one.deb").write_bytes(b"x")
    home = {"GNUPGHOME": str(keys)}
    environment = {**os.environ, **home}
    make = ["gpg", "--batch", "--passphrase", "", "--quick-generate-key", "test@example.invalid"]
    subprocess.run(make, check=True, capture_output=True, env=environment)
    try:
        done = release(built, "test@example.invalid", **home)
        assert done.returncode == 0, done.stderr
        verify = ["gpg", "--verify", str(built / "SHA256SUMS.asc"), str(built / "SHA256SUMS")]
        assert subprocess.run(verify, capture_output=True, env=environment).returncode == 0
        (built / "SHA256SUMS").write_text("")
        assert subprocess.run(verify, capture_output=True, env=environment).returncode != 0
    finally:
        subprocess.run(["gpgconf", "--kill", "all"], env=environment, check=True)
