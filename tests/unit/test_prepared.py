"""What is kept of a compilation: whole and for this very kernel and configuration, or refused."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ebpfwatch.config import Config, loader_request
from ebpfwatch.kernel.hook import LoadedHook
from ebpfwatch.kernel.protocol import Features, LoadRequest
from ebpfwatch.loader import prepared as prepared_module
from ebpfwatch.loader.bpf import EXIT, instruction
from ebpfwatch.loader.image import HOLES, Code, Image, Map, defines, scan, without_fds
from ebpfwatch.loader.places import Places, Source
from ebpfwatch.loader.prepared import Prepared, Unusable, made_for, path_of, read, write

REQUEST = loader_request(Config())


def wide(value: int, source: int = 0) -> bytes:
    """ld_imm64 r1 = value."""
    low, high = value & 0xFFFFFFFF, value >> 32
    head = struct.pack("<BBhI", 0x18, source << 4 | 1, 0, low)
    return head + struct.pack("<BBhI", 0, 0, 0, high)


def program(fd: int, cache: int) -> bytes:
    """Two maps' look-ups and a hole, and a number that only looks like one."""
    return wide(fd, 1) + instruction(0xB7, imm=fd) + wide(cache) + wide(fd, 1) + wide(77) + EXIT


CODE = without_fds("f", program(5, HOLES["EXT4_INODE_CACHE"]), {5: "table"})
WHOLE = Prepared(
    hooks=(LoadedHook("evict", "raw_tracepoint", "ext4_evict_inode", ("ext4_evict_inode",)),),
    learning=(LoadedHook("evict", "raw_tracepoint", "ext4_evict_inode"),),
    features=Features(True, True, True, True, True),
    offsets={"OFF_I_INO": 64},
    places=Places({"iput": "iput"}, {"iput": 7}, ("iput",)),
    source=Source("the test", own=True),
    tick_ns=4_000_000,
    unit=Image((Map("table", 2, 4, 8, 1, 0),), (CODE,)),
    learner=Image(),
)


def test_a_program_is_filled_as_if_compiled_so() -> None:
    """The fds and values of this start stand where the compiler had put its own."""
    assert CODE.maps == {"table": (0, 5)} and CODE.holes == {"EXT4_INODE_CACHE": (3,)}
    filled = CODE.filled({"table": 9}, {"EXT4_INODE_CACHE": 0xFFFF888112345678})
    expected = bytearray(program(9, 0xFFFF888112345678))
    struct.pack_into("<i", expected, 16 + 4, 5)  # the plain number is nobody's fd
    assert filled == bytes(expected)


def test_two_compilations_with_other_fds_are_equal() -> None:
    """The fds are not in what is kept."""
    first = wide(5, 1) + wide(HOLES["DEAD_STATE"]) + EXIT
    second = wide(9, 1) + wide(HOLES["DEAD_STATE"]) + EXIT
    assert without_fds("f", first, {5: "t"}) == without_fds("f", second, {9: "t"})


def test_a_map_of_another_unit_is_refused() -> None:
    """Its fd would be anybody's at the next start."""
    with pytest.raises(ValueError, match="map"):
        without_fds("f", wide(5, 1) + EXIT, {})


def test_a_kernel_functions_call_is_told_from_a_helpers() -> None:
    """To the compiler both are numbers."""
    before = instruction(0x85, imm=1) + wide(0x85)
    code = before + instruction(0x85, imm=65477) + EXIT
    expected = before + instruction(0x85, src=2, imm=65477) + EXIT
    assert without_fds("f", code, {}).filled({}, {}) == expected


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="dataclasses itself asks inspect there")
def test_the_loader_starts_without_pythons_parser() -> None:
    """What nothing needs on the way to a start is not in memory, and there for who needs it."""
    code = (
        "import sys, ebpfwatch.loader.child\n"
        "assert not {'ast', 'dis', 'ipaddress'} & set(sys.modules), sys.modules.keys()\n"
        "import inspect, pathlib, urllib.parse\n"
        "assert inspect.isfunction(ebpfwatch.loader.child.main)\n"
        "assert pathlib.Path('/a b').as_uri() == 'file:///a%20b'\n"
        "assert urllib.parse.urlsplit('http://a/b').netloc == 'a'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_value_that_is_missing_is_an_error() -> None:
    """Not a program that compares with 0."""
    with pytest.raises(KeyError):
        CODE.filled({"table": 9}, {})


def test_holes_are_told_from_each_other() -> None:
    """Each has a constant of its own, of both halves, and its name in the flags."""
    assert len(set(HOLES.values())) == len(HOLES)
    assert [value for _, _, value in scan(b"".join(map(wide, HOLES.values())))] == list(
        HOLES.values()
    )
    assert all(name in flag for name, flag in zip(HOLES, defines(tuple(HOLES))))


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A file of this kernel."""
    path = path_of(tmp_path / "programs", "ebpfwatch.c")
    write(path, made_for(REQUEST), WHOLE)
    return path


def test_what_was_written_is_read(kept: Path) -> None:
    """All of it; root's alone."""
    assert read(kept, made_for(REQUEST)) == WHOLE
    assert kept.stat().st_mode & 0o777 == 0o600 and kept.parent.stat().st_mode & 0o777 == 0o700


def refusal(path: Path, request: LoadRequest = REQUEST) -> str:
    """Why it is not used."""
    with pytest.raises(Unusable) as said:
        read(path, made_for(request))
    assert "\n" not in str(said.value)
    return str(said.value)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _open_to_all(path: Path) -> None:
    path.chmod(0o644)


def _open_directory(path: Path) -> None:
    path.parent.chmod(0o777)


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _enlarge(path: Path) -> None:
    with open(path, "ab") as file:
        file.truncate(5 << 20)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (Path.unlink, "does not exist yet"),
        (_flip, "damaged"),
        (_shorten, "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (_open_to_all, "others have access"),
        (_open_directory, "can be written by others"),
        (_link, "cannot be read"),
        (_fifo, "cannot be read"),
        (_enlarge, "too large"),
    ],
)
def test_what_is_damaged_or_open_to_others_is_refused(
    kept: Path, damage: Callable[[Path], object], words: str
) -> None:
    """In one line, before anything of it is used."""
    damage(kept)
    assert words in refusal(kept)


@pytest.mark.needs("root")
def test_another_users_file_is_refused(kept: Path) -> None:
    """Whoever owns it can write it."""
    os.chown(kept, 65534, -1)
    assert "belongs to user 65534" in refusal(kept)


def test_what_was_made_for_something_else_is_refused(kept: Path) -> None:
    """Each thing that decides what is compiled is said by its name."""
    here = made_for(REQUEST)
    for field in dataclasses.fields(here):
        value: Any = 0 if field.name == "format" else "another"
        other = dataclasses.replace(here, **{field.name: value})
        with pytest.raises(Unusable) as said:
            read(kept, other)
        assert str(said.value) == prepared_module._DIFFERS[field.name]
    assert "another configuration" in refusal(kept, dataclasses.replace(REQUEST, table_slots=64))


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("sys/kernel/notes", "another build of the kernel"),
        ("proc/version", "another build of the kernel"),
        ("sys/module/ext4/notes/.note.gnu.build-id", "another build of ext4"),
        ("proc/cmdline", "another command line"),
    ],
)
def test_the_kernel_is_known_by_what_it_says_of_itself(
    tmp_path: Path, file: str, words: str
) -> None:
    """The same release with another build id is another kernel."""
    for name in ("sys/kernel/notes", "proc/version", "proc/cmdline", file):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"one")
    path = tmp_path / "programs" / "file"
    write(path, made_for(REQUEST, tmp_path), WHOLE)
    assert read(path, made_for(REQUEST, tmp_path)) == WHOLE
    (tmp_path / file).write_bytes(b"two")
    with pytest.raises(Unusable, match=words):
        read(path, made_for(REQUEST, tmp_path))


def test_a_file_that_is_whole_and_means_nothing_is_refused(kept: Path) -> None:
    """A checksum does not make sense of what is in it."""
    head, body = kept.read_bytes().split(b"\n")[1:3]
    for wrong in (b"[]", b"{}", b"\xff", body.replace(b'"hooks"', b'"books"'), b"[" * 100_000):
        rest = b"\n".join((head, wrong, b""))
        kept.write_bytes(prepared_module._sum(rest).encode() + b"\n" + rest)
        assert "is not understood" in refusal(kept)


def test_files_of_old_kernels_go(kept: Path) -> None:
    """The oldest first; what is not ours stays."""
    (kept.parent / "note").write_text("mine")
    for number in range(10):
        write(kept.with_name(f"ebpfwatch-{number}.programs"), made_for(REQUEST), WHOLE)
        os.utime(kept.with_name(f"ebpfwatch-{number}.programs"), (number, number))
    write(kept, made_for(REQUEST), WHOLE)
    names = sorted(file.name for file in kept.parent.iterdir())
    assert len(names) == 9 and "note" in names and kept.name in names
    assert "ebpfwatch-0.programs" not in names


def test_the_code_is_kept_as_it_is() -> None:
    """Base64 of whole instructions."""
    assert len(base64.b64decode(CODE.instructions)) == len(program(5, 0))
    assert isinstance(json.dumps(dataclasses.asdict(CODE)), str)
    assert Code("f", "", {}, {}).filled({}, {}) == b""
