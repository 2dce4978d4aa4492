"""When the certificate expires, by a reader of our own beside openssl's."""

from __future__ import annotations

import datetime
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpfwatch.sinks.web.certificate import expiry


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl: apt-get install openssl")
@pytest.mark.parametrize("days", [1, 400, 20000])  # the last beyond 2049: another form of date
@pytest.mark.parametrize("kind", [["rsa:2048"], ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]])
def test_it_is_what_openssl_says(tmp_path: Path, days: int, kind: list[str]) -> None:
    """To the second, for both forms of a date and two kinds of key."""
    pem = tmp_path / "cert.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            *kind,
            "-nodes",
            "-keyout",
            str(tmp_path / "key.pem"),
        ]
        + ["-out", str(pem), "-days", str(days), "-subj", "/CN=x/O=A long name, with commas"],
        check=True,
        capture_output=True,
    )
    said = subprocess.run(
        ["openssl", "x509", "-in", pem, "-noout", "-enddate"], check=True, capture_output=True
    )
    text = said.stdout.decode().strip().removeprefix("notAfter=")
    when = datetime.datetime.strptime(text, "%b %d %H:%M:%S %Y GMT")
    assert expiry(pem.read_bytes()) == when.replace(tzinfo=datetime.timezone.utc).timestamp()


@given(st.binary(max_size=200))
def test_damage_is_a_value_error(data: bytes) -> None:
    """Whatever lies in the file."""
    import base64

    for text in (data, b"-----BEGIN CERTIFICATE-----" + base64.b64encode(data)):
        with pytest.raises(ValueError):
            expiry(text + b"-----END CERTIFICATE-----")
