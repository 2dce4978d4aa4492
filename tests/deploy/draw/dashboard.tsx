// Draws a dashboard's JSON with Grafana's own components, from what Prometheus answered.
// There is no Grafana server in the archives that this project installs from. What its server does
// is done by draw.py (variables, queries) and here (overrides, transformations, the grid). The state
// timeline alone is drawn by us: @grafana/ui has it not.
// By require(): in their ES form the default exports of two older libraries below them are lost.
import React = require('react');
import client = require('react-dom/client');
import rxjs = require('rxjs');
import data_ = require('@grafana/data');
import ui = require('@grafana/ui');
import type { DataFrame } from '@grafana/data';

const {
  applyFieldOverrides, createTheme, dateTime, FieldConfigOptionsRegistry, FieldType, getDisplayProcessor,
  getFieldDisplayName, getFieldDisplayValues, LoadingState, standardTransformers, standardTransformersRegistry,
  ThemeContext, transformDataFrame,
} = data_;
const {
  BigValue, BigValueGraphMode, BigValueJustifyMode, BigValueTextMode, GlobalStyles, InlineField, InlineSwitch, LinkButton, MultiSelect,
  PanelChrome, Select, Table, TimeSeries,
} = ui;

type Series = { metric: Record<string, string>; values: Array<[number, string]> };
type Result = { refId: string; legend: string; table: boolean; series: Series[] };
declare const DATA: {
  dashboard: any; results: Record<string, Result[]>; from: number; to: number; step: number; theme: 'light' | 'dark';
  marks: Array<{ annotation: string; time: number; end: number; title: string; color: string }>;
  variables: Record<string, string[]>;
};

const theme = createTheme({ colors: { mode: DATA.theme } });
const [UNIT, GAP, ROW, HEAD] = [1600 / 24, 8, 38, 190];
standardTransformersRegistry.setInit(() =>
  [standardTransformers.mergeTransformer, standardTransformers.organizeFieldsTransformer].map((transformation) => ({
    id: transformation.id, name: transformation.name, transformation: async () => transformation, editor: () => null,
  } as any)));

// What Grafana's core registers: the properties that a panel or an override may set.
const registry = new FieldConfigOptionsRegistry();
const CUSTOM = [...new Set(DATA.dashboard.panels.flatMap((panel: any) =>
  [...Object.keys(panel.fieldConfig?.defaults?.custom ?? {}),
    ...(panel.fieldConfig?.overrides ?? []).flatMap((o: any) => o.properties.map((p: any) => p.id))
      .filter((id: string) => id.startsWith('custom.')).map((id: string) => id.slice(7))]))] as string[];
for (const id of ['unit', 'decimals', 'mappings', 'links', 'thresholds', 'noValue', 'color', 'min', 'max',
  ...CUSTOM.map((name) => `custom.${name}`)]) {
  const isCustom = id.startsWith('custom.');
  const path = isCustom ? id.slice(7) : id;
  registry.register({ id, path, name: id, isCustom, editor: () => null, override: () => null, getItemsCount: () => 0,
    process: (value: any) => value, shouldApply: () => true, settings: {} } as any);
}

const number = (text: string) => text === 'NaN' ? NaN : text === '+Inf' ? Infinity : Number(text);
const legend = (format: string, labels: Record<string, string>) =>
  format.replace(/{{\s*(\w+)\s*}}/g, (_, name) => labels[name] ?? '');

function frames(result: Result): DataFrame[] {
  if (!result.table) {
    return result.series.map(({ metric, values }) => ({
      refId: result.refId, length: values.length,
      fields: [
        // A line ends where points are missing, as with Grafana's own data source.
        { name: 'Time', type: FieldType.time, config: { interval: DATA.step * 1000 }, values: values.map(([t]) => t * 1000) },
        { name: 'Value', type: FieldType.number, labels: metric, values: values.map(([, v]) => number(v)),
          config: { displayNameFromDS: legend(result.legend, metric) || undefined } },
      ],
    }));
  }
  const names = [...new Set(result.series.flatMap(({ metric }) => Object.keys(metric)))].filter((n) => n !== '__name__');
  const rows = result.series;
  const value = result.refId === 'only' ? 'Value' : `Value #${result.refId}`;
  return [{
    refId: result.refId, length: rows.length,
    fields: [
      { name: 'Time', type: FieldType.time, config: {}, values: rows.map((r) => r.values[0][0] * 1000) },
      ...names.map((name) => ({ name, type: FieldType.string, config: {}, values: rows.map((r) => r.metric[name] ?? '') })),
      { name: value, type: FieldType.number, config: {}, values: rows.map((r) => number(r.values[0][1])) },
    ],
  }];
}

async function prepared(panel: any): Promise<DataFrame[]> {
  const results = DATA.results[panel.id].filter((result) => result.series.length);
  if (results.length && DATA.results[panel.id].length === 1) results[0].refId = results[0].table ? 'only' : results[0].refId;
  const raw = results.flatMap(frames);
  const data = await rxjs.lastValueFrom(transformDataFrame(panel.transformations ?? [], raw));
  return applyFieldOverrides({
    data, fieldConfig: panel.fieldConfig, fieldConfigRegistry: registry as any, theme, timeZone: 'utc',
    replaceVariables: (text: string) => text,
  });
}

const when = { from: dateTime(DATA.from * 1000), to: dateTime(DATA.to * 1000), raw: { from: 'x', to: 'y' } } as any;
const Nothing = ({ panel }: any) => <div className="nothing">{panel.fieldConfig.defaults.noValue ?? 'No data'}</div>;

function Stat({ panel, data, width, height }: any) {
  const values = getFieldDisplayValues({
    data, reduceOptions: panel.options.reduceOptions, fieldConfig: panel.fieldConfig, theme, timeZone: 'utc',
    replaceVariables: (text: string) => text, sparkline: false,
  });
  return values.slice(0, 1).map((value, index) => (
    <BigValue key={index} value={{ ...value.display, title: undefined }} width={width} height={height} theme={theme}
      colorMode={panel.options.colorMode} graphMode={BigValueGraphMode.None}
      justifyMode={BigValueJustifyMode.Auto} textMode={BigValueTextMode.Value} />));
}

function Timeline({ data, width }: any) {
  const left = 300;
  const span = DATA.to - DATA.from;
  const x = (time: number) => left + (time / 1000 - DATA.from) / span * (width - left);
  return (
    <svg width={width} height={data.length * 24 + 20}>
      {data.map((frame: DataFrame, row: number) => {
        const [time, value] = frame.fields;
        const show = getDisplayProcessor({ field: value, theme, timeZone: 'utc' });
        return (
          <g key={row} transform={`translate(0, ${row * 24})`}>
            <text x={0} y={16} fontSize={13} fill={theme.colors.text.primary}>{getFieldDisplayName(value, frame)}</text>
            {time.values.map((at: number, index: number) => {
              const end = time.values[index + 1] ?? at;
              const shown = show(value.values[index]);
              return <rect key={index} x={x(at)} y={2} height={19} width={Math.max(1, x(end) - x(at) + 0.5)}
                fill={shown.color} data-text={shown.text} />;
            })}
          </g>);
      })}
    </svg>);
}

// A mark as Grafana's core draws it: a dashed line at its begin, a shade until its end, a bar below.
const painted: Record<string, Set<number>> = {};
const marked = new WeakSet();
function mark(config: any) {
  if (marked.has(config)) return null;
  marked.add(config);
  config.addHook('draw', (u: any) => {
    const { left, top, width, height } = u.bbox;
    for (const { annotation, time, end, color } of DATA.marks) {
      const [x, to] = [time, end].map((at) => Math.min(left + width, u.valToPos(at * 1000, 'x', true)));
      if (x < left || x > left + width) continue;
      const ctx: CanvasRenderingContext2D = u.ctx;
      ctx.save();
      ctx.strokeStyle = ctx.fillStyle = theme.visualization.getColorByName(color);
      ctx.setLineDash([5, 5]);
      ctx.lineWidth = 2;
      ctx.beginPath();
      ctx.moveTo(x, top);
      ctx.lineTo(x, top + height);
      ctx.stroke();
      ctx.globalAlpha = 0.1;
      ctx.fillRect(x, top, to - x, height);
      ctx.globalAlpha = 1;
      ctx.fillRect(x - 2, top + height, Math.max(4, to - x), 4);
      ctx.restore();
      (painted[annotation] ??= new Set()).add(time);
    }
  });
  return null;
}

// Title, menus of the variables (the test opens that of the machines), switches of the marks, and links.
function Head() {
  const { title, templating, annotations, links } = DATA.dashboard;
  const menus = templating.list.filter((one: any) => one.hide !== 2).map((one: any) => {
    const options = [...(one.includeAll ? ['All'] : []), ...DATA.variables[one.name]].map((text) => ({ label: text, value: text }));
    const menu = { options, onChange: () => null, width: 28, menuShouldPortal: false, 'aria-label': one.label } as any;
    return (
      <InlineField key={one.name} label={one.label}>
        {one.multi ? <MultiSelect {...menu} value={options.slice(0, 1)} />
          : <Select {...menu} value={options[0]} />}
      </InlineField>);
  });
  const line = { display: 'flex', gap: 16, alignItems: 'flex-start' } as any;
  return (
    <div id="head" style={{ position: 'absolute', top: 0, left: 0, right: 0, padding: 8, color: theme.colors.text.primary }}>
      <h1 style={{ fontSize: 20, margin: '0 0 8px' }}>{title}</h1>
      <div style={line}>
        {menus}
        {annotations.list.filter((one: any) => !one.hide).map((one: any) => (
          <InlineSwitch key={one.name} label={one.name} showLabel={true} value={one.enable} readOnly={true} />))}
        {links.map((one: any) => <LinkButton key={one.title} href={one.url} variant="secondary">{one.title}</LinkButton>)}
      </div>
    </div>);
}

function Body({ panel, data, width, height }: any) {
  const some = data.some((frame: DataFrame) => frame.length);
  if (!some) return <Nothing panel={panel} />;
  if (panel.type === 'stat') return <Stat {...{ panel, data, width, height }} />;
  if (panel.type === 'table') return <Table data={data[0]} width={width} height={height} timeRange={when} columnMinWidth={100} />;
  if (panel.type === 'state-timeline') return <Timeline {...{ data, width }} />;
  return <TimeSeries frames={data} width={width} height={height} timeRange={when} timeZone="utc" legend={panel.options.legend}>{mark}</TimeSeries>;
}

function Dashboard({ prepared }: { prepared: Record<string, DataFrame[]> }) {
  const bottom = Math.max(...DATA.dashboard.panels.map((p: any) => p.gridPos.y + p.gridPos.h));
  return (
    <div id="board" style={{ position: 'relative', width: 1600, height: bottom * ROW + HEAD + 20, background: theme.colors.background.canvas }}>
      <Head />
      {DATA.dashboard.panels.map((panel: any) => {
        const { x, y, w, h } = panel.gridPos;
        const place = { position: 'absolute', left: x * UNIT, top: HEAD + y * ROW, width: w * UNIT - GAP, height: h * ROW - GAP } as any;
        if (panel.type === 'row') {
          return <h2 key={panel.id} style={{ ...place, color: theme.colors.text.primary, fontSize: 18, margin: 0, paddingTop: 4 }}>{panel.title}</h2>;
        }
        return (
          <div key={panel.id} style={place} data-panel={panel.id} data-title={panel.title}>
            <PanelChrome title={panel.title} description={panel.description} width={w * UNIT - GAP} height={h * ROW - GAP} loadingState={LoadingState.Done}>
              {(width: number, height: number) => <Body {...{ panel, data: prepared[panel.id], width, height }} />}
            </PanelChrome>
          </div>);
      })}
    </div>);
}

// What the panels hold, for the test: what is drawn cannot be asked for its numbers.
function summary(panel: any, data: DataFrame[]) {
  const numbers = data.flatMap((frame) => frame.fields.filter((f) => f.type === FieldType.number));
  const texts = numbers.map((field, index) => {
    const show = getDisplayProcessor({ field, theme, timeZone: 'utc' });
    const last = field.values[field.values.length - 1];
    const value = show(last);
    const name = panel.type === 'table' ? field.name : field.config.displayNameFromDS ?? field.name;
    return { name, last: String(last), text: `${value.prefix ?? ''}${value.text}${value.suffix ?? ''}`, color: value.color };
  });
  const values = numbers.flatMap((field) => [...field.values] as number[]);
  return {
    title: panel.title, type: panel.type, series: numbers.length, rows: Math.max(0, ...data.map((f) => f.length)),
    nan: values.length > 0 && values.every((v) => Number.isNaN(v)), zero: values.length > 0 && values.every((v) => v === 0), texts,
    columns: panel.type === 'table' && data[0] ? data[0].fields.filter((f) => !f.config.custom?.hidden).map((f) => f.name) : [],
  };
}

(async () => {
  const panels = DATA.dashboard.panels.filter((panel: any) => panel.type !== 'row');
  const data: Record<string, DataFrame[]> = {};
  for (const panel of panels) data[panel.id] = await prepared(panel);
  (window as any).SUMMARY = panels.map((panel: any) => summary(panel, data[panel.id]));
  client.createRoot(document.getElementById('root')!).render(
    <ThemeContext.Provider value={theme}><GlobalStyles /><Dashboard prepared={data} /></ThemeContext.Provider>);
  setTimeout(() => {
    (window as any).PAINTED = Object.fromEntries(Object.entries(painted).map(([name, times]) => [name, times.size]));
    (window as any).DRAWN = true;
  }, 1500);
})().catch((error) => { (window as any).FAILED = String(error.stack ?? error); });
