"""What was found belongs to the boot: restarts, full disks and acknowledgements."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from ebpfwatch.catalogue.verdicts import Verdict
from ebpfwatch.commands import main
from ebpfwatch.daemon.this_boot import FILE, ThisBoot
from ebpfwatch.paths import Paths
from ebpfwatch.postmortem.last_boot import kernel_boot_id
from ebpfwatch.sinks import kmsg
from ebpfwatch.sinks.store import Store, acknowledge, acknowledge_all, read_all
from ebpfwatch.verdicts.finding import Confidence, Finding
from tests.unit.test_verdicts import judged

KEY = ("double_free", "confirmed")
BOOT = "b0071d"


def finding(number: int, **changes: object) -> Finding:
    """One of this boot, some seconds after the one before."""
    base: dict[str, Any] = {
        "id": f"20260101T000000.{number:06d}Z-{number:04x}",
        "boot_id": BOOT,
        "ns": 1_000_000_000 * (number + 1),
        "verdict": Verdict.DOUBLE_FREE,
        "confidence": Confidence.CONFIRMED,
    }
    return dataclasses.replace(judged(), **{**base, **changes})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The daemon's."""
    return Store(tmp_path, keep=100)


def again(directory: Path, boot_id: str = BOOT, log: tuple[tuple[int, str], ...] = ()) -> ThisBoot:
    """What a start finds."""
    found = ThisBoot(directory, boot_id)
    found.look_back(log)
    return found


def test_a_restart_forgets_nothing(tmp_path: Path, store: Store) -> None:
    """Counted, open, and as old as they are: from the files alone, as after kill -9."""
    before = again(tmp_path)
    for number in range(3):
        store.write(finding(number))
        before.found(finding(number), written=True, limited=False)
    after = again(tmp_path)
    assert after.counts == before.counts == {(*KEY, False): 3}
    assert after.open == before.open == {KEY: 3}
    assert after.ages(13_000_000_000) == {KEY: 10.0}


def test_repetitions_are_counted_once_the_file_is_written(tmp_path: Path, store: Store) -> None:
    """They have no file of their own; this_boot.json has their number."""
    before = again(tmp_path)
    store.write(finding(0))
    before.found(finding(0), written=True, limited=False)
    for number in range(1, 50):
        before.found(finding(number), written=False, limited=False)
    assert before.changed
    before.save()
    assert not before.changed
    after = again(tmp_path)
    assert after.counts == {(*KEY, False): 50}
    assert after.open == {KEY: 1}


def test_the_next_boot_begins_at_nothing(tmp_path: Path, store: Store) -> None:
    """The memory is whole again, so the alert ends; the findings stay on the disk."""
    store.write(finding(0))
    before = again(tmp_path)
    before.kernel_said("dentry_free", 5)
    before.last_boot_ended("panic")
    before.save()
    after = again(tmp_path, "another")
    assert (after.counts, after.open, after.kernel_log, after.last_boot) == ({}, {}, {}, "")
    assert len(list(read_all(tmp_path))) == 1


def test_the_kernels_messages_and_the_last_boot_are_kept(tmp_path: Path) -> None:
    """How the boot before ended is found out once a boot, by the first start."""
    before = again(tmp_path)
    assert [before.kernel_said("dentry_free", ns) for ns in (5, 7)] == [1, 2]
    before.last_boot_ended("panic")
    before.save()
    after = again(tmp_path)
    after.last_boot_ended("")
    assert after.kernel_log["dentry_free"].number == 2
    assert after.kernel_log_ages(1_000_000_007) == {"dentry_free": 1.0}
    assert after.last_boot == "panic" and after.last_boot_ns == before.last_boot_ns > 0


def test_a_finding_of_a_version_without_boots_is_dated(tmp_path: Path, store: Store) -> None:
    """An upgrade must not end the alert, and a finding of last year must not begin one."""
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    for number, at in ((0, booted + 1), (1, booted - 1)):
        old = finding(number, boot_id="", realtime_us=int(at * 1e6))
        store.write(old)
    assert again(tmp_path).open == {KEY: 1}


def test_a_full_disk_leaves_the_kernel_log(tmp_path: Path, store: Store) -> None:
    """What is in no file is counted from our own lines there, and what is in one only once."""
    store.write(finding(0))
    lines = tuple((finding(n).ns + 1000, kmsg.line(finding(n))) for n in range(3))
    found = again(tmp_path, log=lines)
    assert found.counts == {(*KEY, False): 3} and found.open == {KEY: 3}
    forged = ((9, "ebpfwatch: made_up (confirmed); ino 1; id 20260101T000000.0Z-0001; x"),)
    assert again(tmp_path, log=forged).counts == {(*KEY, False): 1}


def test_a_finding_that_could_not_be_written_stays_open(tmp_path: Path, store: Store) -> None:
    """Over a restart, too, if there is room for the small file; `--ack all` is its end."""
    before = again(tmp_path)
    before.found(finding(0), written=True, limited=False)
    before.not_kept(finding(0))
    before.found(finding(1), written=False, limited=True)  # by the rate
    before.save()
    after = again(tmp_path)
    assert before.open == after.open == {KEY: 2}
    acknowledge_all(tmp_path, "another", "me", "")
    assert not after.look_for_acknowledgements() and after.open == {KEY: 2}
    time.sleep(0.01)  # the directory's time must change
    acknowledge_all(tmp_path, BOOT, "me", "")
    assert after.look_for_acknowledgements() and after.open == {}
    assert again(tmp_path).open == {} and again(tmp_path).counts == {(*KEY, False): 2}


def test_an_acknowledgement_ends_one_finding(tmp_path: Path, store: Store) -> None:
    """Seen at the next look, kept over a restart; a later finding is open again."""
    before = again(tmp_path)
    for number in range(2):
        store.write(finding(number))
        before.found(finding(number), written=True, limited=False)
    acknowledge(tmp_path, finding(0).id, "alice", "drained")
    assert before.look_for_acknowledgements() and before.open == {KEY: 1}
    assert not before.look_for_acknowledgements()
    assert again(tmp_path).open == {KEY: 1}
    (later, first) = read_all(tmp_path)
    assert "acknowledged" not in later
    assert (first["acknowledged"]["by"], first["acknowledged"]["because"]) == ("alice", "drained")
    assert Finding.from_json(first) == finding(0)


def test_the_self_test_opens_nothing(tmp_path: Path, store: Store) -> None:
    """It is counted, and apart."""
    store.write(finding(0, test=True))
    assert again(tmp_path).counts == {(*KEY, True): 1} and again(tmp_path).open == {}


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"boot_id": "b0071d"}', '{"boot_id": "b0071d", "findings": [[1]]}']
)
def test_a_damaged_file_is_no_end(tmp_path: Path, store: Store, damage: str) -> None:
    """The findings' own files still count, and the next save mends it."""
    store.write(finding(0))
    (tmp_path / FILE).write_text(damage)
    found = again(tmp_path)
    assert found.open == {KEY: 1}
    found.found(finding(1), written=True, limited=False)
    found.save()
    assert json.loads((tmp_path / FILE).read_text())["findings"] == [[*KEY, False, 2, 2 * 10**9]]


def test_what_is_no_finding_of_ours_is_passed_over(tmp_path: Path, store: Store) -> None:
    """Half a file, another schema, a field of another kind."""
    store.write(finding(0))
    body = finding(1).to_json()
    wrong: list[dict[str, object]] = [{"ns": None}, {"folded": "x"}, {"id": 3}, {"test": "no"}]
    for number, changes in enumerate(wrong):
        name = f"2026010{number}.json"
        (tmp_path / "findings" / name).write_text(json.dumps({**body, **changes}))
    assert again(tmp_path).open == {KEY: 1}


def test_an_acknowledgement_goes_with_its_finding(tmp_path: Path) -> None:
    """The store keeps no more of them than findings."""
    kept = Store(tmp_path, keep=1)
    kept.write(finding(0))
    acknowledge(tmp_path, finding(0).id, "me", "")
    kept.write(finding(1))
    assert [path.name for path in (tmp_path / "findings").iterdir()] == [f"{finding(1).id}.json"]


# -- the command


def report(directory: Path, *words: str) -> int:
    """`ebpfwatch report` on these files."""
    return main(["report", "--from", "files", "--state-directory", str(directory), *words])


def test_report_acknowledges_and_says_so(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the list, in the report, in the JSON; what is not there is told, exit 1."""
    store.write(finding(0))
    assert report(tmp_path, "--ack", finding(0).id, "--because", "boots\x1b[2J tonight") == 0
    assert report(tmp_path, "--ack", "20990101T000000.0Z-0001") == 1
    assert "no finding 2099" in capsys.readouterr().out
    assert report(tmp_path) == 0
    assert "; acknowledged" in capsys.readouterr().out
    assert report(tmp_path, finding(0).id) == 0
    shown = capsys.readouterr().out
    assert "Acknowledged at 20" in shown and ": boots\\x1b[2J tonight" in shown
    assert report(tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["acknowledged"]["because"] == "boots\x1b[2J tonight"


def test_report_acknowledges_all_of_this_boot(tmp_path: Path, store: Store) -> None:
    """And none of another."""
    boot_id = kernel_boot_id(Paths())
    for number, boot in enumerate((boot_id, boot_id, "another")):
        store.write(finding(number, boot_id=boot))
    assert report(tmp_path, "--ack", "all") == 0
    assert ["acknowledged" in body for body in read_all(tmp_path)] == [False, True, True]
    assert again(tmp_path, boot_id).open == {} and again(tmp_path, "another").open == {KEY: 1}


def test_the_list_has_a_line_each(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """Newest first, chosen by time, boot and verdict."""
    for number in range(3):
        store.write(finding(number, realtime_us=1_700_000_000_000_000 + number * 3_600_000_000))
    store.write(
        finding(
            3,
            verdict=Verdict.FREED_IN_RECLAIM,
            boot_id="another",
            realtime_us=1_700_000_000_000_000,
        )
    )

    def shown(*words: str) -> list[str]:
        assert report(tmp_path, *words) == 0
        return [line.split()[0][-4:] for line in capsys.readouterr().out.splitlines()[1:]]

    assert shown() == ["0003", "0002", "0001", "0000"]
    assert shown("--limit", "2") == ["0003", "0002"]
    assert shown("--since", "2023-11-14 23:00") == ["0002", "0001"]
    assert shown("--until", "2023-11-14 23:00") == ["0003", "0000"]
    assert shown("--boot", BOOT) == ["0002", "0001", "0000"]
    assert shown("--verdict", "freed_in_reclaim") == ["0003"]
    assert report(tmp_path, "--since", "1h") == 0
    assert "no findings that match in" in capsys.readouterr().out


def test_a_finding_begins_with_what_happened(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """What, who, how sure: three sentences above everything else."""
    store.write(finding(0))
    assert report(tmp_path, finding(0).id) == 0
    _, _, _, _, what, who, sure, *_ = capsys.readouterr().out.splitlines()
    assert what.startswith("Ext4 inode 42 on 8:0 ") and what.endswith(".")
    assert who == "Module evil (out-of-tree, unsigned) did it: its own code made the wrong call."
    assert sure == "Nothing speaks against it."


def test_a_missing_directory_is_no_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 69, with --json, too."""
    shutil.rmtree(tmp_path)
    for words in ([], ["--json"]):
        assert report(tmp_path, *words) == 69
        assert f"there is no directory {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize("time_", ["yesteryear", "2026-13-01", "3 fortnights", ""])
def test_a_time_that_is_none(
    tmp_path: Path, time_: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what can be written."""
    with pytest.raises(SystemExit):
        report(tmp_path, "--since", time_)
    assert "is no time; write 2026-01-31" in capsys.readouterr().err
