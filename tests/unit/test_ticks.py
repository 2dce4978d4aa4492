"""The tick as a clock: its length by two looks."""

from __future__ import annotations

import pytest

from ebpfwatch.loader.ticks import Look, tick_ns


@pytest.mark.parametrize("hz", [100, 250, 300, 1000])
@pytest.mark.parametrize("late", [0, 3_000_000])
def test_the_tick_is_told_from_two_looks(hz: int, late: int) -> None:
    """Half a second apart, the second look up to 3 ms late: the kernel's HZ all the same."""
    first = Look(4_294_892_296, 7_000_000_000)
    last = Look(first.jiffies + hz // 2, first.ns + 500_000_000 + late)
    assert tick_ns(first, last) == 1_000_000_000 // hz


@pytest.mark.parametrize(
    ("ticks", "ns"), [(0, 500_000_000), (1, 4_000_000), (-5, 500_000_000), (77, 500_000_000)]
)
def test_no_tick_is_made_up(ticks: int, ns: int) -> None:
    """Too close together, backwards, or a HZ that no kernel has: the clock is read instead."""
    assert tick_ns(Look(1000, 0), Look(1000 + ticks, ns)) == 0
