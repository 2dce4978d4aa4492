"""`ebpfwatch cache` against real files: their bytes, to the page, while cached and after."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from ebpfwatch.commands import main
from ebpfwatch.host.mounts import parse
from ebpfwatch.pagecache.candidates import NamedFiles, walkable
from ebpfwatch.pagecache.residency import Residency
from ebpfwatch.pagecache.survey import Limits, Result, Survey
from ebpfwatch.paths import Paths

ROOT = Path(__file__).parents[2]
PAGE = os.sysconf("SC_PAGE_SIZE")
SIZE = 2560 * PAGE + 7  # no whole number of pages


def cached(path: Path, size: int = SIZE) -> int:
    """Write a file, have it on disk and in memory; the bytes of its pages."""
    path.write_bytes(os.urandom(size))
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        while file.read(1 << 20):
            pass
    return -(-size // PAGE) * PAGE


def drop(path: Path) -> None:
    """Take it out of memory."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


DEFAULT = Limits()


def look(root: Path, limits: Limits = DEFAULT, cachestat: bool = True) -> Result:
    """Walk a directory."""
    return Survey(Paths(), limits, Residency(cachestat)).run([str(root)])


def evictable(path: Path) -> None:
    """Skip where the filesystem keeps all files in memory."""
    cached(path)
    drop(path)
    if look(path.parent).bytes:
        pytest.skip(f"{path.parent} lies on a filesystem that lives in memory")


@pytest.fixture(params=[True, False], ids=["cachestat", "mincore"])
def cachestat(request: pytest.FixtureRequest) -> bool:
    """Both ways to ask."""
    wanted = bool(request.param)
    if wanted and Residency().method != "cachestat":
        pytest.skip("this kernel has no cachestat(2) (Linux 6.5)")
    return wanted


def test_a_file_is_listed_with_exactly_its_pages(tmp_path: Path, cachestat: bool) -> None:
    """While it is in memory; after posix_fadvise it is gone."""
    file = tmp_path / "file"
    evictable(file)
    size = cached(file)
    assert look(tmp_path, cachestat=cachestat).files == [(size, str(file))]
    drop(file)
    result = look(tmp_path, cachestat=cachestat)
    assert (result.files, result.asked, result.bytes) == ([], 1, 0)


def test_part_of_a_file_is_part(tmp_path: Path, cachestat: bool) -> None:
    """One page touched through a mapping without read-ahead."""
    file = tmp_path / "file"
    evictable(file)
    with open(file, "rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(opened.fileno(), 1, 100 * PAGE)
    assert look(tmp_path, cachestat=cachestat).bytes == PAGE


@pytest.mark.needs("root")  # others may not ask about files of root
def test_both_ways_agree(tmp_path: Path) -> None:
    """cachestat and mincore, on the interpreter's own libraries."""
    if Residency().method != "cachestat":
        pytest.skip("this kernel has no cachestat(2) (Linux 6.5)")
    for path in {os.path.realpath(sys.executable), json.__file__}:
        with open(path, "rb") as file:
            size = len(file.read())  # json's source is in memory only where nobody dropped it
            one, other = (Residency(c).measure(file.fileno(), size) for c in (True, False))
        assert one == other and one


def test_the_largest_come_first_and_one_file_once(tmp_path: Path) -> None:
    """Hard links are one file; --top keeps the largest."""
    sizes = {name: cached(tmp_path / name, pages * PAGE) for name, pages in zip("abc", (3, 9, 6))}
    os.link(tmp_path / "b", tmp_path / "b2")
    result = look(tmp_path, Limits(top=2))
    assert [size for size, _ in result.files] == [sizes["b"], sizes["c"]]
    assert (result.holding, result.bytes) == (3, sum(sizes.values()))
    ((count, total),) = result.mounts.values()
    assert (count, total) == (3, sum(sizes.values()))


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    """A FIFO does not hang it, a symlink is not followed, an empty file is nothing."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "empty").touch()
    assert look(tmp_path).asked == 0


@pytest.mark.slow
def test_it_ends_in_time_and_says_so(tmp_path: Path) -> None:
    """No second left: nothing is asked, and that is said."""
    cached(tmp_path / "file")
    result = look(tmp_path, Limits(seconds=0))
    assert result.asked == 0
    assert result.unasked == [f"the rest of {tmp_path}: 0 s are over (--seconds)"]
    began = time.monotonic()
    look(Path("/"), Limits(seconds=1))
    assert time.monotonic() - began < 5


def test_it_does_not_fill_memory_with_inodes(tmp_path: Path) -> None:
    """The walk ends when it has put that many inodes into the cache itself."""
    paths = Paths(proc=tmp_path / "proc")
    fs = tmp_path / "proc/sys/fs"
    fs.mkdir(parents=True)
    (tmp_path / "proc/self").symlink_to("/proc/self")
    (fs / "file-nr").write_text("1 0 9\n")
    (fs / "dentry-state").write_text("1 1 45 0 0 0\n")
    (fs / "inode-nr").write_text("1000 10\n")
    many = tmp_path / "many"
    many.mkdir()
    for number in range(600):
        (many / str(number)).write_text("x")
    survey = Survey(paths, Limits(inodes=100), Residency())
    original = survey._ask

    def ask(*words: object, **named: object) -> None:
        (fs / "inode-nr").write_text("2000 10\n")
        original(*words, **named)  # type: ignore[arg-type]

    survey._ask = ask  # type: ignore[method-assign]
    result = survey.run([str(many)])
    assert result.asked == 256, "it looks at the machine every 256 files"
    assert "has put 100 inodes into memory" in result.unasked[0]


def test_files_of_processes_are_found(tmp_path: Path) -> None:
    """Open, mapped, and deleted while open: by our own process."""
    names = {name: tmp_path / name for name in ("open", "mapped", "deleted")}
    for path in names.values():
        cached(path)
    with open(names["open"], "rb"), open(names["deleted"], "rb"), open(names["mapped"], "rb") as m:
        mapping = mmap.mmap(m.fileno(), 0, prot=mmap.PROT_READ)
        m.close()
        names["deleted"].unlink()
        found = dict(NamedFiles(Paths()))
        shown = set(found.values())
        assert {str(names["open"]), str(names["mapped"])} <= shown
        assert f"{names['deleted']} (deleted)" in shown
        link = next(link for link, name in found.items() if name.startswith(str(names["deleted"])))
        assert os.stat(link).st_size == SIZE
        mapping.close()


def test_filesystems_that_may_hang_are_not_touched() -> None:
    """A dead server must not hang the tool."""
    text = (
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "2 1 0:50 / /net rw - nfs4 server:/ rw\n"
        "3 1 0:51 / /home/x/mnt rw - fuse.sshfs x: rw\n"
        "4 1 0:5 / /proc rw - proc proc rw\n"
        "5 1 8:1 /var /srv rw - ext4 /dev/sda1 rw\n"
    )
    walked, left = walkable(parse(text))
    assert [mount.path for mount in walked] == ["/"]
    assert [mount.path for mount in left] == ["/net", "/home/x/mnt"]


@pytest.mark.needs("root")  # to become somebody else
def test_another_users_files_are_counted_not_guessed(tmp_path: Path) -> None:
    """An ordinary user may not ask about files that are not theirs: mincore would call all of
    them resident.
    """
    cached(tmp_path / "roots")
    fd = os.open(tmp_path / "roots", os.O_RDONLY)
    script = (
        "import os, sys\n"
        "from ebpfwatch.pagecache.residency import Residency\n"
        "ways = [Residency(True), Residency(False)]\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "for way in ways:\n"
        f"    try: print(way.measure({fd}, {SIZE}))\n"
        "    except PermissionError: print('refused')\n"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, pass_fds=[fd], capture_output=True, text=True
        )
    finally:
        os.close(fd)
    assert done.stdout.split()[-1] == "refused", done.stderr


@pytest.mark.needs("root")  # to become somebody else
def test_directories_that_may_not_be_read_are_told(tmp_path: Path) -> None:
    """By an ordinary user: counted below the root that is walked; the root itself is an error."""
    with tempfile.TemporaryDirectory() as open_to_all:
        os.chmod(open_to_all, 0o755)
        (Path(open_to_all) / "secret").mkdir(0o700)
        (Path(open_to_all) / "secret/file").write_text("x")
        script = (
            "import os\n"
            "from ebpfwatch.commands import cache, main\n"  # before: the checkout may be root's
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            f"root = {open_to_all!r}\n"
            "print(main(['cache', root]), main(['cache', root + '/secret']))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
        )
    assert "Not looked at: 1 files or directories that this user may not ask about." in done.stdout
    assert done.stdout.endswith("\n0 77\n")
    assert f'cannot walk "{open_to_all}/secret": Permission denied' in done.stderr


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Text and JSON say the same; numbers of inodes are there."""
    size = cached(tmp_path / "file")
    assert main(["cache", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"{size / (1 << 20):.1f} MiB  {tmp_path}/file" in out
    assert "Inodes in memory: " in out and "in 1 of 1 files asked" in out
    assert main(["cache", "--json", str(tmp_path)]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["files"] == [[size, f"{tmp_path}/file"]]
    assert body["vfs"]["inodes"] > 0
    assert main(["cache", str(tmp_path / "file")]) == 64
    assert "Not a directory" in capsys.readouterr().err


@pytest.mark.slow
def test_a_whole_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a directory: processes and mounts of this machine, bounded."""
    assert main(["cache", "--seconds", "3", "--top", "5"]) == 0
    out = capsys.readouterr().out
    assert out.split("\n\n")[0].count("MiB  ") <= 5
    assert "the kernel's page cache (Cached + Buffers) is" in out
