"""/proc/pressure: how long tasks waited for memory, disk and CPU (PSI, Linux 4.20)."""

from __future__ import annotations

import dataclasses

from ebpfwatch.host import ParseError
from ebpfwatch.host.fields import lines, number, present
from ebpfwatch.paths import Paths

__all__ = ["RESOURCES", "Pressure", "parse", "read"]

RESOURCES = ("cpu", "io", "memory")


@dataclasses.dataclass(frozen=True)
class Pressure:
    """Of one resource: ``some`` and ``full`` are percent of the last ten seconds in which some, or
    all, tasks waited; the totals are seconds since the boot.  ``full`` is 0 where the kernel does
    not tell it (CPU before Linux 5.13).
    """

    resource: str
    some: float
    some_seconds: float
    full: float = 0.0
    full_seconds: float = 0.0


def read(paths: Paths) -> tuple[Pressure, ...]:
    """One a resource; () where the kernel has no PSI or has it switched off."""
    found = []
    for resource in RESOURCES:
        body = present(paths.proc / "pressure" / resource)
        if body is not None:
            found.append(parse(body, resource))
    return tuple(found)


def parse(body: str, resource: str) -> Pressure:
    """Two lines "some avg10=0.00 avg60=0.00 avg300=0.00 total=0"; raises ``ParseError``."""
    found: dict[str, tuple[float, float]] = {}
    for position, line in lines(body, f"/proc/pressure/{resource}"):
        where = f"/proc/pressure/{resource} line {position}"
        kind, *pairs = line.split()
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        try:
            whole, _, hundredths = values["avg10"].partition(".")
            average = number(whole, where) + number(hundredths, where) / 100
            found[kind] = average, number(values["total"], where) / 1e6
        except KeyError as missing:
            raise ParseError(f"{where} has no {missing}: {line[:80]!r}") from None
    if "some" not in found:
        raise ParseError(f'/proc/pressure/{resource} has no line "some"')
    return Pressure(resource, *found["some"], *found.get("full", (0.0, 0.0)))
