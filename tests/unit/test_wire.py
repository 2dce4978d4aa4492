"""The contract: probes/contract.h compiled by cc against the structures made of the same table."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpfwatch.catalogue import header, tables
from ebpfwatch.catalogue.layout import Flag
from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.events import wire

HEADER = Path(__file__).parents[2] / "probes/contract.h"


@pytest.mark.needs("cc")
def test_every_struct_has_the_same_layout(tmp_path: Path) -> None:
    """Size and every offset, as the host's compiler sees the header."""
    asks = []
    for name, mirror in wire.LAYOUTS.items():
        asks.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        for field, *_ in mirror._fields_:
            asks.append(f'printf("{name}.{field} %zu\\n", offsetof(struct {name}, {field}));')
    source = tmp_path / "layout.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/types.h>\n"
        f'#include "{HEADER}"\nint main(void) {{ {" ".join(asks)} return 0; }}\n'
    )
    subprocess.run(["cc", "-Wall", "-Wpadded", "-Werror", "-o", tmp_path / "x", source], check=True)
    printed = subprocess.run([tmp_path / "x"], capture_output=True, text=True, check=True).stdout
    told = dict(line.split() for line in printed.splitlines())
    for name, mirror in wire.LAYOUTS.items():
        assert int(told[name]) == ctypes.sizeof(mirror), name
        for field, *_ in mirror._fields_:
            assert int(told[f"{name}.{field}"]) == getattr(mirror, field).offset, (name, field)


def test_header_and_page_are_what_the_catalogue_writes() -> None:
    """Nobody edits probes/contract.h by hand, and nobody forgets `make contract`."""
    assert HEADER.read_text() == header.text()
    assert (HEADER.parents[1] / "docs/catalogue.md").read_text() == tables.text()


def test_a_verdict_decodes() -> None:
    """A record filled by hand comes out as an event, its strings cut at NUL."""
    record = wire.VerdictRecord()
    record.header.kind, record.header.size = 2, ctypes.sizeof(record)
    record.verdict, record.hook = 3, 5
    record.flags = Flag.LIFE_VALID | Flag.WITNESS_READ
    record.life.ino, record.life.state = 42, 3
    record.actor.comm, record.actor.ns = b"rm", 7
    record.stack[0], record.stack_bytes = 0xFFFF, 8
    event = wire.decode(bytes(record))
    assert isinstance(event, wire.VerdictEvent)
    assert event.verdict is Verdict.DOUBLE_FREE
    assert event.life is not None and event.life.ino == 42
    assert (event.who.comm, event.stack) == ("rm", (0xFFFF,))


def test_device_numbers_are_the_kernels() -> None:
    """MAJOR and MINOR of linux/kdev_t.h."""
    assert wire.device(254 << 20 | 17) == (254, 17)


@given(st.binary(max_size=2000))
def test_garbage_is_a_decode_error_or_an_event(data: bytes) -> None:
    """Nothing else can come out, whatever goes in."""
    try:
        wire.decode(data)
    except wire.DecodeError as error:
        assert str(error)


@given(st.integers(1, 3), st.data())
def test_right_sized_garbage_decodes_or_says_why(kind: int, data: st.DataObject) -> None:
    """A record of the right size with random content."""
    layout = wire._DECODERS[kind][0]
    body = data.draw(st.binary(min_size=ctypes.sizeof(layout), max_size=ctypes.sizeof(layout)))
    head = kind.to_bytes(2, "little") + ctypes.sizeof(layout).to_bytes(2, "little")
    try:
        wire.decode(head + body[4:])
    except wire.DecodeError as error:
        assert str(error)
