"""The strict reader: the example is the defaults, and each mistake gets its own line."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpfwatch import config
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.text import strictyaml

EXAMPLE = Path(__file__).parents[2] / "config.example.yaml"


def test_the_example_is_the_defaults() -> None:
    """Every default; a difference would be a lie in the example."""
    assert config.load(EXAMPLE) == config.Config()


def test_the_example_explains_every_key() -> None:
    """Every key of every class is there, with words behind it."""
    text = EXAMPLE.read_text()

    def keys(cls: object) -> list[str]:
        found = []
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            if dataclasses.is_dataclass(field.default):
                found += keys(field.default)
            else:
                found.append(field.name)
        return found

    for key in keys(config.Config()):
        assert re.search(rf"^\s*{key}: +\S+ +# \w+", text, re.MULTILINE), key


def test_a_former_name_is_read_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """hooks.strict is hooks.any_free: an upgrade must not turn the hook on again in silence."""
    file = tmp_path / "config.yaml"
    file.write_text("hooks:\n  strict: false\n")
    assert config.load(file).hooks == config.HooksConfig(any_free="never")
    said = f"{file}:2: hooks.strict is called hooks.any_free now; it is read"
    assert said in capsys.readouterr().err
    file.write_text('"": 1\n')
    with pytest.raises(EbpfwatchError, match="unknown key"):
        config.load(file)


@pytest.mark.parametrize(
    ("said", "meant", "told"),
    [("off", "off", ""), ('"off"', "off", ""), ("no", "off", "off"), ("true", "auto", "auto")],
)
def test_a_bare_off_is_the_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], said: str, meant: str, told: str
) -> None:
    """To YAML a bare off is false; the messages say `journal: off`, so that is read."""
    file = tmp_path / "config.yaml"
    file.write_text(f"journal: {said}\n")
    assert config.load(file).journal == meant
    line = f"ebpfwatch: {file}:1: journal: {said} is read as {told}\n" if told else ""
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("stat_directory: /x", "f:1: unknown key stat_directory; did you mean state_directory?"),
        ("hooks:\n  aloc: true", "f:2: unknown key hooks.aloc; did you mean hooks.alloc?"),
        ("zzz: 1", "f:1: unknown key zzz; known: state_directory"),
        ("hooks: 3", "f:1: hooks must be a mapping"),
        ("- a", "f:1: the file must be a mapping"),
        ("hooks:\n  any_free: 1", "f:2: hooks.any_free must be text"),
        ("hooks:\n  alloc: off", "f:2: hooks.alloc must be one of auto, always, never"),
        ("state_directory: off", "f:1: state_directory must be text"),
        ("hooks:\n  any_free: always\n  strict: no", "f:3: hooks.any_free is given twice"),
        ("kernel:\n  table_slots: 1000", "f:2: kernel.table_slots must be a power of two"),
        ("kernel:\n  table_slots: true", "f:2: kernel.table_slots must be a whole number"),
        ("kernel:\n  ring_bytes: 1", "f:2: kernel.ring_bytes must be a power of two"),
        ("canary:\n  timeout_seconds: 0", "f:2: canary.timeout_seconds must be between"),
        ("canary:\n  timeout_seconds: .nan", "f:2: canary.timeout_seconds must be between"),
        ("findings:\n  keep: 0", "f:2: findings.keep must be between 1"),
        ("state_directory: relative", "f:1: state_directory must be an absolute path"),
        ("journal: maybe", "f:1: journal must be one of auto, off"),
        ("metrics:\n  listen: 9866", "f:2: metrics.listen must be text"),
        ("metrics:\n  listen: ':9866'", "f:2: metrics.listen needs an address"),
        ("metrics:\n  listen: '::1:9866'", "f:2: metrics.listen an IPv6 address needs brackets"),
        ("metrics:\n  listen: 'a:99999'", "f:2: metrics.listen must be ADDRESS:PORT"),
        ("a: [", "f:1: is not YAML"),
        ("a: &x 1\nb: *x", "f:2: aliases"),
        ('state_directory: "/a\\0b"', "f:1: state_directory must not contain a NUL byte"),
        ("journal: !!python/object:os.system x", "f:1: journal must be text"),
    ],
)
def test_each_mistake_has_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, complaint: str
) -> None:
    """File, line, key, what is wrong; exit 78."""
    monkeypatch.chdir(tmp_path)
    Path("f").write_text(text)
    with pytest.raises(EbpfwatchError) as raised:
        config.load("f")
    assert str(raised.value).startswith(complaint)
    assert raised.value.exit_code is Exit.CONFIG
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [(b"\xff\xfe", "is not UTF-8"), (b"#" * (2 << 20), "larger than 1 MiB"), (b"\0", "not YAML")],
)
def test_files_that_are_no_configuration(tmp_path: Path, data: bytes, complaint: str) -> None:
    """Bounded, and no traceback."""
    path = tmp_path / "f"
    path.write_bytes(data)
    with pytest.raises(EbpfwatchError, match=complaint):
        config.load(path)


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    """The system's own reason; a FIFO is not waited for."""
    with pytest.raises(EbpfwatchError, match="No such file"):
        config.load(tmp_path / "none")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", "/dev/zero"):
        with pytest.raises(EbpfwatchError, match="is not a regular file|is a directory"):
            config.load(path)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    """A file of comments only, too."""
    path = tmp_path / "f"
    path.write_text("# nothing\n")
    assert config.load(path) == config.Config()


def test_what_needs_a_restart() -> None:
    """Sizes and hooks do, folding does not."""
    old = config.Config()
    new = dataclasses.replace(
        old,
        kernel=dataclasses.replace(old.kernel, table_slots=64),
        findings=dataclasses.replace(old.findings, keep=1),
    )
    assert config.restart_needed(old, new) == ("kernel.table_slots",)
    assert config.changed(old, new) == ("kernel.table_slots", "findings.keep")


def test_every_key_takes_effect_at_a_reload_or_is_said_to_wait() -> None:
    """A key that a reload passes over in silence would be a promise that nobody keeps."""
    applied = {"canary", "findings", "reclaim", "governor"}  # Daemon._read_config_again
    old = config.Config()
    for field in dataclasses.fields(old):
        if field.name not in applied and not dataclasses.is_dataclass(getattr(old, field.name)):
            new = dataclasses.replace(old, **{field.name: "another"})  # type: ignore[arg-type]
            assert config.restart_needed(old, new) == (field.name,)


def test_addresses() -> None:
    """IPv4, IPv6 in brackets, nothing."""
    assert config.split_address("127.0.0.1:80") == ("127.0.0.1", 80)
    assert config.split_address("[::1]:80") == ("::1", 80)
    assert config.split_address("") is None


@given(st.text())
def test_any_text_is_a_config_or_one_line(tmp_path_factory: object, text: str) -> None:
    """Random text never raises anything else."""
    try:
        assert isinstance(
            strictyaml.parse("f", text.encode("utf-8", "replace"), config.Config), config.Config
        )
    except EbpfwatchError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("opening", ["[", "{", "[{"])
def test_depth_is_refused_before_it_costs_anything(tmp_path: Path, opening: str) -> None:
    """A megabyte of brackets would keep the scanner for minutes: nine are too many already."""
    file = tmp_path / "deep.yaml"
    file.write_text("hooks: " + opening * 9)
    with pytest.raises(EbpfwatchError, match="nested too deeply"):
        config.load(file)


def test_mistakes_in_the_readers_own_words(tmp_path: Path) -> None:
    """A tab, a section whose keys are commented out, a default as it would stand in the file."""
    file = tmp_path / "config.yaml"
    file.write_text("hooks:\n\talloc: never\n")
    with pytest.raises(EbpfwatchError, match="; indent with spaces"):
        config.load(file)
    file.write_text("hooks:\n  # alloc: never\nkernel:\n")
    assert config.load(file) == config.Config()
    file.write_text("evidence:\n  trace: 3\n")
    with pytest.raises(EbpfwatchError, match="; the default is true$"):
        config.load(file)
