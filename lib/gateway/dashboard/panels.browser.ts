/**
 * The panels of the page, in order. Each builds its elements once and brings them up to date with every snapshot; a further
 * panel is one more entry of the list.
 */
import type { DecisionRecord } from '../../controller/types.js';
import { formatCount, formatNumber, formatShare, formatTick } from '../../report/format.js';
import type { EngineSnapshot, GatewaySnapshot } from '../types.js';
import { type BarsOptions, engineBars, type LinesOptions, timeLines } from './charts.browser.js';
import { element, legend, scroller, setText, setWords, table } from './elements.browser.js';
import { heatMap } from './heat.browser.js';
import type { History } from './history.js';
import {
  controllerTiles,
  DECISION_COLUMNS,
  DECISION_TIME,
  dated,
  ENGINE_COLUMNS,
  ENGINE_NAME,
  formatMs,
  PLAN_COLUMNS,
  PLAN_NAME,
  previewWords,
  SERVER_COLUMNS,
  SERVER_NAME,
  type Tile,
  tiles,
} from './words.js';

export interface View {
  snapshot: GatewaySnapshot;
  history: History;
}

export interface Panel {
  id: string;
  title: string;
  /** Fills the body, which is on the page already, and returns what brings it up to date. */
  build(body: HTMLElement): (view: View) => void;
  /** Default: always. */
  isShown?(snapshot: GatewaySnapshot): boolean;
}

export const PANELS: readonly Panel[] = [
  { id: 'summary', title: 'Summary', build: summary },
  { id: 'history', title: 'Last 5 minutes', build: lastMinutes },
  { id: 'load', title: 'Load by engine', build: load },
  { id: 'engines', title: 'Engines', build: engines },
  { id: 'servers', title: 'Servers', build: servers },
  {
    id: 'placement',
    title: 'Expert placement',
    build: placement,
    isShown: ({ controller }) => controller !== undefined,
  },
];

interface ChartFrame {
  id: string;
  title: string;
  caption: string;
}

const BARS: readonly (ChartFrame & BarsOptions)[] = [
  {
    id: 'pressure',
    title: 'Pressure by term',
    caption: 'What a request without prefill would find on each engine, ms.',
    format: (ms) => `${formatNumber(ms)} ms`,
    tick: formatTick,
    series: [
      // Of equal rank, hence colours that tell apart and do not judge.
      { name: 'prefill backlog', colour: 'after', figure: ({ backlogMs }) => backlogMs },
      { name: 'KV cache', colour: 'moves', figure: ({ kvMs }) => kvMs },
      { name: 'queue', colour: 'bound', figure: ({ queueMs }) => queueMs },
      { name: 'MoE', colour: 'fourth', figure: ({ moeMs }) => moeMs },
    ],
  },
  {
    id: 'shares',
    title: 'Dispatch shares',
    caption: 'Of the requests of the last minute. The dashed line is an even share of the active engines.',
    format: formatShare,
    tick: (share) => `${formatTick(share * 100)} %`,
    limit: 1,
    mark: evenShare,
    series: [{ name: 'share', colour: 'after', figure: ({ dispatchShare }) => dispatchShare }],
  },
];

const LINES: readonly (ChartFrame & LinesOptions)[] = [
  {
    id: 'ttft',
    title: 'TTFT',
    caption: 'Quantiles over the minute before.',
    format: formatMs,
    series: [
      { name: 'p50', colour: 'after', figure: ({ ttftMs }) => ttftMs.p50 },
      { name: 'p90', colour: 'moves', figure: ({ ttftMs }) => ttftMs.p90 },
      { name: 'p99', colour: 'fourth', figure: ({ ttftMs }) => ttftMs.p99 },
    ],
  },
  {
    id: 'queue',
    title: 'Queue',
    caption: 'Requests that wait in the gateway.',
    format: formatCount,
    counts: true,
    series: [{ name: 'waiting', colour: 'after', figure: ({ queue }) => queue.size }],
  },
  {
    id: 'rate',
    title: 'Requests/s',
    caption: 'Mean over the minute before.',
    format: formatTick,
    series: [{ name: 'requests/s', colour: 'after', figure: ({ requestsPerSecond }) => requestsPerSecond }],
  },
];

function summary(body: HTMLElement): (view: View) => void {
  const show = tileBox(body);
  return ({ snapshot }) => show(tiles(snapshot));
}

function tileBox(body: HTMLElement): (tiles: readonly Tile[]) => void {
  const box = element('div', { class: 'tiles' });
  body.append(box);
  const shown = new Map<string, (tile: Tile) => void>();
  return (next) => {
    for (const tile of next) {
      const update = shown.get(tile.label) ?? tileIn(box, tile.label);
      shown.set(tile.label, update);
      update(tile);
    }
  };
}

function tileIn(parent: HTMLElement, label: string): (tile: Tile) => void {
  const value = element('div', { class: 'value' });
  const detail = element('div', { class: 'was' });
  parent.append(element('div', { class: 'tile' }, element('div', { class: 'label' }, label), value, detail));
  return (tile) => {
    setWords(value, tile);
    setText(detail, tile.detail);
  };
}

/** The element to draw on, on the page, with its title and what explains it. */
function framed(
  parent: HTMLElement,
  { id, title, caption }: ChartFrame,
  key: HTMLElement,
  wrap: (chart: HTMLElement) => HTMLElement = (chart) => chart,
): HTMLElement {
  const chart = element('div', { class: 'chart', 'data-chart': id, role: 'img', 'aria-label': title });
  const captionElement = element('figcaption', {}, caption);
  parent.append(element('figure', {}, element('h3', {}, title), captionElement, key, wrap(chart)));
  return chart;
}

function lastMinutes(body: HTMLElement): (view: View) => void {
  const box = element('div', { class: 'charts thirds' });
  body.append(box);
  const updates = LINES.map((lines) => timeLines(framed(box, lines, legend(lines.series, 'line')), lines));
  return ({ history }) => {
    for (const update of updates) update(history);
  };
}

function load(body: HTMLElement): (view: View) => void {
  const box = element('div', { class: 'charts' });
  body.append(box);
  const updates = BARS.map((bars) => {
    const label = `${bars.title}; the table of engines has the figures`;
    const chart = framed(box, bars, legend(bars.series, 'box'), (inner) => scroller(label, inner));
    return engineBars(chart, bars);
  });
  return ({ snapshot }) => {
    for (const update of updates) update(snapshot.engines);
  };
}

function evenShare(engines: readonly EngineSnapshot[]): number | undefined {
  const active = engines.filter(({ state }) => state === 'active').length;
  return active === 0 ? undefined : 1 / active;
}

function engines(body: HTMLElement): (view: View) => void {
  const shown = table('Engines', ENGINE_NAME, ENGINE_COLUMNS, ({ engine }) => engine);
  body.append(element('div', { class: 'panel' }, scroller('Engines', shown.root)));
  return ({ snapshot }) => shown.update(snapshot.engines);
}

function servers(body: HTMLElement): (view: View) => void {
  const shown = table('Servers', SERVER_NAME, SERVER_COLUMNS, ({ url }) => url);
  body.append(element('div', { class: 'panel' }, scroller('Servers', shown.root)));
  return ({ snapshot }) => shown.update(snapshot.servers);
}

/** What the controller sees, did, and would do. */
function placement(body: HTMLElement): (view: View) => void {
  const showTiles = tileBox(body);
  const showHeat = heatMap(body);
  const preview = element('p', { class: 'panel', id: 'preview' });
  const keyOf = ({ atMs, decision, planId }: DecisionRecord) => `${atMs} ${decision} ${planId}`;
  const decisions = table('Decisions', DECISION_TIME, DECISION_COLUMNS, keyOf);
  const plans = table('Plans', PLAN_NAME, PLAN_COLUMNS, ({ planId }) => planId);
  const tables = element('div', { class: 'charts', id: 'plans' });
  for (const [title, { root }] of [
    ['Last decisions', decisions],
    ['Plans put in force', plans],
  ] as const) {
    tables.append(element('div', { class: 'panel' }, element('h3', {}, title), scroller(title, root)));
  }
  body.append(preview, tables);
  return ({ snapshot: { controller, timeMs } }) => {
    if (controller === undefined) return;
    showTiles(controllerTiles(controller));
    showHeat(controller);
    setText(preview, previewWords(controller));
    decisions.update(dated(controller.decisions, timeMs));
    plans.update(dated(controller.history, timeMs));
  };
}
