"""What root reads or runs by a path: a regular file, and in nobody else's hands."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ebpfwatch.commands.run import _judge_hands
from ebpfwatch.config import ActionsConfig, Config
from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.loader.offsets import refuse_others
from ebpfwatch.system.files import open_regular, read_regular, resolved, why_not_roots


@pytest.mark.parametrize("kind", ["fifo", "directory", "device", "socket"])
def test_what_is_no_file_is_neither_waited_for_nor_read(tmp_path: Path, kind: str) -> None:
    """At once, with a reason, and no fd is left open."""
    place = tmp_path / "it"
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "directory":
        place.mkdir()
    elif kind == "device":
        place = Path("/dev/zero")
    else:
        os.mknod(place, 0o140600)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):
        open_regular(place)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_is_read_so_far(tmp_path: Path) -> None:
    """A link is followed, unless it is asked not to be."""
    (tmp_path / "file").write_text("0123456789")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 4) == b"0123"
    with pytest.raises(OSError):
        read_regular(tmp_path / "link", 4, os.O_NOFOLLOW)


def test_every_step_of_the_way_counts(tmp_path: Path) -> None:
    """A directory above that others can write; a sticky one is none."""
    deep = tmp_path / "a/b/c"
    deep.mkdir(parents=True)
    (deep / "file").touch()
    assert why_not_roots(str(deep / "file")) == ""
    assert resolved(f"{deep}/../c/./file") == str(deep / "file")
    (tmp_path / "a").chmod(0o777)
    assert why_not_roots(str(deep / "file")).startswith(f"{tmp_path}/a can be written by others")
    with pytest.raises(OSError, match="can be written by others"):
        resolved(str(deep / "file"))
    (tmp_path / "a").chmod(0o1777)
    assert why_not_roots(str(deep / "file")) == ""
    with pytest.raises(OSError, match="No such file"):
        why_not_roots(str(deep / "none"))


def test_headers_that_a_user_could_exchange_are_not_compiled(tmp_path: Path) -> None:
    """/lib/modules/RELEASE/build may lead into the tree of whoever compiled the kernel."""
    tree = tmp_path / "tree"
    for part in ("include", "arch"):
        (tree / part).mkdir(parents=True)
    (tmp_path / "build").symlink_to(tree)
    refuse_others(tmp_path / "build")
    (tree / "include").chmod(0o777)
    with pytest.raises(EbpfwatchError, match="include can be written by others") as raised:
        refuse_others(tmp_path / "build")
    assert raised.value.exit_code is Exit.CONFIG
    (tree / "include").chmod(0o755)
    os.rmdir(tree / "arch")
    with pytest.raises(EbpfwatchError, match="No such file"):
        refuse_others(tmp_path / "build")


def test_actions_need_a_configuration_of_root_s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever can write it would choose what root runs; without actions it is only said."""
    file = tmp_path / "config.yaml"
    file.touch()
    acting = Config(actions=ActionsConfig(command="/bin/true"))
    _judge_hands(str(file), acting)
    file.chmod(0o666)
    _judge_hands(str(file), Config())
    assert "others than root could change" in capsys.readouterr().err
    with pytest.raises(EbpfwatchError, match="asks for actions") as raised:
        _judge_hands(str(file), acting)
    assert raised.value.exit_code is Exit.CONFIG
