"""The alert rules: each fires when it should, is silent when it should be, has its runbook.

promtool evaluates the shipped file; a table of series, with promtool's notation ("0x20 1x20": a
sample a minute), replaces one YAML case an alert.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest

from ebpfwatch.catalogue.roles import BY_CANARY, Hook
from ebpfwatch.catalogue.verdicts import Kind
from ebpfwatch.kernellog.known import KNOWN, Relation
from ebpfwatch.sinks import metrics
from ebpfwatch.sinks.status import Status

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy/prometheus"
RULES = DEPLOY / "ebpfwatch.rules.yml"
GOLDEN = (ROOT / "tests/golden/metrics.txt").read_text()
WHERE = {"job": "ebpfwatch", "instance": "db1:9866"}

GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = {r["alert"]: r for g in GROUPS for r in g["rules"] if "alert" in r}

FINDINGS = "ebpfwatch_findings_total{test='%s',verdict='%s',confidence='%s'}"
OPEN = "ebpfwatch_findings_unacknowledged{verdict='%s',kind='%s',confidence='%s'}"
AGED = "ebpfwatch_finding_age_seconds{verdict='%s',kind='%s',confidence='%s'}"
LOST = "ebpfwatch_lost_events_total{kind='%s'}"
EVICT = "ebpfwatch_lifecycle_events_total{event='evict'}"
ZONE = "ebpfwatch_zone_level{node='0',zone='Normal'}"
READY = "ebpfwatch_crash_ready{item='%s'}"
DISK = "{mountpoint='/srv',device='vdd'}"
ON_DISK = {"mountpoint": "/srv", "device": "vdd"}
DISK_AGE = "ebpfwatch_kernel_log_age_seconds{kind='io_error'}"
HELD = "ebpfwatch_files_without_process"
DF = {"verdict": "double_free"}

#: (alert, what fires it, its labels beside or instead of job and instance, what must not fire it).
CASES: list[tuple[str, dict[str, str], dict[str, str], list[dict[str, str]]]] = [
    (
        "EbpfwatchDamage",
        # Scraped once after the finding, then the machine is gone: the first and last sample is 1.
        {OPEN % ("double_free", "effect", "confirmed"): "1 stale"},
        DF,
        [
            {OPEN % ("double_free", "effect", "probable"): "0x10 1x80"},
            {OPEN % ("freed_in_reclaim", "context", "confirmed"): "0x10 1x80"},
            {OPEN % ("double_free", "effect", "confirmed"): "0x90"},
            {FINDINGS % ("true", "double_free", "confirmed"): "0x10 1x80"},
        ],
    ),
    (
        "EbpfwatchCause",
        {OPEN % ("evicted_in_use", "cause", "confirmed"): "1 stale"},
        {"verdict": "evicted_in_use"},
        [{OPEN % ("evicted_in_use", "cause", "probable"): "0x10 1x80"}],
    ),
    (
        "EbpfwatchEarlyWarning",
        {"ebpfwatch_early_warning": "0x40 1 stale"},
        {},
        [{"ebpfwatch_early_warning": "0x10 1 0x80"}],
    ),
    (
        "EbpfwatchCandidate",
        {AGED % ("double_free", "effect", "probable"): "NaN NaN 7 67 stale"},
        {**DF, "confidence": "probable"},
        [
            {AGED % ("double_free", "effect", "confirmed"): "0+60x80"},
            {AGED % ("concurrent_unlink", "context", "probable"): "0+60x80"},
            {AGED % ("double_free", "effect", "probable"): "NaN " * 80},
            {AGED % ("double_free", "effect", "probable"): "86400x80"},
        ],
    ),
    (
        "EbpfwatchCandidate",
        {AGED % ("freed_in_reclaim", "context", "confirmed"): "5+60x80"},
        {"verdict": "freed_in_reclaim", "confidence": "confirmed"},
        [{AGED % ("freed_in_reclaim", "context", "confirmed"): "NaN " * 80}],
    ),
    (
        "EbpfwatchPrecursor",
        {"ebpfwatch_kernel_log_age_seconds{kind='dentry_free'}": "7000+60x80"},
        {"kind": "dentry_free"},
        [
            {"ebpfwatch_kernel_log_age_seconds{kind='dentry_free'}": "NaN " * 80},
            {"ebpfwatch_kernel_log_age_seconds{kind='io_error'}": "0+60x80"},
        ],
    ),
    (
        "EbpfwatchLastBootPanicked",
        {
            "ebpfwatch_last_boot_ended{how='panic'}": "1x80",
            "ebpfwatch_last_boot_known_seconds": "0+60x80",
        },
        {"how": "panic"},
        [
            {
                "ebpfwatch_last_boot_ended{how='clean'}": "1x80",
                "ebpfwatch_last_boot_known_seconds": "0+60x80",
            },
            {
                "ebpfwatch_last_boot_ended{how='panic'}": "1x80",
                "ebpfwatch_last_boot_known_seconds": "86400+60x80",
            },
        ],
    ),
    (
        "EbpfwatchSelftest",
        {FINDINGS % ("true", "double_free", "confirmed"): "0x42 1x40"},
        DF,
        [
            {FINDINGS % ("true", "double_free", "confirmed"): "0x10 1x80"},  # ten minutes are over
            {FINDINGS % ("true", "double_free", "confirmed"): "1x80"},
            {FINDINGS % ("true", "double_free", "confirmed"): "_x40 0x40"},
            # Down for twenty minutes, and counted on: nobody tested.
            {FINDINGS % ("true", "double_free", "confirmed"): "1x20 _x20 1x40"},
            {FINDINGS % ("false", "double_free", "confirmed"): "0x42 1x40"},
        ],
    ),
    (
        "EbpfwatchSelftest",
        {FINDINGS % ("true", "double_free", "confirmed"): "_x40 1x40"},  # before the first scrape
        DF,
        [{FINDINGS % ("true", "double_free", "confirmed"): "_x30 1x40"}],
    ),
    ("EbpfwatchDown", {"up": "0x80"}, {}, [{"up": "1x80"}, {"up": "1x42 0x1 1x40"}]),
    ("EbpfwatchAbsent", {"up{job='node'}": "1x80"}, {"instance": ""}, [{"up": "0x80"}]),
    ("EbpfwatchNotReady", {"ebpfwatch_ready": "0x80"}, {}, [{"ebpfwatch_ready": "0x42 1x40"}]),
    (
        "EbpfwatchHookSilent",
        {"ebpfwatch_hook_alive{hook='evict'}": "1x40 0x40"},
        {"hook": "evict"},
        [
            {"ebpfwatch_hook_alive{hook='evict'}": "1x43 0x40"},  # the load's fault, perhaps
            {"ebpfwatch_hook_alive{hook='reclaim'}": "NaN " * 80},
        ],
    ),
    (
        "EbpfwatchHookUnproven",
        {
            "ebpfwatch_hook_alive{hook='evict'}": "1 " * 20 + "NaN " * 60,
            "ebpfwatch_hook_alive{hook='reclaim'}": "1x80",
        },
        {},
        [
            {"ebpfwatch_hook_alive{hook='evict'}": "1 " * 40 + "NaN " * 40},
            {"ebpfwatch_hook_alive{hook='reclaim'}": "NaN " * 80},
            {"ebpfwatch_hook_alive{hook='evict'}": "0x80"},
        ],
    ),
    (
        "EbpfwatchEventsLost",
        {LOST % "submit": "0x40 5x40"},
        {"kind": "submit"},
        [
            {LOST % "submit": "5x80"},
            {LOST % "recursion": "0+9x80"},
            {LOST % "forgotten_dead": "0+9x80"},
        ],
    ),
    (
        "EbpfwatchFreesMissed",
        {LOST % "free_missed": "0+30x80", EVICT: "0+1000x80"},
        {},
        [
            {LOST % "free_missed": "0+4x80", EVICT: "0+1000x80"},
            {LOST % "free_missed": "0x80", EVICT: "0x80"},
        ],
    ),
    (
        "EbpfwatchSinkFailing",
        {"ebpfwatch_sink_errors_total{sink='store'}": "0x40 1x40"},
        {"sink": "store"},
        [{"ebpfwatch_sink_errors_total{sink='store'}": "1x80"}],
    ),
    (
        "EbpfwatchSinkFailing",
        {"ebpfwatch_sink_ready{sink='store'}": "1x40 0x40"},  # a full disk, before any finding
        {"sink": "store"},
        [{"ebpfwatch_sink_ready{sink='store'}": "1x80"}],
    ),
    (
        "EbpfwatchRestarts",
        {"ebpfwatch_start_time_seconds": "1 1 2 _ 3 3 4 5x80"},
        {},
        [{"ebpfwatch_start_time_seconds": "1x20 _ 2x20 3x20 4x20"}],
    ),
    (
        "EbpfwatchConfigNotRead",
        {"ebpfwatch_config_last_reload_successful{file='web'}": "1x20 0x60"},
        {"file": "web"},
        [{"ebpfwatch_config_last_reload_successful{file='web'}": "1x40 0x40"}],
    ),
    (
        "EbpfwatchCollectorFailing",
        {"ebpfwatch_collector_errors_total{collector='mounts'}": "0+4x80"},
        {"collector": "mounts"},
        [{"ebpfwatch_collector_errors_total{collector='mounts'}": "0x40 1x40"}],
    ),
    (
        "EbpfwatchActionFailed",
        # A restart in between begins to count anew.
        {"ebpfwatch_actions_total{action='snapshot',result='failed'}": "0 1 _ 0x80"},
        {"action": "snapshot"},
        [
            {"ebpfwatch_actions_total{action='snapshot',result='failed'}": "0x80"},
            {"ebpfwatch_actions_total{action='snapshot',result='done'}": "0 1x80"},
        ],
    ),
    (
        "EbpfwatchCertificateExpires",
        {"ebpfwatch_web_certificate_expiry_timestamp_seconds": "1200000x200"},
        {},
        [
            {"ebpfwatch_web_certificate_expiry_timestamp_seconds": "1300000x200"},
            {"ebpfwatch_web_certificate_expiry_timestamp_seconds": "NaN " * 200},
        ],
    ),
    (
        "EbpfwatchExt4Errors",
        {"ebpfwatch_ext4_errors{device='sda1'}": "0x10 2x80"},
        {"device": "sda1"},
        [{"ebpfwatch_ext4_errors{device='sda1'}": "0x80"}],
    ),
    (
        "EbpfwatchExt4Errors",
        {"ebpfwatch_ext4_errors{device='sda1'}": "_x10 9x80"},  # before we came
        {"device": "sda1"},
        [{"ebpfwatch_ext4_errors{device='sda1'}": "NaN " * 80}],
    ),
    (
        "EbpfwatchDiskErrors",
        {f"ebpfwatch_disk_error_messages{DISK}": "0x10 3x80", DISK_AGE: "NaN " * 11 + "5+60x80"},
        ON_DISK,
        [
            # Of a device that no ext4 lies on; more than a day ago; none.
            {f"ebpfwatch_disk_error_messages{DISK}": "0x90", DISK_AGE: "5+60x90"},
            {f"ebpfwatch_disk_error_messages{DISK}": "3x90", DISK_AGE: "86400+60x90"},
            {f"ebpfwatch_disk_error_messages{DISK}": "0x90", DISK_AGE: "NaN " * 90},
        ],
    ),
    (
        "EbpfwatchDiskGone",
        {f"ebpfwatch_filesystem_device_gone{DISK}": "0x10 1x80"},
        ON_DISK,
        [
            {f"ebpfwatch_filesystem_device_gone{DISK}": "0x90"},
            {f"ebpfwatch_filesystem_device_gone{DISK}": "NaN " * 90},
        ],
    ),
    (
        "EbpfwatchDiskStalled",
        {f"ebpfwatch_disk_stalled_seconds{DISK}": "0x10 15+60x80"},
        ON_DISK,
        [
            {f"ebpfwatch_disk_stalled_seconds{DISK}": "0x40 15 75 0x40"},
            {f"ebpfwatch_disk_stalled_seconds{DISK}": "15x90"},
        ],
    ),
    (
        "EbpfwatchTurnedReadOnly",
        {f"ebpfwatch_filesystem_turned_read_only{DISK}": "0x10 1x80"},
        ON_DISK,
        [{f"ebpfwatch_filesystem_turned_read_only{DISK}": "0x90"}],
    ),
    (
        "EbpfwatchFilesHeld",
        {HELD: "12x5 1900x80", f"{HELD}_limit": "500x90"},
        {},
        [
            {HELD: "1900x90", f"{HELD}_limit": "20000x90"},  # a graphics driver's buffers
            {HELD: "12x30 1900x10 12x50", f"{HELD}_limit": "500x90"},
            {HELD: "NaN " * 90, f"{HELD}_limit": "500x90"},
            {HELD: "12x90", f"{HELD}_limit": "500x90"},
        ],
    ),
    (
        "EbpfwatchReduced",
        {"ebpfwatch_governor_step": "0x10 2x80"},
        {},
        [{"ebpfwatch_governor_step": "0x80"}, {"ebpfwatch_governor_step": "0x40 1x40"}],
    ),
    (
        "EbpfwatchMemoryBelowMin",
        {ZONE: "3x30 0x50"},
        {"node": "0", "zone": "Normal"},
        [{ZONE: "1x80"}, {ZONE: "0x43 1x40"}],
    ),
    (
        "EbpfwatchMemoryBelowLow",
        {ZONE: "1x80"},
        {"node": "0", "zone": "Normal"},
        [{ZONE: "2x80"}, {ZONE: "2x30 1x50"}],
    ),
    (
        "EbpfwatchCrashNotReady",
        {READY % "kdump": "0x80", READY % "pstore": "0x80", READY % "kfence": "1x80"},
        {},
        [{READY % "kdump": "0x80", READY % "pstore": "1x80"}],
    ),
    (
        "EbpfwatchExposed",
        {"ebpfwatch_web_exposed": "1x80"},
        {},
        [{"ebpfwatch_web_exposed": "0x80"}],
    ),
]
AT = {
    "EbpfwatchCertificateExpires": "75m",
    "EbpfwatchCrashNotReady": "75m",
    "EbpfwatchMemoryBelowLow": "60m",
}


def test_every_alert_has_its_case() -> None:
    """One that fires and at least one that does not."""
    assert {case[0] for case in CASES} == set(ALERTS)
    assert all(fires and silents for _, fires, _, silents in CASES)


def series(values: dict[str, str]) -> list[dict[str, str]]:
    """With the labels that a scrape adds."""
    listed = []
    for name, samples in values.items():
        name, _, labels = name.partition("{")
        given = labels.rstrip("}")
        added = ",".join(f"{k}='{v}'" for k, v in WHERE.items() if f"{k}=" not in given)
        listed.append({"series": f"{name}{{{added},{given}}}", "values": samples})
    return listed


def rendered(alert: str, labels: dict[str, str]) -> dict[str, str]:
    """The annotations as a person reads them: they may use nothing but labels."""
    texts = {}
    for name, text in ALERTS[alert]["annotations"].items():
        texts[name] = re.sub(r"{{ \$labels\.(\w+) }}", lambda m: labels[m.group(1)], text)
        texts[name] = texts[name].replace("{{ $externalURL }}", "")  # promtool has none
        assert "{{" not in texts[name]
    return texts


def promtool_case(
    alert: str, values: dict[str, str], expected: list[dict[str, Any]]
) -> dict[str, Any]:
    """One history, and what is firing at its end."""
    when = AT.get(alert, "45m")
    return {
        "name": f"{alert} {'fires' if expected else 'is silent'} for {values}",
        "interval": "1m",
        "input_series": series(values),
        "alert_rule_test": [{"eval_time": when, "alertname": alert, "exp_alerts": expected}],
    }


@pytest.mark.slow
@pytest.mark.needs("promtool")
def test_each_alert_fires_and_is_silent(tmp_path: Path) -> None:
    """Labels and annotations word by word; and no alert from what must not raise one."""
    tests = []
    for alert, fires, own, silents in CASES:
        labels = {name: value for name, value in {**WHERE, **own}.items() if value}
        expected = {
            "exp_labels": {**labels, "severity": ALERTS[alert]["labels"]["severity"]},
            "exp_annotations": rendered(alert, labels),
        }
        tests.append(promtool_case(alert, fires, [expected]))
        tests += [promtool_case(alert, silent, []) for silent in silents]
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": tests}))
    ran = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


#: (what happens, alert, series, whether it fires at each time). A sample a minute, over days.
DAY = 1440
TIMELINES: list[tuple[str, str, dict[str, str], dict[str, bool]]] = [
    (
        "restarts, an upgrade and a crash after the finding; acknowledged on the third day",
        "EbpfwatchDamage",
        {OPEN % ("double_free", "effect", "confirmed"): "0x10 1x60 _x5 1x600 _x45 1x3600 0x600"},
        {
            "5m": False,
            "12m": True,
            "72m": True,
            "75m": True,
            "680m": True,
            "720m": True,
            "2880m": True,
            "4320m": True,
            "4335m": False,
            "4900m": False,
        },
    ),
    (
        "the machine dies of its finding, is down for hours, and boots",
        "EbpfwatchDamage",
        {OPEN % ("double_free", "effect", "confirmed"): "0x10 1 _x600 0x100"},
        {"5m": False, "11m": True, "300m": True, "611m": True, "613m": False, "700m": False},
    ),
    (
        "the machine dies of its finding and stays away: EbpfwatchDown has it after a day",
        "EbpfwatchDamage",
        {OPEN % ("double_free", "effect", "confirmed"): "0x10 1 stale"},
        {"11m": True, "1400m": True, "1460m": False},
    ),
    (
        "one candidate, and restarts in its day",
        "EbpfwatchCandidate",
        {
            AGED % ("double_free", "effect", "probable"): "NaN " * 10
            + "0+60x500 _x10 30660+60x900 86460+60x3000"
        },
        {"5m": False, "12m": True, "515m": True, "1400m": True, "1460m": False, "4000m": False},
    ),
    (
        "a candidate that is acknowledged",
        "EbpfwatchCandidate",
        {AGED % ("double_free", "effect", "probable"): "0+60x30 " + "NaN " * 60},
        {"20m": True, "35m": False},
    ),
    (
        "a message of the kernel before the daemon started",
        "EbpfwatchPrecursor",
        {"ebpfwatch_kernel_log_age_seconds{kind='dentry_free'}": "_x10 80000+60x300"},
        {"9m": False, "11m": True, "100m": True, "130m": False},
    ),
    (
        "the last boot panicked, and the daemon is started three times in this one",
        "EbpfwatchLastBootPanicked",
        {
            "ebpfwatch_last_boot_ended{how='panic'}": "1x30 _x5 1x30 _x5 1x3000",
            "ebpfwatch_last_boot_known_seconds": "0+60x30 _x5 2160+60x30 _x5 4320+60x3000",
        },
        {"1m": True, "33m": True, "60m": True, "1400m": True, "1460m": False, "3000m": False},
    ),
    (
        "an action failed once, and the daemon was started again",
        "EbpfwatchActionFailed",
        {"ebpfwatch_actions_total{action='command',result='failed'}": "0x10 1x10 _x5 0x3000"},
        {"5m": False, "15m": True, "1400m": True, "1480m": False},
    ),
    (
        "ext4 found an error, and e2fsck was not run for days",
        "EbpfwatchExt4Errors",
        {"ebpfwatch_ext4_errors{device='sda1'}": "0x10 1x4000"},
        {"5m": False, "65m": True, "1400m": True, "1480m": False, "4000m": False},
    ),
]


@pytest.mark.slow
@pytest.mark.needs("promtool")
@pytest.mark.parametrize("line", TIMELINES, ids=[line[0] for line in TIMELINES])
def test_alerts_over_days(tmp_path: Path, line: tuple[Any, ...]) -> None:
    """Nothing but a boot or an acknowledgement ends what is critical; a day ends the rest."""
    _, alert, values, when = line
    # promtool compares whole alerts; whether there is one is asked of the series it makes.
    firing = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
    asked = [
        {
            "eval_time": time,
            "expr": firing,
            "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
        }
        for time, fires in when.items()
    ]
    test = {"interval": "1m", "input_series": series(values), "promql_expr_test": asked}
    # By itself: each rule costs an evaluation for each minute of these days.
    only = tmp_path / "rules.yml"
    only.write_text(yaml.safe_dump({"groups": [{"name": "one", "rules": [ALERTS[alert]]}]}))
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(only)], "tests": [test]}))
    ran = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.needs("promtool")
def test_promtool_accepts_the_files() -> None:
    """The rules by themselves, and the configuration that names them."""
    for what in (["rules", RULES], ["config", DEPLOY / "prometheus.yml"]):
        checked = subprocess.run(
            ["promtool", "check", *map(str, what)], capture_output=True, text=True
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_tells_what_to_do() -> None:
    """A severity that somebody routes, words, and a section of the runbook; no section too many."""
    sections = re.findall(r"(?m)^## (\w+)$", (ROOT / "docs/runbook.md").read_text())
    assert sections == list(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("critical", "warning", "info", "none"), name
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, name
        if name != "EbpfwatchAbsent":  # no host, so no page of one: Prometheus's own
            base, _, anchor = rule["annotations"]["runbook_url"].partition("#")
            assert base == "http://{{ $labels.instance }}/runbook", name
            assert anchor == name.lower(), name


def test_every_metric_in_the_rules_exists() -> None:
    """In the golden exposition, or recorded by a rule above; a misspelt one would never fire."""
    rules = [rule for group in GROUPS for rule in group["rules"]]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    used = {name for rule in rules for name in re.findall(r"[\w:]*ebpfwatch_[\w:]+", rule["expr"])}
    exposed = set(re.findall(r"(?m)^(ebpfwatch_\w+)", GOLDEN))
    assert used <= recorded | exposed


def test_precursors_are_those_of_the_table() -> None:
    """The kinds that the kernel log's table calls precursor or damage, in alert and dashboard."""
    telling = (Relation.PRECURSOR, Relation.DAMAGE)
    kinds = dict.fromkeys(d.kind for d in KNOWN if d.relation in telling)
    matcher = f'kind=~"{"|".join(kinds)}"'
    assert matcher in ALERTS["EbpfwatchPrecursor"]["expr"]
    assert json.dumps(matcher)[1:-1] in (ROOT / "deploy/grafana/ebpfwatch.json").read_text()


def test_hooks_that_must_be_proven_are_those_of_the_canary() -> None:
    """In the catalogue's order; one that is armed, or that only reclaim proves, is no alarm."""
    names = "|".join(hook.value for hook in Hook if hook.value in BY_CANARY)
    assert ALERTS["EbpfwatchHookUnproven"]["expr"].count(f'hook=~"{names}"') == 2


def test_every_metric_of_the_dashboard_exists() -> None:
    """And every panel asks for nothing but the daemon's own metrics."""
    dashboard = (ROOT / "deploy/grafana/ebpfwatch.json").read_text()
    used = set(re.findall(r"ebpfwatch_\w+", dashboard))
    full = generate_latest(metrics.registry(lambda: Status(started=0), host="full")).decode()
    assert used <= set(re.findall(r"(?m)^(ebpfwatch_\w+)", GOLDEN + full))


def test_values_of_labels_in_the_rules_exist() -> None:
    """Verdicts, kinds, events: each alternative of each matcher stands in the exposition."""
    for label in ("verdict", "confidence", "event", "kind"):
        known = set(re.findall(rf'{label}="([^"]*)"', GOLDEN))
        known |= {kind.value for kind in Kind} if label == "kind" else set()
        for metric, matchers in re.findall(r"(ebpfwatch_\w+)\{([^}]*)\}", RULES.read_text()):
            for value in re.findall(rf'\b{label}[!=]=?~?"([^"]*)"', matchers):
                assert set(value.split("|")) <= known, (metric, label, value)
