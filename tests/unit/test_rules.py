"""The alert rules: each fires when it should, is silent when it should be, has its runbook.

promtool evaluates the shipped file; a table of series, with promtool's notation ("0x20 1x20": a
sample a minute), replaces one YAML case an alert.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ebpfwatch.kernellog.known import KNOWN, Relation

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy/prometheus"
RULES = DEPLOY / "ebpfwatch.rules.yml"
GOLDEN = (ROOT / "tests/golden/metrics.txt").read_text()
WHERE = {"job": "ebpfwatch", "instance": "db1:9866"}

GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = {r["alert"]: r for g in GROUPS for r in g["rules"] if "alert" in r}

needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="no promtool: apt-get install prometheus"
)

FINDINGS = "ebpfwatch_findings_total{test='%s',verdict='%s',confidence='%s'}"
LOST = "ebpfwatch_lost_events_total{kind='%s'}"
EVICT = "ebpfwatch_lifecycle_events_total{event='evict'}"
ZONE = "ebpfwatch_zone_level{node='0',zone='Normal'}"
READY = "ebpfwatch_crash_ready{item='%s'}"
DF = {"verdict": "double_free"}

#: (alert, what fires it, its labels beside or instead of job and instance, what must not fire it).
CASES: list[tuple[str, dict[str, str], dict[str, str], list[dict[str, str]]]] = [
    (
        "EbpfwatchDoubleFree",
        # Scraped once after the finding, then the machine is gone: the first and last sample is 1.
        {FINDINGS % ("false", "double_free", "confirmed"): "1 stale"},
        DF,
        [
            {FINDINGS % ("true", "double_free", "confirmed"): "0x10 1x80"},
            {FINDINGS % ("false", "double_free", "probable"): "0x10 1x80"},
            {FINDINGS % ("false", "freed_in_reclaim", "confirmed"): "0x10 1x80"},
            {FINDINGS % ("false", "double_free", "confirmed"): "0x90"},
        ],
    ),
    (
        "EbpfwatchEarlyWarning",
        {"ebpfwatch_early_warning": "0x40 1 stale"},
        {},
        [{"ebpfwatch_early_warning": "0x10 1 0x80"}],
    ),
    (
        "EbpfwatchCandidate",
        {FINDINGS % ("false", "double_free", "probable"): "0x10 1x80"},
        {**DF, "confidence": "probable"},
        [
            {FINDINGS % ("false", "double_free", "confirmed"): "0x10 1x80"},
            {FINDINGS % ("false", "concurrent_unlink", "probable"): "0x10 1x80"},
            {FINDINGS % ("true", "double_free", "probable"): "0x10 1x80"},
        ],
    ),
    (
        "EbpfwatchCandidate",
        {FINDINGS % ("false", "freed_in_reclaim", "confirmed"): "1x80"},
        {"verdict": "freed_in_reclaim", "confidence": "confirmed"},
        [{FINDINGS % ("true", "freed_in_reclaim", "confirmed"): "1x80"}],
    ),
    (
        "EbpfwatchPrecursor",
        {"ebpfwatch_kernel_log_events_total{kind='dentry_alias'}": "146x80"},
        {"kind": "dentry_alias"},
        [
            {"ebpfwatch_kernel_log_events_total{kind='dentry_alias'}": "0x80"},
            {"ebpfwatch_kernel_log_events_total{kind='io_error'}": "0x10 9x80"},
        ],
    ),
    (
        "EbpfwatchLastBootPanicked",
        {"ebpfwatch_last_boot_ended{how='panic'}": "1x80"},
        {"how": "panic"},
        [{"ebpfwatch_last_boot_ended{how='clean'}": "1x80"}],
    ),
    (
        "EbpfwatchSelftest",
        {FINDINGS % ("true", "double_free", "confirmed"): "0x42 1x40"},
        DF,
        [
            {FINDINGS % ("true", "double_free", "confirmed"): "0x10 1x80"},  # ten minutes are over
            {FINDINGS % ("true", "double_free", "confirmed"): "1x80"},
            {FINDINGS % ("true", "double_free", "confirmed"): "_x40 0x40"},
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
AT = {"EbpfwatchCrashNotReady": "75m", "EbpfwatchMemoryBelowLow": "60m"}


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


@needs_promtool
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


@needs_promtool
def test_promtool_accepts_the_files() -> None:
    """The rules by themselves, and the configuration that names them."""
    for what in (["rules", RULES], ["config", DEPLOY / "prometheus.yml"]):
        checked = subprocess.run(["promtool", "check", *what], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_tells_what_to_do() -> None:
    """A severity that somebody routes, words, and a section of the runbook; no section too many."""
    sections = re.findall(r"(?m)^## (\w+)$", (ROOT / "docs/runbook.md").read_text())
    assert sections == list(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("critical", "warning", "info", "none"), name
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, name
        _, _, anchor = rule["annotations"]["runbook_url"].partition("/runbook.md#")
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


def test_every_metric_of_the_dashboard_exists() -> None:
    """And every panel asks for nothing but the daemon's own metrics."""
    dashboard = (ROOT / "deploy/grafana/ebpfwatch.json").read_text()
    used = set(re.findall(r"ebpfwatch_\w+", dashboard))
    exposed = set(re.findall(r"(?m)^(ebpfwatch_\w+)", GOLDEN))
    assert used <= exposed


def test_values_of_labels_in_the_rules_exist() -> None:
    """Verdicts, kinds, events: each alternative of each matcher stands in the exposition."""
    for label in ("verdict", "confidence", "event", "kind"):
        known = set(re.findall(rf'{label}="([^"]*)"', GOLDEN))
        for metric, matchers in re.findall(r"(ebpfwatch_\w+)\{([^}]*)\}", RULES.read_text()):
            for value in re.findall(rf'\b{label}[!=]=?~?"([^"]*)"', matchers):
                assert set(value.split("|")) <= known, (metric, label, value)
