"""What is said of what the daemon has not; what it gives up: tests/live/test_daemon.py."""

from __future__ import annotations

import pytest

from ebpfwatch.system.privileges import why_no_exe


@pytest.mark.parametrize(
    ("wanted", "kept", "told"),
    [
        (True, ("dac_override", "syslog"), True),
        (True, (), True),
        (True, ("syslog", "sys_ptrace"), False),
        (False, ("syslog",), False),
    ],
)
def test_an_executable_that_cannot_be_read_is_told_at_start(
    wanted: bool, kept: tuple[str, ...], told: bool
) -> None:
    """One line with the key, the capability and the cure; nothing where nothing is lacking."""
    line = why_no_exe(wanted, kept)
    assert bool(line) is told
    if told:
        assert "\n" not in line
        for word in ("evidence.exe", "CAP_SYS_PTRACE", "/usr/share/ebpfwatch/evidence-exe.conf"):
            assert word in line
