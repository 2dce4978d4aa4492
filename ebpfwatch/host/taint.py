"""What makes this kernel another than the one that was tested: taint flags and foreign modules.

Flags and letters are those of Documentation/admin-guide/tainted-kernels.rst.
"""

from __future__ import annotations

import dataclasses

from ebpfwatch.host.fields import integer
from ebpfwatch.host.modules import read_modules
from ebpfwatch.paths import Paths

__all__ = ["LETTERS", "Taint", "letters", "read"]

#: The letter of each bit, as the kernel prints it in an oops.
LETTERS = "PFSRMBUDAWCIOELKXTNJ"


@dataclasses.dataclass(frozen=True)
class Taint:
    """``flags`` are the letters that are set; ``modules`` are (name, letters) of tainting ones."""

    flags: str
    modules: tuple[tuple[str, str], ...] = ()
    loaded: int = 0

    @property
    def out_of_tree(self) -> tuple[str, ...]:
        """Names of the modules that are not of the kernel's own tree."""
        return tuple(name for name, taints in self.modules if "O" in taints)


def read(paths: Paths) -> Taint:
    """This kernel's; raises ``OSError`` or ``ParseError``."""
    flags = letters(integer(paths.proc / "sys/kernel/tainted", "/proc/sys/kernel/tainted"))
    modules = read_modules(paths.proc / "modules")
    tainting = tuple(sorted((m.name, m.taints) for m in modules if m.taints.strip("-+")))
    return Taint(flags, tainting, len(modules))


def letters(flags: int) -> str:
    """The letters of the bits that are set; a bit without a letter yet is "?"."""
    found = "".join(letter for bit, letter in enumerate(LETTERS) if flags >> bit & 1)
    return found + ("?" if flags >> len(LETTERS) > 0 else "")
