"""Buffers of CPUs that come and go; what the kernel does with them: tests/vm/scripts/faults.sh."""

from __future__ import annotations

import io
from collections.abc import Collection

import pytest

from ebpfwatch.catalogue.counters import COUNTERS
from ebpfwatch.kernel import libbpf
from ebpfwatch.kernel.session import Session


@pytest.mark.parametrize(
    ("text", "cpus"), [("0\n", {0}), ("0-3\n", {0, 1, 2, 3}), ("0,2-3,7\n", {0, 2, 3, 7})]
)
def test_the_kernels_list_of_cpus(
    text: str, cpus: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documentation/admin-guide/cputopology.rst: spans and single numbers."""
    monkeypatch.setattr("builtins.open", lambda _: io.StringIO(text))
    assert libbpf.online_cpus() == cpus


class FakeReader:
    """Remembers which CPUs it was told of."""

    def __init__(self) -> None:
        self.told: list[list[int]] = []

    def mend(self, lossy: Collection[int]) -> int:
        """As ``PerfReader.mend``, without a kernel."""
        self.told.append(list(lossy))
        return len(lossy)


def test_only_a_cpu_that_lost_something_since_is_opened_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A loss of long ago is no reason; each CPU for itself."""
    lost = [(0, 0), (0, 3), (0, 3), (1, 4)]
    session = Session.__new__(Session)
    session._submit_lost = (0, 0)
    reader = FakeReader()
    session._ring = reader  # type: ignore[assignment]

    def per_cpu(name: str, key: int) -> tuple[int, ...]:
        assert (name, COUNTERS[key]) == ("counters", "submit")
        return lost.pop(0)

    monkeypatch.setattr(session, "_per_cpu", per_cpu)
    assert [session.mend() for _ in range(4)] == [0, 1, 0, 2]
    assert reader.told == [[], [1], [], [0, 1]]
