"""`ebpfwatch status`: what a person reads and what a monitoring system takes from it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from ebpfwatch.commands import main
from ebpfwatch.sinks import statusfile
from ebpfwatch.sinks.status import Armed, Proofs
from ebpfwatch.sinks.summary import to_json
from tests.unit.test_sinks import STATUS
from tests.unit.test_web import ALIVE, SURE, opened


def written(directory: Path, **changes: Any) -> None:
    """What the daemon puts there."""
    body = to_json(dataclasses.replace(STATUS, **changes), "http://127.0.0.1:9866", "/var/x")
    statusfile.write(directory, body)


def status(directory: Path, *words: str) -> int:
    """The command."""
    return main(["status", "--run-directory", str(directory), *words])


@pytest.mark.parametrize(
    ("changes", "code", "npd", "first"),
    [
        (ALIVE, 0, 0, "OK: All quiet"),
        ({**ALIVE, "boot": opened(double_free_probable=1)}, 1, 1, "WARNING: 1 candid"),
        (SURE, 2, 1, "CRITICAL: 2 confirmed: double_free"),
        ({"ready": False}, 3, 2, "UNKNOWN: Loading"),
    ],
)
def test_the_exit_code_is_the_level(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    code: int,
    npd: int,
    first: str,
) -> None:
    """For Nagios and for node-problem-detector; the first line says why, and is short."""
    written(tmp_path, **changes)
    assert status(tmp_path) == code
    assert capsys.readouterr().out.startswith(first)
    assert status(tmp_path, "--short", "--npd") == npd
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(first) and len(line) <= 80
    assert status(tmp_path, "--json") == code
    assert json.loads(capsys.readouterr().out)["level"] == first.partition(":")[0]


def test_one_screen_says_it_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is watched and what not and why, findings, cost, the last canary."""
    written(tmp_path, **SURE, sink_problems={"store": "no room in /x"})
    assert status(tmp_path) == 2
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 40
    for part in (
        "EbpfwatchDamage of the runbook: http://127.0.0.1:9866/runbook",
        "1 of 3 hooks in use are proven alive",
        "destroy    not used: no kprobes <here>",
        "2 double_free (confirmed), 2 not acknowledged",
        "store: no room in /x",
        "/var/x",
    ):
        assert part in shown, shown


def test_a_hook_on_demand_is_no_doubt(tmp_path: Path) -> None:
    """Armed roles are attached for a reason only: they count neither as used nor as unproven."""
    hook = dataclasses.replace(STATUS.kernel.hooks[0], role="put")
    kernel = dataclasses.replace(STATUS.kernel, hooks=(STATUS.kernel.hooks[0], hook))
    written(tmp_path, **{**ALIVE, "kernel": kernel, "proofs": Proofs({"evict": True}, {})})
    body = json.loads((tmp_path / statusfile.NAME).read_text())
    assert [hook["state"] for hook in body["hooks"]] == ["alive", "on demand"]
    assert (body["level"], "1 of 1 hooks in use" in body["why"]) == ("OK", True)


def test_what_is_armed_and_which_rules_are_not_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with its reason; a line of its own only where something is armed."""
    written(tmp_path, **ALIVE)
    status(tmp_path)
    shown = capsys.readouterr().out
    assert "\nrules        all of them" in shown and "\narmed" not in shown
    kernel = dataclasses.replace(STATUS.kernel, unchecked={"it is not mapped": "no such member"})
    written(
        tmp_path,
        **{**ALIVE, "kernel": kernel, "armed": Armed(("put",), "the kernel said: rm", 3600.0)},
    )
    status(tmp_path)
    shown = capsys.readouterr().out
    assert "rules        not checked: it is not mapped: no such member" in shown
    assert (
        "armed        put, until 1970-01-01" in shown
        and shown.count("because the kernel said\n") == 1
    )


def test_no_daemon_is_no_peace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Never ran, killed, or hanging: UNKNOWN, whatever it said last."""
    assert status(tmp_path) == 3
    assert "no ebpfwatch daemon is running here" in capsys.readouterr().out
    written(tmp_path, **ALIVE)
    os.utime(tmp_path / statusfile.NAME, (0, 0))
    assert status(tmp_path) == 3
    assert "has said nothing for" in capsys.readouterr().out
    body = json.loads((tmp_path / statusfile.NAME).read_text())
    (tmp_path / statusfile.NAME).write_text(json.dumps({**body, "pid": 2**22 + 1}))
    assert status(tmp_path) == 3
    assert "has ended without saying so" in capsys.readouterr().out


def test_every_user_may_read_it_and_it_tells_no_names(tmp_path: Path) -> None:
    """Nagios does not run as root; mount points and file names are nobody's business."""
    written(tmp_path, proofs=Proofs(success={"/secret": 1.0}))
    file = tmp_path / statusfile.NAME
    assert file.stat().st_mode & 0o777 == 0o644
    assert "/secret" not in file.read_text()
