"""TLS and passwords of the real daemon, by real clients: curl, openssl and Prometheus."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.deploy.conftest import program
from tests.deploy.stack import api, prometheus, shipped
from tests.live.conftest import DaemonProcess, command, free_port, start_daemon
from tests.live.harness import selftest, until

PASSWORD = "correct horse"


def certificate(directory: Path, name: str) -> None:
    """A self-signed one for the loopback address: name.pem and name.key."""
    subprocess.run(
        [program("openssl")["openssl"], "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]
        + ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", f"/CN={name}"]
        + ["-addext", "subjectAltName=IP:127.0.0.1"]
        + ["-keyout", directory / f"{name}.key", "-out", directory / f"{name}.pem"],
        check=True,
        capture_output=True,
    )


def write_web_config(directory: Path, password: str, **tls: str) -> Path:
    """A file as an administrator would write it, with htpasswd's own hash."""
    hashed = subprocess.run(
        [program("htpasswd")["htpasswd"], "-nbBC", "10", "", password],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    file = directory / "web.yml"
    server = {"cert_file": "server.pem", "key_file": "server.key", **tls}
    users = {"prometheus": hashed.lstrip(":")}
    file.write_text(yaml.safe_dump({"tls_server_config": server, "basic_auth_users": users}))
    return file


@pytest.fixture
def guarded(tmp_path: Path, ext4: Path) -> Iterator[DaemonProcess]:
    """A daemon with a certificate and a user."""
    certificate(tmp_path, "server")
    file = write_web_config(tmp_path, PASSWORD)
    running = start_daemon(tmp_path, web_config=str(file))
    yield running
    assert running.stop() == 0, running.log.read_text()


def curl(guarded: DaemonProcess, *words: object, path: str = "/-/healthy") -> tuple[int, str]:
    """curl's exit code, and its output with the HTTP status at the end."""
    ran = subprocess.run(
        ["curl", "-sS", "--max-time", "15", "-w", "%{http_code}", *map(str, words)]
        + [guarded.url + path],
        capture_output=True,
        text=True,
    )
    return ran.returncode, ran.stdout + ran.stderr


def test_only_who_has_both(guarded: DaemonProcess, tmp_path: Path) -> None:
    """The certificate proves the server, the password the client; 401 says how to log in."""
    ca = ("--cacert", tmp_path / "server.pem")
    user = ("-u", f"prometheus:{PASSWORD}")
    assert guarded.url.startswith("https://127.0.0.1:")
    assert curl(guarded, *ca, *user) == (0, "healthy\n200")
    for path in ("/", "/metrics", "/-/healthy", "/-/ready", "/x"):
        assert curl(guarded, *ca, path=path)[1].endswith("401")
    assert curl(guarded, *ca, "-u", "prometheus:wrong")[1].endswith("401")
    assert curl(guarded, *ca, "-u", f"nobody:{PASSWORD}")[1].endswith("401")
    assert "WWW-Authenticate: Basic" in curl(guarded, *ca, "-i")[1]
    code, said = curl(guarded, *user)
    assert code == 60 and "certificate" in said
    plain = subprocess.run(
        ["curl", "-sS", guarded.url.replace("https", "http")], capture_output=True
    )
    assert plain.returncode != 0
    assert curl(guarded, *ca, *user) == (0, "healthy\n200")


def test_old_tls_is_refused(guarded: DaemonProcess, tmp_path: Path) -> None:
    """1.1 is turned away, 1.2 and 1.3 are spoken."""
    for version, works in (("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)):
        spoken = subprocess.run(
            [program("openssl")["openssl"], "s_client", "-brief", version]
            + ["-cipher", "ALL:@SECLEVEL=0", "-connect", guarded.url.removeprefix("https://")],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert ("CONNECTION ESTABLISHED" in spoken.stderr) == works, (version, spoken.stderr)


def test_a_scrape_is_cheap_after_the_first(guarded: DaemonProcess, tmp_path: Path) -> None:
    """bcrypt runs once for a scraper, not at every scrape: from the daemon's own CPU time."""
    words = ("--cacert", tmp_path / "server.pem", "-u", f"prometheus:{PASSWORD}")

    def ticks() -> int:
        fields = Path(f"/proc/{guarded.process.pid}/stat").read_text().rpartition(") ")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    curl(guarded, *words)
    first = ticks() - before
    before = ticks()
    for _ in range(10):
        assert curl(guarded, *words)[0] == 0
    assert ticks() - before <= 10 * max(first, 2)
    # 32e6 without TLS. Of what comes with it, three quarters are pages of libcrypto and libssl,
    # which all that use OpenSSL share; the daemon's own is the rest.
    pages = Path(f"/proc/{guarded.process.pid}/statm").read_text().split()
    resident, shared = (int(count) * os.sysconf("SC_PAGE_SIZE") for count in pages[1:3])
    assert resident <= 36e6 and resident - shared <= 22e6


def test_new_certificate_and_password_without_a_restart(
    guarded: DaemonProcess, tmp_path: Path
) -> None:
    """The next connection sees them; a broken file changes nothing but the log and a metric."""
    ca = ("--cacert", tmp_path / "server.pem")
    assert curl(guarded, *ca, "-u", f"prometheus:{PASSWORD}")[0] == 0
    certificate(tmp_path, "server")
    write_web_config(tmp_path, "another")
    assert curl(guarded, *ca, "-u", "prometheus:another") == (0, "healthy\n200")
    assert curl(guarded, *ca, "-u", f"prometheus:{PASSWORD}")[1].endswith("401")
    (tmp_path / "web.yml").write_text("tls_server_config: {")
    assert curl(guarded, *ca, "-u", "prometheus:another") == (0, "healthy\n200")
    guarded.wait_log("keeping the old web configuration")
    failed = 'ebpfwatch_config_last_reload_successful{file="web"} 0.0'
    words = (*ca, "-u", "prometheus:another")
    until(lambda: failed in curl(guarded, *words, path="/metrics")[1])
    assert guarded.process.poll() is None


def test_client_certificates(tmp_path: Path, ext4: Path) -> None:
    """RequireAndVerifyClientCert: nobody without one of that authority."""
    for name in ("server", "client", "unknown"):
        certificate(tmp_path, name)
    asked = {"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": "client.pem"}
    file = write_web_config(tmp_path, PASSWORD, **asked)
    running = start_daemon(tmp_path, web_config=str(file))
    words = ("--cacert", tmp_path / "server.pem", "-u", f"prometheus:{PASSWORD}")

    def as_client(name: str) -> tuple[object, ...]:
        return "--cert", tmp_path / f"{name}.pem", "--key", tmp_path / f"{name}.key"

    assert curl(running, *words, *as_client("client")) == (0, "healthy\n200")
    assert curl(running, *words, *as_client("unknown"))[0] != 0
    assert curl(running, *words)[0] != 0
    assert running.stop() == 0


def test_the_selftest_says_what_it_may_not_see(guarded: DaemonProcess) -> None:
    """Files are looked at; /metrics asks for a password, and that is said."""
    outcome = selftest(guarded)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "OK   report" in outcome.stdout and "NOTE metrics" in outcome.stdout
    assert "OK   metrics" not in outcome.stdout


def test_prometheus_scrapes_it(guarded: DaemonProcess, tmp_path: Path) -> None:
    """With the CA and the password in its configuration; the target is up and has samples."""
    target = guarded.url.removeprefix("https://")
    secured = (
        "  - job_name: ebpfwatch\n    scheme: https\n"
        f"    tls_config: {{ca_file: {tmp_path / 'server.pem'}}}\n"
        f"    basic_auth: {{username: prometheus, password: {PASSWORD}}}\n"
    )
    config = shipped(
        "prometheus.yml",
        tmp_path,
        {
            "  - job_name: ebpfwatch       # the rules know it by this name\n": secured,
            "127.0.0.1:9866": target,
            "interval: 15s": "interval: 1s",
        },
    )
    shipped("ebpfwatch.rules.yml", tmp_path, {})
    with prometheus(tmp_path, config) as url:
        until(
            lambda: api(url, "query", query="ebpfwatch_ready == 1")["result"],
            lambda: api(url, "targets")["activeTargets"],
        )
        assert api(url, "targets")["activeTargets"][0]["scrapeUrl"] == f"https://{target}/metrics"


def test_a_wrong_file_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    """Exit 78 from `run` and from `check-config`, with the same line."""
    file = tmp_path / "web.yml"
    file.write_text("tls_server_config:\n  cert_file: missing.pem\n  key_file: missing.key\n")
    config = tmp_path / "config.yaml"
    config.write_text(
        f"metrics: {{listen: '127.0.0.1:{free_port()}', web_config: {file}}}\n"
        f"state_directory: {tmp_path}/state\n"
    )
    said = set()
    for words in (("run", "--config", config), ("check-config", config)):
        outcome = command(*words, run_directory=tmp_path / "run")
        assert outcome.returncode == 78, outcome.stderr
        said.add(outcome.stderr)
    assert len(said) == 1 and "missing.pem" in said.pop()
