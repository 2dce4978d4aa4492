"""A start without a compiler: the same programs, told apart from another kernel's, and repaired."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ebpfwatch.config import Config, loader_request
from ebpfwatch.kernel import libbpf
from ebpfwatch.kernel.protocol import LoadRequest
from ebpfwatch.loader import child, offsets
from ebpfwatch.loader.bpf import Function
from ebpfwatch.loader.btf import Btf
from ebpfwatch.loader.image import Module
from ebpfwatch.loader.learn import NO_PLACE
from ebpfwatch.loader.prepare import Preparation
from ebpfwatch.loader.prepared import made_for, path_of, read, write
from tests.live.harness import ROOT, command, load_session, selftest, start_daemon, write_config

pytestmark = pytest.mark.slow


def asked(ext4: Path, keep: Path) -> LoadRequest:
    """What the daemon asks for."""
    return dataclasses.replace(loader_request(Config(), str(keep)), mounts=(str(ext4),))


@pytest.fixture(scope="module")
def keep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written by `ebpfwatch build`."""
    directory = tmp_path_factory.mktemp("built")
    config = write_config(directory)
    done = command("build", "--config", config)
    assert done.returncode == 0, done.stderr
    file = path_of(directory / "state/programs", "ebpfwatch.c")
    assert str(file) in done.stdout and file.exists()
    return file.parent


def test_compiled_and_kept_are_equal_byte_by_byte(ext4: Path, keep: Path) -> None:
    """Everything, so the programs, too, once the same values are put in."""
    request = asked(ext4, keep)
    kept = read(path_of(keep, request.unit), made_for(request))
    compiled = Preparation(request).prepare()
    assert compiled.unit == kept.unit and compiled.learner == kept.learner
    assert compiled == kept


def test_one_compiled_and_one_kept_load_the_same(ext4: Path, keep: Path) -> None:
    """The kernel's own digest of each program that holds nothing of the moment is the same."""
    request = dataclasses.asdict(asked(ext4, keep))
    tags = []
    for directory in ("", str(keep)):
        session = load_session(ext4, **{**request, "keep": directory})
        assert bool(session.loaded.origin.file) is bool(directory)
        names = ("ext4_unlink_exit", "mm_shrink_slab_start", "find_selftest_page")
        infos = {name: libbpf.prog_info(session.programs[name]) for name in names}
        tags.append({name: bytes(info.tag) for name, info in infos.items()})
        session.close()
    assert tags[0] == tags[1]


def test_a_start_from_what_is_kept_finds_the_double_free(tmp_path: Path) -> None:
    """The first start of a kernel compiles and says so, the second one takes that."""
    first = start_daemon(tmp_path)
    assert "programs: compiled now" in first.log.read_text()
    assert first.stop() == 0
    second = start_daemon(tmp_path)
    assert "programs: as they were compiled before" in second.log.read_text()
    done = selftest(second)
    assert done.returncode == 0, done.stdout
    assert second.stop() == 0


def _damage(file: Path, request: LoadRequest) -> None:
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(data)


def _of_another_build(file: Path, request: LoadRequest) -> None:
    here = made_for(request)
    write(file, dataclasses.replace(here, kernel="another"), read(file, here))


def _whose_programs_do_not_load(file: Path, request: LoadRequest) -> None:
    here = made_for(request)
    whole = read(file, here)
    first = whole.unit.programs[0]
    # It ends without having returned a value: the verifier refuses that.
    bad = dataclasses.replace(first, instructions="lQAAAAAAAAA=", maps={}, holes={})
    image = dataclasses.replace(whole.unit, programs=(bad, *whole.unit.programs[1:]))
    write(file, here, dataclasses.replace(whole, unit=image))


def _told_wrong(monkeypatch: pytest.MonkeyPatch, define: str, by: int) -> None:
    """From now on the kernel's types say that this member lies elsewhere."""
    right = offsets.from_btf

    def wrong(btf: Btf) -> dict[str, int]:
        told = right(btf)
        return {**told, define: told[define] + by}

    monkeypatch.setattr(offsets, "from_btf", wrong)


def _with_a_wrong_offset(file: Path, request: LoadRequest, define: str, by: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        _told_wrong(monkeypatch, define, by)
        write(file, made_for(request), Preparation(request).prepare())


def _of_a_nameless_file(file: Path, request: LoadRequest) -> None:
    _with_a_wrong_offset(file, request, "OFF_I_NLINK", -8)


def _of_a_dentry(file: Path, request: LoadRequest) -> None:
    _with_a_wrong_offset(file, request, "OFF_D_SB", 8)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_damage, "is damaged"),
        (_of_another_build, "another build of the kernel"),
        (_whose_programs_do_not_load, "does not load here"),
        (_of_a_nameless_file, "what was compiled before is not of this kernel: i_nlink"),
        (_of_a_dentry, "struct dentry, d_sb of a file of ours reads wrong"),
    ],
)
def test_a_file_that_is_not_right_is_compiled_anew(
    ext4: Path, keep: Path, tmp_path: Path, spoil: object, says: str
) -> None:
    """With the reason in one line; and what is kept then is right again."""
    request = asked(ext4, tmp_path)
    file = path_of(tmp_path, request.unit)
    tmp_path.chmod(0o700)
    file.write_bytes(path_of(keep, request.unit).read_bytes())
    file.chmod(0o600)
    spoil(file, request)  # type: ignore[operator]
    session = load_session(ext4, **dataclasses.asdict(request))
    origin = session.loaded.origin
    session.close()
    assert says in origin.compiled and "\n" not in origin.compiled
    assert origin.file == str(file)
    assert read(file, made_for(request)) == read(path_of(keep, request.unit), made_for(request))


def test_what_did_not_agree_when_it_was_compiled_is_no_reason_to_compile_again(
    ext4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's own word is believed, and each start says what it could not prove."""
    _told_wrong(monkeypatch, "OFF_D_SB", 8)
    tmp_path.chmod(0o700)
    said = []
    for _ in range(2):
        loaded, fds = child._load(asked(ext4, tmp_path), lambda: None)
        for fd in fds:
            os.close(fd)
        said.append((loaded.unproven, bool(loaded.origin.compiled)))
    why = "struct dentry, d_sb of a file of ours reads wrong"
    assert said == [(why, True), (why, False)]


def test_a_kept_one_starts_where_no_file_can_have_a_name(ext4: Path, keep: Path) -> None:
    """The compiler could not prove more; it is said."""
    directory = ext4 / "lost+found"
    directory.chmod(0o755)
    try:
        session = load_session(ext4, **dataclasses.asdict(asked(ext4, keep)))
        loaded = session.loaded
        session.close()
    finally:
        directory.chmod(0o700)
    assert (loaded.origin.compiled, loaded.unproven) == ("", NO_PLACE)


def test_what_the_verifier_refuses_is_compiled_with_its_values(
    ext4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux 4.19's has a limit that is near: then nothing is kept, and it says why."""
    tmp_path.chmod(0o700)
    load = Module.load

    def refuse(module: Module, kind: str, function: str, place: Function | None = None) -> int:
        if function == "kmem_cache_free" and module._codes[function].holes.keys() & {"DEAD_STATE"}:
            raise OSError(7, "Argument list too long")
        return load(module, kind, function, place)

    monkeypatch.setattr(Module, "load", refuse)
    loaded, fds = child._load(asked(ext4, tmp_path), lambda: None)
    assert "Argument list too long" in loaded.origin.not_kept and not loaded.origin.file
    assert "does not exist yet" in loaded.origin.compiled
    assert not list(tmp_path.iterdir()) and "kmem_cache_free" in loaded.programs
    for fd in fds:
        os.close(fd)


def test_no_compiler_comes_into_memory(ext4: Path, keep: Path) -> None:
    """Neither bcc nor LLVM is mapped by a process that loads what is kept."""
    script = (
        "import sys; from ebpfwatch.kernel.protocol import LoadRequest\n"
        "from ebpfwatch.loader import child\n"
        f"loaded, fds = child._load({asked(ext4, keep)!r}, lambda: None)\n"
        "mapped = open('/proc/self/maps').read()\n"
        "print(loaded.origin.compiled, 'bcc' in sys.modules, 'LLVM' in mapped, len(fds) > 15)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False", "True"], done.stderr
