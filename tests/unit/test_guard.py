"""The web configuration: what is read, what is refused, and passwords."""

from __future__ import annotations

import base64
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.sinks.web import webconfig
from ebpfwatch.sinks.web.guard import Guard
from ebpfwatch.sinks.web.passwords import Hasher, Passwords, _basic

# htpasswd -nbBC 4 '' secret
HASH = "$2y$04$.M2Am9ftGgE8Pv14FwoLDuQPxCAKsJRFhzs9n4SrDGPo28PIfVvnm"


def basic(user: str, password: str) -> str:
    """The header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("tls_server_config:\n  cipher_suites: [x]", ":2: unknown key tls_server_config.cipher_su"),
        ("tls_server_config:\n  cert: x", "did you mean tls_server_config.cert_file?"),
        ("rate_limit:\n  burst: 1", ":1: unknown key rate_limit; known: tls_server_config"),
        ("tls_server_config:\n  min_version: TLS10", "must be one of TLS12, TLS13"),
        ("tls_server_config:\n  client_auth_type: RequireAnyClientCert", "must be one of NoClient"),
        ("tls_server_config:\n  cert_file: x", "cert_file and key_file need each other"),
        ("tls_server_config:\n  min_version: TLS13", "needs cert_file and key_file"),
        (
            "tls_server_config:\n  client_auth_type: RequireAndVerifyClientCert",
            "client_auth_type and client_ca_file need each other",
        ),
        (
            "tls_server_config:\n  {cert_file: a, key_file: b, min_version: TLS13,"
            " max_version: TLS12}",
            "max_version is below min_version",
        ),
        ("tls_server_config:\n  {cert_file: no, key_file: no.key}", "must be text"),
        ("tls_server_config:\n  {cert_file: x, key_file: y}", "/x: No such file"),
        ("http_server_config:\n  http2: true", "only HTTP/1 is spoken"),
        ("http_server_config:\n  headers: {}", "unknown key http_server_config.headers"),
        ("basic_auth_users: 3", "basic_auth_users must be a mapping"),
        ("basic_auth_users:\n  a: 3", "basic_auth_users must be names with a text each"),
        ("basic_auth_users:\n  a: secret", "basic_auth_users.a is no bcrypt hash"),
        (f"basic_auth_users:\n  a: {HASH.replace('$04', '$31')}", "a cost from 4 to 15"),
        (f"basic_auth_users:\n  'a:b': {HASH}", "is empty or contains a colon"),
        (f"basic_auth_users:\n  a: {HASH}\n  a: {HASH}", ":3: basic_auth_users.a is given twice"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    """Exit 78, the file, and never a password."""
    file = tmp_path / "web.yml"
    file.write_text(text)
    with pytest.raises(EbpfwatchError) as raised:
        Guard(str(file))
    assert complaint in str(raised.value)
    assert raised.value.exit_code is Exit.CONFIG
    assert str(raised.value).startswith(str(file)) and "\n" not in str(raised.value)
    assert "secret" not in str(raised.value) and HASH not in str(raised.value)


CERTIFICATE = "-----BEGIN CERTIFICATE-----\n"
KEY = "-----BEGIN PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("certificate", "key", "complaint"),
    [
        ("", KEY, "cert.pem holds no certificate in PEM"),
        (KEY, CERTIFICATE, "cert.pem holds no certificate in PEM"),
        ("\x00\xff" * 999, KEY, "cert.pem holds no certificate in PEM"),
        (CERTIFICATE, "", "key.pem holds no private key in PEM"),
        (CERTIFICATE, "-----BEGIN ENCRYPTED PRIVATE KEY-----\n", "key.pem is encrypted"),
        (CERTIFICATE, f"{KEY}Proc-Type: 4,ENCRYPTED\n", "key.pem is encrypted"),
        (CERTIFICATE, KEY, "cannot use "),
        (None, KEY, "cert.pem: is not a regular file"),
    ],
)
def test_files_that_are_no_certificate_or_no_key(
    tmp_path: Path, certificate: str | None, key: str, complaint: str
) -> None:
    """In words, and without asking on a terminal or waiting for a FIFO."""
    if certificate is None:
        os.mkfifo(tmp_path / "cert.pem")
    else:
        (tmp_path / "cert.pem").write_text(certificate)
    (tmp_path / "key.pem").write_text(key)
    file = tmp_path / "web.yml"
    file.write_text("tls_server_config: {cert_file: cert.pem, key_file: key.pem}\n")
    with pytest.raises(EbpfwatchError) as raised:
        Guard(str(file))
    assert complaint in str(raised.value) and raised.value.exit_code is Exit.CONFIG


def test_a_key_that_others_can_write_is_refused(tmp_path: Path) -> None:
    """Whoever can write it can be us."""
    (tmp_path / "cert.pem").write_text(CERTIFICATE)
    (tmp_path / "key.pem").write_text(KEY)
    (tmp_path / "key.pem").chmod(0o666)
    file = tmp_path / "web.yml"
    file.write_text("tls_server_config: {cert_file: cert.pem, key_file: key.pem}\n")
    with pytest.raises(EbpfwatchError, match="key.pem can be written by others: chmod 600"):
        Guard(str(file))


def test_a_file_that_others_can_exchange_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a directory above it; one line, and it is read all the same."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open/web.yml").write_text("# nothing\n")
    Guard(str(tmp_path / "open/web.yml"))
    said = capsys.readouterr().err
    assert f"can be exchanged: {tmp_path}/open can be written by others" in said


@pytest.mark.parametrize("kind", ["fifo", "directory", "device"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    """At the start, and in place of a file that was right: the old users stay."""
    file = tmp_path / "web.yml"
    file.write_text("# nothing\n")
    guard = Guard(str(file))
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "directory":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero")
    guard.refresh()
    assert not guard.up_to_date and guard.allows(None)
    with pytest.raises(EbpfwatchError, match="is not a regular file|is a directory"):
        Guard(str(file))


def test_another_file_s_secrets_stay_out_of_the_message(tmp_path: Path) -> None:
    """A link that leads to the passwords of the machine, and what an operator may mistype."""
    (tmp_path / "shadow").write_text("root:$y$j9T$hunter2:19000:0:99999:7:::\n")
    (tmp_path / "web.yml").symlink_to(tmp_path / "shadow")
    texts = ["root:$6$hunter2: x\n", "{$hunter2\n"]
    texts.append(f"basic_auth_users:\n  '$hunter2': {HASH[:-1]}\n")
    for text in (None, *texts):
        if text is not None:
            (tmp_path / "web.yml").unlink(missing_ok=True)
            (tmp_path / "web.yml").write_text(text)
        with pytest.raises(EbpfwatchError) as raised:
            Guard(str(tmp_path / "web.yml"))
        assert "hunter2" not in f"{raised.value}"


def test_an_empty_file_asks_nobody(tmp_path: Path) -> None:
    """Plain HTTP for all, as in the exporters."""
    file = tmp_path / "web.yml"
    file.write_text("# nothing\nhttp_server_config:\n  http2: false\n")
    guard = Guard(str(file))
    assert not guard.tls and guard.allows(None)
    assert guard.missing == ("TLS", "a password")
    assert Guard().allows(None)


def test_paths_begin_at_the_file(tmp_path: Path) -> None:
    """A relative certificate lies beside the configuration; an absolute one where it says."""
    (tmp_path / "web.yml").write_text("tls_server_config: {cert_file: a.pem, key_file: /b.pem}")
    tls = webconfig.load(str(tmp_path / "web.yml")).tls_server_config
    assert (tls.cert_file, tls.key_file) == (str(tmp_path / "a.pem"), "/b.pem")


@pytest.mark.needs("bcrypt")
def test_passwords() -> None:
    """The right one, and nothing else; htpasswd's $2y$ included."""
    passwords = Passwords({"prometheus": HASH, "b": HASH.replace("2y", "2b")})
    assert passwords.allow(basic("prometheus", "secret")) and passwords.allow(basic("b", "secret"))
    for header in (
        None,
        "",
        "Basic",
        "Basic !!!",
        "Basic " + base64.b64encode(b"prometheus").decode(),
        "Bearer " + base64.b64encode(b"prometheus:secret").decode(),
        basic("prometheus", "Secret"),
        basic("prometheus", "secret\0"),
        basic("prometheus", ""),
        basic("", "secret"),
        basic("nobody", "secret"),
        basic("prometheus", "x" * 5000),
    ):
        assert not passwords.allow(header), header


@pytest.mark.needs("bcrypt")
def test_the_right_password_is_remembered_and_no_wrong_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """bcrypt runs once for each right pair, and each time for a wrong one or an unknown user."""
    passwords = Passwords({"a": HASH})
    real, runs = passwords._check, []

    def counted(password: bytes, hashed: bytes) -> bool:
        runs.append(password)
        return bool(real(password, hashed))

    monkeypatch.setattr(passwords, "_check", counted)
    assert all(passwords.allow(basic("a", "secret")) for _ in range(100))
    assert runs == [b"secret"]
    assert not any(passwords.allow(basic(user, "wrong")) for user in ("a", "a", "nobody"))
    assert not passwords.allow(basic("nobody", "secret"))  # right for another
    assert len(runs) == 5
    assert b"secret" not in repr(vars(passwords)["_known"]).encode()


class Bench:
    """A hasher whose jobs burn CPU time, and what it told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bool]] = []
        self.hasher = Hasher(lambda visit, right: self.told.append((visit, right)))

    def job(self, right: bool, cpu_seconds: float = 0.02) -> Callable[[], bool]:
        def work() -> bool:
            until = time.thread_time() + cpu_seconds
            while time.thread_time() < until:
                pass
            return right

        return work

    def wait(self, count: int, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while len(self.told) < count:
            assert time.monotonic() < deadline, self.told
            time.sleep(0.002)


def test_guessing_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a wrong one the same address waits nine times its CPU time, in a thread of its own;
    whoever is right does not.
    """
    bench = Bench()
    rests: list[float] = []
    waiters: set[int] = set()
    wait = bench.hasher._changed.wait

    def watched(seconds: float | None = None) -> bool:
        waiters.add(threading.get_ident())
        rests.append(seconds or 0.0)
        return wait(seconds)

    monkeypatch.setattr(bench.hasher._changed, "wait", watched)
    began = time.monotonic()
    for number in range(4):
        assert bench.hasher.submit("guesser", f"wrong {number}", bench.job(False)) is None
    bench.wait(4)
    assert time.monotonic() - began >= 3 * 10 * 0.02
    bench.told.clear()
    rests.clear()
    for number in range(4):
        bench.hasher.submit("scraper", f"right {number}", bench.job(True))
    bench.wait(4)
    bench.hasher.stop()
    # Only what the last wrong one leaves to everybody: as long as it took.
    assert sum(rests) < 9 * 0.02
    assert threading.get_ident() not in waiters  # who submits waits for nobody


def test_who_was_not_wrong_goes_first() -> None:
    """Before eight guesses that wait, and in the place of one of them when there is no room."""
    bench = Bench()
    bench.hasher.submit("guesser", "first", bench.job(False, 0.05))
    bench.wait(1)
    for number in range(8):
        assert bench.hasher.submit("guesser", f"wrong {number}", bench.job(False)) is None
    assert bench.hasher.submit("guesser", "one too many", bench.job(False)) == "one too many"
    gone = bench.hasher.submit("scraper", "right", bench.job(True))
    assert gone == "wrong 0"
    began = time.monotonic()
    while ("right", True) not in bench.told:
        assert time.monotonic() - began < 60
        time.sleep(0.002)
    assert len(bench.told) <= 3
    bench.hasher.stop()


@pytest.mark.slow
def test_who_has_gone_is_not_hashed_for() -> None:
    """The queue empties with its sockets, and the next is done at once."""
    bench = Bench()
    bench.hasher.submit("guesser", "first", bench.job(False, 0.1))
    bench.wait(1)
    for number in range(8):
        bench.hasher.submit("guesser", number, bench.job(False, 9))
    for number in range(8):
        bench.hasher.forget(number)
    bench.hasher.submit("guesser", "last", bench.job(False, 0.01))
    bench.wait(2, 30)  # the eight would take 72 s of CPU
    assert bench.told == [("first", False), ("last", False)]
    bench.hasher.stop()


@pytest.mark.needs("bcrypt")
def test_a_changed_file_counts_and_a_broken_one_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """New users at the next visit; a typo is one line and the old users; healed is healed."""
    file = tmp_path / "web.yml"
    file.write_text(f"basic_auth_users:\n  old: {HASH}\n")
    guard = Guard(str(file))
    assert guard.allows(basic("old", "secret")) and guard.missing == ("TLS",)
    file.write_text(f"basic_auth_users:\n  new: {HASH}\n")
    guard.refresh()
    assert guard.allows(basic("new", "secret")) and not guard.allows(basic("old", "secret"))
    for _ in range(3):
        file.write_text("basic_auth_users:\n  newer: secret\n")
        guard.refresh()
    assert guard.allows(basic("new", "secret")) and not guard.up_to_date
    assert capsys.readouterr().err.count("keeping the old web configuration") == 1
    os.unlink(file)
    guard.refresh()
    assert guard.allows(basic("new", "secret")) and not guard.up_to_date
    file.write_text(f"basic_auth_users:\n  newest: {HASH}\n")
    guard.refresh()
    assert guard.allows(basic("newest", "secret")) and guard.up_to_date


@given(st.text())
def test_any_header_is_credentials_or_nothing(header: str) -> None:
    """Never an exception."""
    found = _basic(header)
    assert found is None or len(found) == 2
