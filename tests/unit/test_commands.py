"""The command line as one table: words, exit code, what is said and where."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ebpfwatch.catalogue.ladder import LADDER, UNITS
from ebpfwatch.commands import COMMANDS, main
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.kernel.attach import perf_is_restricted
from ebpfwatch.kernel.symbols import Symbols
from ebpfwatch.loader import source
from ebpfwatch.loader.running import capabilities_missing, find_symbols, version_code
from ebpfwatch.paths import PROBES
from ebpfwatch.system.lock import Lock, Running, running_daemon

ROOT = Path(__file__).parents[2]

TABLE = [
    ([], 64, "usage: ebpfwatch", ""),
    (["--version"], 0, "ebpfwatch 0.", ""),
    (["--help"], 0, "exit codes:", ""),
    (["nonsense"], 64, "", "there is no command nonsense; see"),
    (["statu"], 64, "", "there is no command statu; is it status?"),
    (["report", "--limit", "x"], 64, "", "--limit: must be a whole number, at least 1"),
    (["report", "--limit", "9" * 10], 64, "", "at least 1 and below 10^9"),
    (["report", "--limit", "-3"], 64, "", "--limit: must be a whole number, at least 1"),
    (["report", "--state-directory", "README.md"], 71, "", "Not a directory"),
    (["cache", "--seconds", "nan", "."], 64, "", "must be a number, more than 0"),
    (["cache", "--seconds", "-1", "."], 64, "", "must be a number, more than 0"),
    (["cache", "--seconds", "soon", "."], 64, "", "must be a number, more than 0"),
    (["cache", "--inodes", "0", "."], 64, "", "--inodes: must be a whole number"),
    (["cache", "--top", "9" * 5000, "."], 64, "", "--top: must be a whole number"),
    (["cache", ""], 64, "", 'cannot walk "": No such file'),
    (["cache", "README.md"], 64, "", 'cannot walk "README.md": Not a directory'),
    (
        ["report", "--state-directory", "/nonexistent", "--from", "files"],
        69,
        "",
        "there is no directory /nonexistent, so",
    ),
    (["report", "--state-directory", "docs", "--from", "files"], 0, "no findings in docs", ""),
    (["report", "--state-directory", "docs", "--from", "files", "X"], 1, "no finding X", ""),
    (["report", "--since", "soon"], 64, "", "'soon' is no time; write 2026-01-31"),
    (["check-config", "/nonexistent"], 78, "", "cannot read /nonexistent"),
    (["check-config", "config.example.yaml"], 0, "", "is fine"),
    (["check-config", "--nonsense"], 64, "", "usage: ebpfwatch check-config"),
    (["report", "--nonsense"], 64, "", "unrecognized arguments: --nonsense"),
    (["unlinks", "--count", "zz"], 64, "", "--count: must be a whole number, 1 to"),
    (["unlinks", "--in-flight", "-1"], 64, "", "--in-flight: must be a whole number, 1 to 65536"),
    (["unlinks", "--seconds", "inf"], 64, "", "must be a number, more than 0"),
    (["selftest", "--timeout", "-1"], 64, "", "must be a number, more than 0"),
    (["selftest", "--timeout", "nan"], 64, "", "must be a number, more than 0"),
    (["status", "--run-directory", "/nonexistent"], 3, "UNKNOWN: no ebpfwatch daemon", ""),
    (["run", "--config", "/nonexistent"], 78, "", "cannot read /nonexistent"),
    (["selftest", "--run-directory", "/nonexistent"], 69, "", "no ebpfwatch daemon is running"),
    (["build", "--config", "/nonexistent"], 78, "", "cannot read /nonexistent"),
    (["print-probes"], 0, "int kmem_cache_free(", ""),
    (["print-probes", "nonsense"], 64, "", "invalid choice"),
]


@pytest.mark.parametrize(
    ("module", "words", "package"),
    [
        ("prometheus_client", "run", "python3-prometheus-client"),
        ("yaml", "run", "python3-yaml"),
        ("yaml", "check-config", "python3-yaml"),
        ("yaml", "report", "python3-yaml"),
    ],
)
def test_a_module_that_is_not_installed(
    tmp_path: Path, module: str, words: str, package: str
) -> None:
    """One line that says what to install, exit 69, and nothing is left behind."""
    config = tmp_path / "config.yaml"
    config.write_text(f"state_directory: {tmp_path}/state\n")
    given = [
        words,
        *{"run": ["--config", str(config)], "check-config": [str(config)]}.get(words, []),
    ]
    hidden = "import sys; sys.modules[{!r}] = None; from ebpfwatch.commands import main"
    ran = subprocess.run(
        [sys.executable, "-c", f"{hidden.format(module)}; sys.exit(main({given!r}))"],
        env={**os.environ, "RUNTIME_DIRECTORY": str(tmp_path / "run")},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    lines = [line for line in ran.stderr.splitlines() if "others than root" not in line]
    assert (ran.returncode, len(lines)) == (69, 1), ran.stderr
    assert f"{module} is missing; install it: apt-get install {package}" in lines[0]
    assert list(tmp_path.iterdir()) == [config]


@pytest.mark.slow
@pytest.mark.parametrize(("words", "code", "out", "err"), TABLE)
def test_the_table(words: list[str], code: int, out: str, err: str) -> None:
    """Never a traceback, never more than usage and one line."""
    done = subprocess.run(
        [sys.executable, "-m", "ebpfwatch", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    assert out in done.stdout and err in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("words", ["triage README.md", "print-probes", "report --json", "--help"])
def test_an_answer_that_cannot_be_written_is_told(words: str, buffered: bool) -> None:
    """A full disk: one line and exit 73, unless there was nothing to write. No reader: 141, as of
    SIGPIPE, for 0 and 1 are answers. No stdout, no stderr: the code alone.
    """
    command = f'exec "{sys.executable}" -m ebpfwatch {words}'
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}

    def shell(redirected: str) -> tuple[int, str]:
        done = subprocess.run(
            ["sh", "-c", f"{command} {redirected}"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert "Traceback" not in done.stderr and "ignored" not in done.stderr
        return done.returncode, done.stderr

    code, told = shell("")
    silent = words == "report --json"
    assert shell(">/dev/full") == (
        (code, told)
        if silent
        else (73, "ebpfwatch: the output could not be written: No space left on device\n")
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=ROOT,
        env=environment,
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (
        code if silent else 141,
        told.encode() if silent else b"",
    )
    assert shell(">&-")[0] == shell("2>&-")[0] == shell("2>/dev/full")[0] == code


def test_a_defect_is_no_answer(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """Exit 70 with where it was, not Python's 1; the daemon dies of it, and is started again."""

    def broken(*_: object) -> None:
        raise KeyError("what nobody expected")

    monkeypatch.setattr("ebpfwatch.commands.triage.logs", broken)
    assert main(["triage", "-"]) == Exit.SOFTWARE
    said = capfd.readouterr().err
    assert "in broken" in said and "a defect of ebpfwatch: KeyError: 'what nobody expected'" in said
    monkeypatch.setattr("ebpfwatch.config.load", broken)
    with pytest.raises(KeyError):
        main(["run", "--config", "/nonexistent"])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--help of each."""
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_the_readme_has_every_exit_code_and_command() -> None:
    """The table a user reads is the one in errors.py."""
    readme = (ROOT / "README.md").read_text()
    for code in Exit:
        assert f"\n| {int(code)} | " in readme, code
    for name in COMMANDS:
        assert f"`ebpfwatch {name}" in readme, name


def test_bcc_is_imported_in_one_module() -> None:
    """Everything else speaks bytes, fds or dataclasses."""
    importers = [
        path.name
        for path in (ROOT / "ebpfwatch").rglob("*.py")
        if "import bcc" in path.read_text() or "from bcc" in path.read_text()
    ]
    assert importers == ["compiler.py"]


def test_every_probe_states_hook_and_invariant() -> None:
    """In its first comment; and every file is part of some unit."""
    units = "".join(
        source.unit(PROBES, name) for name in (*UNITS, "learn.c", "offsets.c", "balance.c")
    )
    for path in PROBES.glob("*.[ch]"):
        head = path.read_text().split("*/")[0]
        assert path.suffix == ".h" or "Hook" in head or path.stem in ("ebpfwatch", "selftest")
        assert "nvariant" in head or path.stem in ("ebpfwatch", "compat", "inode"), path.name
        assert f'"{path.name}"' in units, path.name


def test_every_rung_has_its_function_in_the_probes() -> None:
    """The ladder names only programs that exist."""
    text = source.unit(PROBES, "ebpfwatch.c")
    for rungs in LADDER.values():
        for rung in rungs:
            for attachment in rung.attachments:
                assert f"int {attachment.function}(" in text
            for define in rung.defines:
                assert define in text


KALLSYMS = (
    "ffff000008080000 T _text\n"
    "ffff000008081000 t evict.isra.0\n"
    "ffff000008081100 T kmem_cache_free\n"
    "ffff000000a00000 t crime_free\t[crime]\n"
    "ffff000000900000 t other\t[other]\n"
)
MODULES = (
    "crime 16384 0 - Live 0xffff000000a00000 (OE)\n"
    "other 4096 1 crime, Live 0xffff000000900000\n"
    "hidden 4096 0 - Live 0x0000000000000000\n"
)


def test_symbols(tmp_path: Path) -> None:
    """Modules below the kernel, unsorted; far beyond a symbol is nobody's."""
    (tmp_path / "modules").write_text(MODULES)
    file = tmp_path / "kallsyms"
    file.write_text(KALLSYMS)
    symbols = Symbols(file)
    symbols.load()
    assert symbols.name(0xFFFF000008081010) == "evict.isra.0+0x10"
    assert symbols.name(0xFFFF000000A00004) == "crime_free+0x4 [crime]"
    assert symbols.name(0xFFFF000008081100).startswith("kmem_cache_free+")
    assert symbols.name(0xFFFF000009000000) == ""
    assert symbols.name(1) == ""
    symbols.close()


def test_a_module_loaded_later_is_not_its_neighbour(tmp_path: Path) -> None:
    """Between two looks at kallsyms a module comes and goes: never the name of the one below it."""
    (tmp_path / "modules").write_text(MODULES)
    (tmp_path / "kallsyms").write_text(KALLSYMS)
    symbols = Symbols(tmp_path / "kallsyms")
    symbols.load()
    assert symbols.name(0xFFFF000000900010) == "other+0x10 [other]"
    late = "late 4096 1 - Loading 0xffff000000908000 (OE+)\n"
    assert symbols.name(0xFFFF000000908010) == "", "far behind the end of [other]"
    assert not symbols.refresh()
    (tmp_path / "modules").write_text(MODULES + late)
    (tmp_path / "kallsyms").write_text(KALLSYMS + "ffff000000908000 t free_it\t[late]\n")
    assert symbols.refresh()
    assert symbols.name(0xFFFF000000908010) == "free_it+0x10 [late]"
    assert [m.taints for m in symbols.modules] == ["OE", "", "", "OE"]
    (tmp_path / "modules").write_text(MODULES)
    (tmp_path / "kallsyms").write_text(KALLSYMS)
    assert symbols.refresh()
    assert symbols.name(0xFFFF000000908010) == "late+0x10 [late, unloaded]"
    symbols.close()


@pytest.mark.parametrize("text", ["", "garbage\n"])
def test_hidden_symbols_are_no_names(tmp_path: Path, text: str) -> None:
    """kptr_restrict shows zeros, lockdown nothing."""
    file = tmp_path / "kallsyms"
    file.write_text(text or "0000000000000000 T _text\n0000000000000000 T evict\n")
    symbols = Symbols(file)
    symbols.load()
    assert symbols.hidden and symbols.name(0x1000) == ""
    symbols.close()


def test_suffixed_functions_are_found(tmp_path: Path) -> None:
    """evict goes by evict.isra.0 here."""
    file = tmp_path / "kallsyms"
    file.write_text(KALLSYMS)
    found = find_symbols({"evict", "kmem_cache_free", "nowhere"}, file)
    assert found == {"evict": "evict.isra.0", "kmem_cache_free": "kmem_cache_free"}


def test_what_the_running_kernel_tells() -> None:
    """The vDSO's version agrees with uname on a kernel that does not lie."""
    major = int(platform.release().split(".")[0])
    assert version_code() >> 16 == major


def test_capabilities() -> None:
    """Full, BPF+PERFMON, and none."""
    assert capabilities_missing("CapEff:\t0000003fffffffff\n") == ""
    assert capabilities_missing(f"CapEff:\t{1 << 39 | 1 << 38:016x}\n") == ""
    assert "CAP_BPF" in capabilities_missing("CapEff:\t0000000000000000\n")


@pytest.mark.parametrize(("level", "restricted"), [("-1", False), ("2", False), ("3", True)])
def test_the_level_that_debian_adds_to_perf_is_known(
    tmp_path: Path, level: str, restricted: bool
) -> None:
    """It keeps kprobes from whoever has but CAP_PERFMON, on Debian's 5.10 and 6.1."""
    (tmp_path / "perf_event_paranoid").write_text(level + "\n")
    assert perf_is_restricted(tmp_path / "perf_event_paranoid") == restricted
    assert not perf_is_restricted(tmp_path / "none")


def test_the_lock_is_held_once(tmp_path: Path) -> None:
    """The second is told the pid; what the first published can be read."""
    lock = Lock(tmp_path)
    lock.publish(Running(os.getpid(), url="http://[::1]:9998"))
    with pytest.raises(EbpfwatchError, match=f"pid {os.getpid()}"):
        Lock(tmp_path)
    assert running_daemon(tmp_path) == Running(os.getpid(), url="http://[::1]:9998")
    lock.release()
    with pytest.raises(EbpfwatchError, match="no ebpfwatch daemon"):
        running_daemon(tmp_path)
