"""Writes ebpfwatch.json, the dashboard: `make dashboard`.

Three questions, each a row of panels: is it watching, did anything happen, is it about to?  The
first row answers all three for the machines that are chosen, and the table below it says which
machine it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ebpfwatch.catalogue.roles import BY_CANARY, Hook
from ebpfwatch.kernellog.known import KNOWN, Relation

FILE = Path(__file__).with_name("ebpfwatch.json")

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_OURS = 'job="ebpfwatch", instance=~"$instance"'
#: node_exporter has another port, so another instance: the same host.
_NODE = 'instance=~"($host)(:.*)?"'
PRECURSORS = "|".join(
    dict.fromkeys(
        known.kind for known in KNOWN if known.relation in (Relation.PRECURSOR, Relation.DAMAGE)
    )
)
PROVABLE = "|".join(hook.value for hook in Hook if hook.value in BY_CANARY)


def _link_to(title: str, page: str) -> list[dict[str, Any]]:
    """Of a row's machine: above the panels a link would have to name all that are chosen."""
    url = f"http://${{__data.fields.Machine}}/{page}"
    return [{"title": title, "url": url, "targetBlank": True}]


_HOST_LINK = _link_to("State of this machine", "")
_RUNBOOK_LINK = _link_to("Runbook", "runbook")


def _steps(*steps: tuple[float | None, str]) -> dict[str, Any]:
    return {
        "mode": "absolute",
        "steps": [{"value": value, "color": color} for value, color in steps],
    }


_NONE_IS_GOOD = _steps((None, "green"), (1, "red"))
_SOME_IS_ODD = _steps((None, "green"), (1, "orange"))


def _query(expr: str, legend: str = "", instant: bool = False, ref: str = "A") -> dict[str, Any]:
    return {
        "refId": ref,
        "datasource": _SOURCE,
        "editorMode": "code",
        "expr": expr,
        "legendFormat": legend,
        "range": not instant,
        "instant": instant,
        "format": "time_series",
    }


def _panel(
    kind: str,
    title: str,
    description: str,
    targets: list[dict[str, Any]],
    defaults: dict[str, Any],
    options: dict[str, Any],
    **more: Any,
) -> dict[str, Any]:
    for letter, target in zip("ABCDEFGHIJKL", targets):
        target["refId"] = letter
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": _SOURCE,
        "targets": targets,
        "fieldConfig": {
            "defaults": {"color": {"mode": "thresholds"}, "mappings": [], **defaults},
            "overrides": more.pop("overrides", []),
        },
        "options": options,
        **more,
    }


def _stat(title: str, description: str, expr: str, **defaults: Any) -> dict[str, Any]:
    return _panel(
        "stat",
        title,
        description,
        [_query(expr, instant=True)],
        {"unit": "short", "thresholds": _NONE_IS_GOOD, "noValue": "no data", **defaults},
        {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "orientation": "auto",
            "textMode": "value",
            "colorMode": "background",
            "graphMode": "none",
            "justifyMode": "auto",
            "wideLayout": True,
            "showPercentChange": False,
            "percentChangeColorMode": "standard",
        },
    )


def _graph(
    title: str,
    description: str,
    targets: list[dict[str, Any]],
    unit: str = "short",
    empty: str = "nothing",
    log: bool = False,
    steps: dict[str, Any] | None = None,
    stepped: bool = False,
    soft_max: float | None = None,
) -> dict[str, Any]:
    scale: dict[str, Any] = {"type": "log", "log": 2} if log else {"type": "linear"}
    custom = {
        "drawStyle": "line",
        "lineInterpolation": "stepAfter" if stepped else "linear",
        "lineWidth": 2 if stepped else 1,
        "fillOpacity": 0 if log else 10,
        "showPoints": "auto",
        "spanNulls": False,
        "stacking": {"mode": "none", "group": "A"},
        "axisPlacement": "auto",
        "scaleDistribution": scale,
        **({"thresholdsStyle": {"mode": "line+area"}} if steps else {}),
        **({"axisSoftMax": soft_max} if soft_max is not None else {}),
    }
    return _panel(
        "timeseries",
        title,
        description,
        targets,
        {
            "unit": unit,
            "noValue": empty,
            "color": {"mode": "palette-classic"},
            "custom": custom,
            "min": 0.5 if log else 0,
            **({"thresholds": steps} if steps else {}),
        },
        {
            "legend": {
                "showLegend": True,
                "displayMode": "list",
                "placement": "bottom",
                "calcs": [],
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    )


def _column(name: str, **properties: Any) -> dict[str, Any]:
    return {
        "matcher": {"id": "byName", "options": name},
        "properties": [{"id": key.replace("__", "."), "value": v} for key, v in properties.items()],
    }


def _words(**words: tuple[str, str]) -> list[dict[str, Any]]:
    """Values in words: n0=("no", "red")."""
    options = {
        name[1:]: {"text": text, "color": color, "index": index}
        for index, (name, (text, color)) in enumerate(words.items())
    }
    return [{"type": "value", "options": options}]


def _nan(text: str, color: str) -> dict[str, Any]:
    return {
        "type": "special",
        "options": {"match": "nan", "result": {"text": text, "color": color, "index": 9}},
    }


def _table(
    title: str,
    description: str,
    columns: dict[str, str],
    rename: dict[str, str],
    overrides: list[dict[str, Any]],
    empty: str = "nothing",
) -> dict[str, Any]:
    targets = [{**_query(expr, instant=True), "format": "table"} for expr in columns.values()]
    names = {f"Value #{letter}": name for letter, name in zip("ABCDEFGHIJKL", columns)}
    if len(columns) == 1:
        names = {"Value": next(iter(columns))}
    order = [*rename, *names]
    return _panel(
        "table",
        title,
        description,
        targets,
        {
            "noValue": empty,
            "thresholds": _steps((None, "text")),
            "custom": {
                "align": "left",
                "cellOptions": {"type": "auto"},
                "inspect": False,
                "minWidth": 100,
            },
        },
        {"showHeader": True, "cellHeight": "sm"},
        overrides=overrides,
        transformations=[
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                "options": {
                    "excludeByName": {"Time": True, "job": True, "kind": True},
                    "indexByName": {name: index for index, name in enumerate(order)},
                    "renameByName": {**rename, **names},
                },
            },
        ],
    )


def _colored(steps: dict[str, Any], unit: str = "short") -> dict[str, Any]:
    return {
        "unit": unit,
        "thresholds": steps,
        "custom__cellOptions": {"type": "color-background", "mode": "basic"},
    }


def _rows() -> list[tuple[str, list[tuple[int, int, dict[str, Any]]]]]:
    """(title, [(width, height, panel)]) from top to bottom."""
    open_ = "ebpfwatch_findings_unacknowledged"
    return [
        (
            "Is it watching? Did anything happen? Is it about to?",
            [
                (
                    4,
                    4,
                    _stat(
                        "Machines not watched",
                        "Down, or not ready: EbpfwatchDown, EbpfwatchNotReady.",
                        f"(count(up{{{_OURS}}} == 0) or vector(0))"
                        f" + (count(ebpfwatch_ready{{{_OURS}}} == 0) or vector(0))",
                    ),
                ),
                (
                    4,
                    4,
                    _stat(
                        "Hooks not proven alive",
                        "Where a hook is silent, no findings means nothing. Those that no canary"
                        " can prove are left out while they are not proven.",
                        f"count((ebpfwatch_hook_alive{{{_OURS}}} == 0)"
                        f' or (ebpfwatch_hook_alive{{{_OURS}, hook=~"{PROVABLE}"}}'
                        f' != ebpfwatch_hook_alive{{{_OURS}, hook=~"{PROVABLE}"}})) or vector(0)',
                    ),
                ),
                (
                    4,
                    4,
                    _stat(
                        "Confirmed",
                        "Causes and damage since the boot that nobody has acknowledged:"
                        " EbpfwatchDamage, EbpfwatchCause.",
                        f'sum(last_over_time({open_}{{{_OURS}, kind!="context",'
                        ' confidence="confirmed"}[1d]))',
                    ),
                ),
                (
                    4,
                    4,
                    _stat(
                        "Candidates",
                        "Not proven, or freed in reclaim; since the boot, not acknowledged:"
                        " EbpfwatchCandidate.",
                        f'sum(last_over_time({open_}{{{_OURS}, kind!="context",'
                        ' confidence!="confirmed"}[1d]))'
                        f" + sum(last_over_time({open_}{{{_OURS},"
                        ' verdict="freed_in_reclaim"}[1d]))',
                        thresholds=_SOME_IS_ODD,
                    ),
                ),
                (
                    4,
                    4,
                    _stat(
                        "Kernel complaints, last day",
                        "Kinds of messages that come before this crash, or that damage leaves:"
                        " EbpfwatchPrecursor.",
                        f"count(ebpfwatch_kernel_log_age_seconds{{{_OURS},"
                        f' kind=~"{PRECURSORS}"}} < 86400) or vector(0)',
                        thresholds=_SOME_IS_ODD,
                    ),
                ),
                (
                    4,
                    4,
                    _stat(
                        "Free / low watermark",
                        "The worst zone. Below 1 kswapd works, and inodes die in reclaim.",
                        f"min(ebpfwatch_zone_free_bytes{{{_OURS}}}"
                        f" / (ebpfwatch_zone_low_bytes{{{_OURS}}} > 0))",
                        thresholds=_steps((None, "red"), (1, "orange"), (1.5, "green")),
                        decimals=1,
                        unit="none",
                    ),
                ),
            ],
        ),
        (
            "The machines",
            [
                (
                    24,
                    5,
                    _table(
                        "Machines",
                        "One row each; the name leads to the machine's own page.",
                        {
                            "Up": f"up{{{_OURS}}}",
                            "Hooks alive": f"sum by (instance)"
                            f" (ebpfwatch_hook_alive{{{_OURS}}} == 1)",
                            "Confirmed": f"sum by (instance) ({open_}{{{_OURS},"
                            ' kind!="context", confidence="confirmed"})',
                            "Candidates": f"sum by (instance) ({open_}{{{_OURS},"
                            ' kind!="context", confidence!="confirmed"})',
                            "Complaints": f"count by (instance)"
                            f" (ebpfwatch_kernel_log_age_seconds{{{_OURS},"
                            f' kind=~"{PRECURSORS}"}} < 86400)'
                            f" or 0 * max by (instance) (ebpfwatch_ready{{{_OURS}}})",
                            "Early warning": f"max by (instance)"
                            f" (ebpfwatch_early_warning{{{_OURS}}})",
                            "Free / low": f"min by (instance) (ebpfwatch_zone_free_bytes{{{_OURS}}}"
                            f" / (ebpfwatch_zone_low_bytes{{{_OURS}}} > 0))",
                            "Leaves evidence": f"max by (instance) (ebpfwatch_crash_ready{{{_OURS},"
                            ' item=~"kdump|pstore"})',
                            "CPU": f"max by (instance) (ebpfwatch_watcher_cpu_ratio{{{_OURS}}})",
                            "Watching for": f"time() - max by (instance)"
                            f" (ebpfwatch_start_time_seconds{{{_OURS}}})",
                        },
                        {"instance": "Machine"},
                        [
                            _column("Machine", links=_HOST_LINK),
                            _column(
                                "Up",
                                mappings=_words(n0=("DOWN", "red"), n1=("up", "green")),
                                custom__cellOptions={"type": "color-text"},
                            ),
                            _column("Confirmed", **_colored(_NONE_IS_GOOD)),
                            _column("Candidates", **_colored(_SOME_IS_ODD)),
                            _column("Complaints", **_colored(_SOME_IS_ODD)),
                            _column(
                                "Early warning",
                                mappings=_words(n0=("no", "green"), n1=("YES", "red")),
                                custom__cellOptions={"type": "color-text"},
                            ),
                            _column(
                                "Free / low",
                                decimals=1,
                                **_colored(
                                    _steps((None, "red"), (1, "orange"), (1.5, "green")), "none"
                                ),
                            ),
                            _column(
                                "Leaves evidence",
                                mappings=_words(n0=("no", "orange"), n1=("yes", "green")),
                                custom__cellOptions={"type": "color-text"},
                            ),
                            _column("CPU", unit="percentunit", decimals=2),
                            _column("Watching for", unit="s", decimals=0),
                        ],
                        "no machine",
                    ),
                ),
            ],
        ),
        (
            "Did anything happen?",
            [
                (
                    12,
                    6,
                    _table(
                        "Findings that nobody has acknowledged",
                        "Since the machine booted, over restarts of the daemon. On the machine:"
                        " ebpfwatch report, then ebpfwatch report --ack ID.",
                        {"Findings": f'{open_}{{{_OURS}, verdict!="concurrent_unlink"}} > 0'},
                        {
                            "instance": "Machine",
                            "verdict": "Verdict",
                            "confidence": "Confidence",
                        },
                        [
                            _column("Machine", links=_HOST_LINK),
                            _column("Verdict", links=_RUNBOOK_LINK),
                        ],
                        "nothing found",
                    ),
                ),
                (
                    12,
                    6,
                    _graph(
                        "Findings since the boot",
                        "Repetitions included, the self-test's left out.",
                        [
                            _query(
                                "sum by (instance, verdict, confidence)"
                                f' (ebpfwatch_findings_total{{{_OURS}, test="false"}}) > 0',
                                "{{instance}} {{verdict}} {{confidence}}",
                            )
                        ],
                        empty="nothing found",
                        stepped=True,
                    ),
                ),
                (
                    12,
                    6,
                    _graph(
                        "Complaints of the kernel since the boot",
                        "Messages that come before this crash, and those that damage leaves.",
                        [
                            _query(
                                "sum by (instance, kind) (ebpfwatch_kernel_log_events_total"
                                f'{{{_OURS}, kind=~"{PRECURSORS}"}}) > 0',
                                "{{instance}} {{kind}}",
                            )
                        ],
                        empty="none",
                        stepped=True,
                    ),
                ),
                (
                    12,
                    6,
                    _graph(
                        "Errors of ext4",
                        "What the superblocks count since the last e2fsck.",
                        [
                            _query(
                                f"ebpfwatch_ext4_errors{{{_OURS}}} > 0", "{{instance}} {{device}}"
                            )
                        ],
                        empty="none",
                        stepped=True,
                    ),
                ),
            ],
        ),
        (
            "Is it about to?",
            [
                (
                    16,
                    9,
                    _graph(
                        "Free memory of each zone, in parts of its low watermark",
                        "Logarithmic. Below 1 (orange) kswapd works, and inodes die in reclaim;"
                        " below about 0.8 (min, red) every task reclaims before it allocates.",
                        [
                            _query(
                                f"ebpfwatch_zone_free_bytes{{{_OURS}}}"
                                f" / (ebpfwatch_zone_low_bytes{{{_OURS}}} > 0)",
                                "{{instance}} node {{node}} {{zone}}",
                            )
                        ],
                        unit="none",
                        log=True,
                        steps=_steps((None, "red"), (0.8, "orange"), (1, "transparent")),
                    ),
                ),
                (
                    8,
                    9,
                    _graph(
                        "Tasks that wait for memory (PSI)",
                        "From node_exporter, or from ebpfwatch with metrics.host: full.",
                        [
                            _query(
                                f"rate(node_pressure_memory_waiting_seconds_total{{{_NODE}}}"
                                "[$__rate_interval])"
                                " or rate(ebpfwatch_pressure_waiting_seconds_total"
                                f'{{{_OURS}, resource="memory"}}[$__rate_interval])',
                                "{{instance}} some",
                            ),
                            _query(
                                f"rate(node_pressure_memory_stalled_seconds_total{{{_NODE}}}"
                                "[$__rate_interval])"
                                " or rate(ebpfwatch_pressure_stalled_seconds_total"
                                f'{{{_OURS}, resource="memory"}}[$__rate_interval])',
                                "{{instance}} all",
                            ),
                        ],
                        unit="percentunit",
                        soft_max=0.1,
                        empty="neither node_exporter nor metrics.host: full",
                    ),
                ),
                (
                    12,
                    8,
                    _graph(
                        "ext4 inodes evicted",
                        "By deletion and by reclaim; the known crash is in reclaim.",
                        [
                            _query(
                                "sum by (instance) (rate(ebpfwatch_lifecycle_events_total"
                                f'{{{_OURS}, event="evict"}}[$__rate_interval]))',
                                "{{instance}} all",
                            ),
                            _query(
                                "sum by (instance) (rate(ebpfwatch_lifecycle_events_total"
                                f'{{{_OURS}, event="evict_in_reclaim"}}[$__rate_interval]))',
                                "{{instance}} in reclaim",
                            ),
                        ],
                        unit="ops",
                    ),
                ),
                (
                    12,
                    8,
                    _graph(
                        "ext4 inodes and dentries in memory",
                        "What reclaim can take.",
                        [
                            _query(
                                f'ebpfwatch_slab_objects{{{_OURS}, state="active"}} > 0',
                                "{{instance}} {{cache}}",
                            )
                        ],
                    ),
                ),
            ],
        ),
        (
            "Is it watching?",
            [
                (
                    24,
                    8,
                    {
                        **_panel(
                            "state-timeline",
                            "Hooks",
                            "Proven by a file of our own that is created and deleted; reclaim is"
                            " proven once something is reclaimed.",
                            [_query(f"ebpfwatch_hook_alive{{{_OURS}}}", "{{instance}} {{hook}}")],
                            {
                                "thresholds": _steps((None, "text")),
                                "mappings": [
                                    *_words(n0=("silent", "red"), n1=("alive", "green")),
                                    _nan("not proven yet", "#888888"),
                                ],
                                "custom": {"fillOpacity": 70, "lineWidth": 0},
                            },
                            {
                                "mergeValues": True,
                                "showValue": "never",
                                "alignValue": "left",
                                "rowHeight": 0.85,
                                "legend": {
                                    "showLegend": True,
                                    "displayMode": "list",
                                    "placement": "bottom",
                                    "calcs": [],
                                },
                                "tooltip": {"mode": "single", "sort": "none"},
                            },
                        )
                    },
                ),
                (
                    12,
                    8,
                    _graph(
                        "Lost",
                        "Weakens verdicts. recursion and forgotten_dead are normal under load.",
                        [
                            _query(
                                "sum by (instance, kind) (rate(ebpfwatch_lost_events_total"
                                f"{{{_OURS}}}[$__rate_interval])) > 0",
                                "{{instance}} {{kind}}",
                            )
                        ],
                        unit="ops",
                        empty="nothing lost",
                    ),
                ),
                (
                    12,
                    8,
                    _graph(
                        "From eviction to free",
                        "The grace period, in which a second free can still be seen coming.",
                        [
                            _query(
                                f"histogram_quantile({q}, sum by (instance, le)"
                                f" (rate(ebpfwatch_grace_seconds_bucket{{{_OURS}}}"
                                "[$__rate_interval])))",
                                f"{{{{instance}}}} {name}",
                            )
                            for q, name in ((0.5, "half of them"), (0.99, "99 %"))
                        ],
                        unit="s",
                        empty="no inode was freed",
                    ),
                ),
                (
                    8,
                    8,
                    _graph(
                        "What the watcher costs",
                        "In parts of one CPU: daemon and programs, as the governor measures it.",
                        [_query(f"ebpfwatch_watcher_cpu_ratio{{{_OURS}}}", "{{instance}}")],
                        unit="percentunit",
                    ),
                ),
                (
                    8,
                    8,
                    _graph(
                        "The watcher's memory",
                        "Of the daemon, and of its programs and tables in the kernel.",
                        [
                            _query(
                                f"process_resident_memory_bytes{{{_OURS}}}", "{{instance}} daemon"
                            ),
                            _query(
                                f"ebpfwatch_kernel_memory_bytes{{{_OURS}}}", "{{instance}} kernel"
                            ),
                        ],
                        unit="bytes",
                    ),
                ),
                (
                    8,
                    8,
                    _graph(
                        "How far back a second free is found",
                        "Age of the oldest dead inode that the table still remembers.",
                        [_query(f"ebpfwatch_table_horizon_seconds{{{_OURS}}}", "{{instance}}")],
                        unit="s",
                    ),
                ),
            ],
        ),
    ]


def _laid_out() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in _rows():
        place = {"h": 1, "w": 24, "x": 0, "y": y}
        panels.append(
            {"type": "row", "title": title, "gridPos": place, "collapsed": False, "panels": []}
        )
        y += 1
        x = 0
        height = 0
        for width, high, panel in row:
            if x + width > 24:
                x, y = 0, y + height
            panels.append({**panel, "gridPos": {"h": high, "w": width, "x": x, "y": y}})
            x, height = x + width, high
        y += height
    return [{"id": number, **panel} for number, panel in enumerate(panels, 1)]


def _annotation(name: str, color: str, expr: str, title: str, tags: str) -> dict[str, Any]:
    return {
        "name": name,
        "enable": True,
        "hide": False,
        "iconColor": color,
        "datasource": _SOURCE,
        "expr": expr,
        "step": "30s",
        "titleFormat": title,
        "textFormat": "{{instance}}",
        "tagKeys": tags,
        "useValueForTime": False,
    }


def _variable(name: str, label: str, query: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor"},
        "multi": True,
        "includeAll": True,
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "regex": "",
        "skipUrlSync": False,
        "options": [],
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        **more,
    }


def _link(title: str, url: str, kind: str = "link") -> dict[str, Any]:
    return {
        "title": title,
        "type": kind,
        "icon": "external link",
        "tooltip": "",
        "url": url,
        "tags": [],
        "asDropdown": False,
        "targetBlank": True,
        "includeVars": False,
        "keepTime": False,
    }


def dashboard() -> dict[str, Any]:
    """The whole of it."""
    found = (
        "sum by (instance, verdict, confidence)"
        f' (increase(ebpfwatch_findings_total{{{_OURS}, test="false"}}[1m])) > 0'
    )
    return {
        "uid": "ebpfwatch",
        "title": "ebpfwatch: lives of ext4 inodes",
        "description": "Is it watching, did anything happen, is it about to? Queries need nothing"
        " but the job ebpfwatch; pressure comes from node_exporter where it is there.",
        "tags": ["ebpfwatch", "ext4", "memory"],
        "schemaVersion": 39,
        "version": 2,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "fiscalYearStartMonth": 0,
        "timepicker": {},
        "links": [
            _link("Alerts", "/alerting/list?search=Ebpfwatch"),
        ],
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Data source",
                    "type": "datasource",
                    "query": "prometheus",
                    "hide": 0,
                    "multi": False,
                    "includeAll": False,
                    "refresh": 1,
                    "regex": "",
                    "skipUrlSync": False,
                    "options": [],
                },
                _variable(
                    "instance",
                    "Machine",
                    'label_values(up{job="ebpfwatch"}, instance)',
                    allValue=".*",
                ),
                _variable(
                    "host",
                    "Host",
                    'label_values(up{job="ebpfwatch", instance=~"$instance"}, instance)',
                    hide=2,
                    regex="/^([^:]+)/",
                ),
            ]
        },
        "annotations": {
            "list": [
                _annotation(
                    "Findings", "red", found, "{{verdict}} ({{confidence}})", "verdict,confidence"
                ),
                _annotation(
                    "Self-tests",
                    "blue",
                    found.replace('test="false"', 'test="true"'),
                    "{{verdict}} ({{confidence}})",
                    "verdict,confidence",
                ),
                _annotation(
                    "Starts of the daemon",
                    "purple",
                    f"changes(ebpfwatch_start_time_seconds{{{_OURS}}}[1m]) > 0",
                    "started",
                    "instance",
                ),
                _annotation(
                    "Alerts",
                    "orange",
                    'ALERTS{alertname=~"Ebpfwatch.*", alertstate="firing",'
                    ' severity=~"critical|warning", instance=~"$instance"}',
                    "{{alertname}}",
                    "alertname,severity",
                ),
            ]
        },
        "panels": _laid_out(),
    }


def text() -> str:
    """The file."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
