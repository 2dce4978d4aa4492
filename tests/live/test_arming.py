"""The hook of any_free as it is armed, here on a raw tracepoint; the guests try a kprobe."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.live.harness import selftest, watching

ALIVE = 'ebpfwatch_hook_alive{hook="any_free"}'
UNSEEN = "frees by foreign code are not seen"


def test_any_free_waits_for_a_reason(ext4: Path, tmp_path: Path) -> None:
    """Not attached until somebody asks; then a canary proves it; log and verdicts say both."""
    with watching(tmp_path, any_free="armed") as daemon:
        daemon.wait_proven("unlink", "evict", "rcu_free")
        if "(shared with any_free)" in daemon.log.read_text():
            assert "stays on, though hooks.any_free is armed" in daemon.log.read_text()
            daemon.wait_proven("any_free")
            pytest.skip("this kernel has neither fentry nor kprobes: the guests' `armed` tries it")
        assert ALIVE not in daemon.metrics()
        assert f"until then {UNSEEN}" in daemon.log.read_text()
        assert selftest(daemon).returncode == 0
        (before,) = daemon.wait_findings(1)
        daemon.process.send_signal(signal.SIGUSR2)
        daemon.wait_proven("any_free")
        assert "because somebody asked for it (SIGUSR2) (any_free: " in daemon.log.read_text()
        assert selftest(daemon).returncode == 0
        (after,) = (path for path in daemon.wait_findings(2) if path != before)
    said = json.loads(before.read_text())["reasons"]
    assert f"the hook any_free waits for a reason to be attached: {UNSEEN}" in said
    said = json.loads(after.read_text())["reasons"]
    assert any("any_free has been attached since" in reason for reason in said)
