"""A configuration file of root's, by its path."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from ebpfwatch.errors import EbpfwatchError, Exit
from ebpfwatch.system.files import read_regular
from ebpfwatch.system.log import say
from ebpfwatch.text import strictyaml

__all__ = ["read"]

_T = TypeVar("_T")


def read(path: str | Path, cls: type[_T], hint: str) -> _T:
    """The file as an instance of the class; raises ``EbpfwatchError`` (exit 78) with one line.
    ``hint`` is for a file that cannot be read.
    """
    try:
        data = read_regular(path, strictyaml.MAX_BYTES + 1)
    except OSError as error:
        raise EbpfwatchError(f"cannot read {path}: {error.strerror}", hint, Exit.CONFIG) from None
    return strictyaml.parse(str(path), data, cls, lambda line: say(line, "warning"))
