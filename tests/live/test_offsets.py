"""Offsets that are another kernel's are refused at the start; ours are proven by a file of ours."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from ebpfwatch.catalogue.ladder import LADDER, Rung
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.kernel.protocol import Learned
from ebpfwatch.loader import learn as learn_module
from ebpfwatch.loader import offsets
from ebpfwatch.loader.btf import Btf, module_fd
from ebpfwatch.loader.choice import Chooser
from ebpfwatch.loader.compiler import Compiler
from ebpfwatch.loader.image import Module
from ebpfwatch.loader.learn import find, learn
from ebpfwatch.loader.places import Places, Source
from ebpfwatch.loader.prober import Prober
from ebpfwatch.loader.running import version_code


@contextlib.contextmanager
def taught(offsets_: Mapping[str, int]) -> Iterator[tuple[Module, Places, list[Rung]]]:
    """What ``learn`` and ``find`` take; without offsets they are to be found."""
    btf = Btf()
    prober = Prober(version_code(), {}, btf)
    chooser = Chooser(prober, btf, "")
    rungs = [LADDER[role][0] for role in ("evict", "any_free")]
    flags = [f"-D{name}={value}" for name, value in offsets_.items()]
    flags += [flag for rung in rungs for flag in chooser.defines(rung)]
    flags.append(f"-DLEARNER_TGID={os.getpid()}")
    flags += [] if offsets_ else ["-DFINDING"]
    compiler = Compiler(prober.version, prober.features())
    module = Module(compiler.compile("learn.c", flags), prober.version, {})
    try:
        yield module, prober.places, rungs
    finally:
        module.close()


def learned(mount: Path, changes: Mapping[str, int] = {}, own: bool = False) -> tuple[Learned, str]:
    """Learn with the kernel's own offsets, but for these."""
    where = offsets.from_btf(Btf())
    where.update({name: where[name] + by for name, by in changes.items()})
    with taught(where) as arguments:
        return learn(*arguments, [str(mount)], Source("the test", own), where)


def found(mount: Path) -> tuple[dict[str, int], str]:
    """What a file there tells, and why not all."""
    with taught({}) as arguments:
        return find(*arguments, [str(mount)])


def test_the_kernels_own_are_proven(ext4: Path) -> None:
    """Everything that a file of ours can say agrees with stat()."""
    told, unproven = learned(ext4)
    assert told.cache and unproven == ""


def test_they_are_found_where_nobody_tells_them(ext4: Path) -> None:
    """In files of ours: all of them, each in one place."""
    right = offsets.from_btf(Btf())
    del right["OFF_CACHE_OBJECT_SIZE"]  # /sys/kernel/slab tells it
    assert found(ext4) == (right, "")


def test_without_a_directory_of_roots_own_they_are_not_all_proven(ext4: Path) -> None:
    """A file without a name has no dentry that a hook shows; the daemon says so."""
    directory = ext4 / "lost+found"
    directory.chmod(0o755)
    try:
        told, unproven = learned(ext4)
        assert told.cache and "lost+found" in unproven
        assert "lost+found" in found(ext4)[1]
    finally:
        directory.chmod(0o700)


def test_what_the_kernel_says_itself_is_not_refused(ext4: Path) -> None:
    """Then we do not know this kernel well enough: a reason in every verdict, and no end."""
    told, unproven = learned(ext4, {"OFF_D_SB": 8}, own=True)
    assert told.cache and unproven == "struct dentry, d_sb of a file of ours reads wrong"


def test_late_callbacks_are_waited_for(ext4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More files than are remembered have lived and died before the first answer is looked at."""
    answer, looks = learn_module._Lesson._answer, iter(range(20))
    monkeypatch.setattr(learn_module, "_LOOKS", 1)
    monkeypatch.setattr(
        learn_module._Lesson,
        "_answer",
        lambda lesson: None if next(looks, None) is not None else answer(lesson),
    )
    assert learned(ext4)[0].cache


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("OFF_I_INO", 8),
        ("OFF_I_SB", 8),
        ("OFF_S_DEV", 4),
        ("OFF_I_GENERATION", 4),
        ("OFF_I_NLINK", -8),
        ("OFF_I_COUNT", -4),
        ("OFF_I_STATE", 8),
        ("OFF_I_SB_LIST", -16),
        # What only a file with a name tells:
        ("OFF_I_DENTRY", 8),
        ("OFF_I_RCU", 8),
        ("OFF_I_WRITECOUNT", 4),
        ("OFF_I_MMAP", 16),
        ("OFF_D_INODE", 8),
        ("OFF_D_PARENT", 8),
        ("OFF_D_NAME", 8),
        ("OFF_D_COUNT", 4),
        ("OFF_D_SB", 8),
        ("OFF_D_U", 16),
        ("OFF_S_TYPE", 8),
        ("OFF_FS_NAME", 8),
        ("OFF_F_DENTRY", 8),
        ("OFF_I_READCOUNT", 4),
        ("OFF_I_RWSEM_OWNER", 8),
        ("OFF_D_CHILDREN", 8),
        ("OFF_D_SIB", 8),
        ("OFF_D_SUBDIRS", 8),
        ("OFF_D_CHILD", 8),
    ],
)
def test_one_that_is_not_this_kernels_is_refused(ext4: Path, name: str, by: int) -> None:
    """In one line, as a matter of configuration: the unit does not start again and again."""
    if name not in offsets.from_btf(Btf()):
        pytest.skip(f"this kernel has no {name}")
    with pytest.raises(EbpfwatchError) as refused:
        learned(ext4, {name: by})
    assert refused.value.exit_code is Exit.CONFIG, refused.value
    assert "is not of this kernel" in refused.value.message


def test_headers_of_another_release_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie where this kernel's belong, and say whose they are."""
    generated = tmp_path / "include/generated"
    generated.mkdir(parents=True)
    (generated / "utsrelease.h").write_text('#define UTS_RELEASE "4.19.78-other"\n')
    monkeypatch.setattr(offsets, "headers", lambda: tmp_path)
    compiler = Compiler(version_code(), {})
    with pytest.raises(EbpfwatchError) as refused:
        offsets.from_headers(compiler, "no BTF")
    assert refused.value.exit_code is Exit.CONFIG
    assert "4.19.78-other" in str(refused.value) and platform.release() in str(refused.value)


def test_types_of_another_kernel_are_a_matter_of_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tracepoint with fewer arguments than the file says refuses the program with EINVAL."""

    def refuse(*arguments: object) -> int:
        raise EbpfwatchError("attaching kmem_cache_free: Invalid argument", "", Exit.OSERR)

    monkeypatch.setattr(learn_module, "attach_or_fail", refuse)
    place = LADDER["any_free"][0].attachments[0]
    for own, code in ((True, Exit.OSERR), (False, Exit.CONFIG)):
        with pytest.raises(EbpfwatchError) as refused:
            learn_module._attach("raw_tracepoint", 3, place, place.target, Source("types", own))
        assert refused.value.exit_code is code


def test_the_types_of_a_module_are_found_by_its_name() -> None:
    """As fentry needs them where ext4 is a module; vmlinux's own are in the same list."""
    os.close(module_fd("vmlinux"))
    if not Path("/sys/kernel/btf/ext4").exists():
        with pytest.raises(FileNotFoundError):
            module_fd("ext4")
