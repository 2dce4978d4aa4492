"""The dashboard's shape by Grafana's own published types; test_dashboard.py draws it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import yaml

from tests.deploy.conftest import node_module, program

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy/grafana"
DASHBOARD = json.loads((GRAFANA / "ebpfwatch.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

# Grafana's types name strings by enums; in JSON they are the strings themselves.
TYPES = """
import type {Dashboard, Panel, RowPanel, AnnotationQuery, VariableModel} from
    '@grafana/schema/dist/types/raw/dashboard/x/types.gen';
import type * as timeseries from
    '@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/types.gen';
import type * as stat from '@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/types.gen';
import type * as timeline from
    '@grafana/schema/dist/types/raw/composable/statetimeline/panelcfg/x/types.gen';
import type * as table from '@grafana/schema/dist/types/raw/composable/table/panelcfg/x/types.gen';
type Plain<T> = T extends string ? `${T}`
    : T extends number ? (`${T}` extends `${infer N extends number}` ? N : never)
    : T extends (infer U)[] ? Plain<U>[]
    : T extends object ? {[K in keyof T]: Plain<T[K]>} : T;
// What Prometheus's own plugin adds to the general shape.
type Texts = Record<'expr' | 'step' | 'titleFormat' | 'textFormat' | 'tagKeys', string>;
type Annotation = Plain<AnnotationQuery> & Texts & {useValueForTime: boolean};
type Variable = Plain<VariableModel> & {definition?: string};
"""
OPTIONS = {
    "timeseries": ("timeseries.Options", "timeseries.FieldConfig"),
    "stat": ("stat.Options", "{}"),
    "table": ("Partial<table.Options>", "Partial<table.FieldConfig>"),
    "state-timeline": ("timeline.Options", "timeline.FieldConfig"),
}


def typed() -> str:
    """The dashboard as TypeScript: each part a literal, so that a misspelt key is an error too."""
    lines = [TYPES]

    def add(kind: str, value: object) -> None:
        lines.append(f"const v{len(lines)}: {kind} = {json.dumps(value)};")

    for panel in DASHBOARD["panels"]:
        add("Plain<RowPanel>" if panel["type"] == "row" else "Plain<Panel>", panel)
    for panel in PANELS:
        options, custom = OPTIONS[panel["type"]]
        add(f"Plain<{options}>", panel["options"])
        add(f"Plain<{custom}>", panel["fieldConfig"]["defaults"].get("custom", {}))
    for annotation in DASHBOARD["annotations"]["list"]:
        add("Annotation", annotation)
    for variable in DASHBOARD["templating"]["list"]:
        add("Variable", variable)
    inner = {"panels": [], "annotations": {"list": []}, "templating": {"list": []}}
    add("Plain<Dashboard>", {**DASHBOARD, **inner})
    return "\n".join(lines)


def compiled(directory: Path, source: str) -> str:
    """What Grafana's types and the TypeScript compiler say."""
    modules = node_module("typescript").parent
    node_module("@grafana/schema")
    (directory / "node_modules").symlink_to(modules)
    (directory / "dashboard.ts").write_text(source)
    ran = subprocess.run(
        [program("node")["node"], str(modules / "typescript/bin/tsc"), "--noEmit", "--strict"]
        + ["--skipLibCheck", "--moduleResolution", "node", "--module", "es2020"]
        + ["--target", "es2020", "dashboard.ts"],
        cwd=directory,
        capture_output=True,
        text=True,
    )
    return f"{ran.stdout}{ran.stderr}"


def test_it_is_what_grafana_expects(tmp_path: Path) -> None:
    """Every panel, its options, variables and annotations, by the types of @grafana/schema."""
    assert compiled(tmp_path, typed()) == ""


def test_the_types_would_find_a_mistake(tmp_path: Path) -> None:
    """A misspelt key, a word that Grafana does not know, a number that should be text."""
    broken = typed()
    for right, wrong in (
        ('"gridPos"', '"gridpos"'),
        ('"colorMode": "background"', '"colorMode": "backgroud"'),
        ('"title": "Hooks"', '"title": 3'),
    ):
        assert right in broken
        broken = broken.replace(right, wrong)
    said = compiled(tmp_path, broken)
    for mistake in ("gridpos", "backgroud", "Type 'number' is not assignable to type 'string'"):
        assert mistake in said, said


def test_panels_do_not_overlap_and_say_what_they_show() -> None:
    """Every cell of the grid has one owner; every panel a description."""
    owners: dict[tuple[int, int], int] = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for cell in (
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        ):
            assert owners.setdefault(cell, panel["id"]) == panel["id"], panel["title"]
    assert all(panel["description"] for panel in PANELS)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_provisioning_names_what_is_there() -> None:
    """Both files are what Grafana reads, and the data source is one of the dashboard's kind."""
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/ebpfwatch.yaml").read_text())
    (only,) = source["datasources"]
    assert source["apiVersion"] == 1 and only["type"] == "prometheus"
    assert only["type"] == DASHBOARD["templating"]["list"][0]["query"]
    scrape = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert only["jsonData"]["timeInterval"] == scrape["global"]["scrape_interval"]
    boards = yaml.safe_load((GRAFANA / "provisioning/dashboards/ebpfwatch.yaml").read_text())
    (provider,) = boards["providers"]
    assert boards["apiVersion"] == 1 and provider["type"] == "file"
    assert provider["options"]["path"].startswith("/var/lib/grafana/")
