"""What is written durably; that it survives a crash: tests/vm/scripts/crash.sh."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ebpfwatch.system import durable


def test_the_name_is_synced_and_not_only_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File, rename, directory, in this order: else the machine may crash and forget that it did."""
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(fd: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        fsync(fd)

    def renamed(before: Path, after: Path) -> None:
        done.append("renamed")
        rename(before, after)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    durable.write(tmp_path / "mark", b"x")
    assert done == [".writing-mark", "renamed", tmp_path.name]
    assert [path.name for path in tmp_path.iterdir()] == ["mark"]
